"""Results that are made once: Datasets and plain data, under a key that says everything that makes them.

A result in the cache is whole or does not exist: it is written under a name of its own, and renamed when it is done. A Dataset
carries a hash over all its files, and is read into memory before the hash is checked, so what is returned is what was
written. A result that is damaged, torn or of another key is made again. Several processes may make one result at once: each
writes its own, and the first that is done stays.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import uuid
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from dit_lens.engine.outcomes import in_order
from dit_lens.errors import StoreError
from dit_lens.store.lock import process_lives
from dit_lens.store.names import NAME_BYTES, absolute, short

SEAL = "files_sha256"
"""Attribute of a cached Dataset's group: a hash over all its files, this attribute aside."""
_PARTIAL = ".partial-"
_TAIL_BYTES = 120  # of what a partial name has beside the name
_TRIES = 100


class DamagedError(Exception):
    """A result is not what was written, or does not exist."""


# ---- Datasets


def kept(stem: Path, key: str, make: Callable[[], xr.Dataset]) -> xr.Dataset:
    """Return the Dataset that stands in `STEM-KEY.zarr`; make it first where it is missing, or not whole.

    Args:
        stem: Folder and first part of the name.
        key: Hash of everything that makes it.
        make: Makes it.

    Returns:
        The Dataset in memory, as it was read from the disk.

    Raises:
        StoreError: If it cannot be written.
    """
    end = f"-{key}.zarr"
    folder = absolute(stem).with_name(short(stem.name, NAME_BYTES - _TAIL_BYTES - len(end)) + end)
    cached = _load_if_whole(folder)
    if cached is not None:
        return cached
    part = _write_aside(make(), folder)
    try:
        written = load(part)
        # A whole one that another process made in the meantime stays: it may be read already.
        placed = _put_in_place(part, folder, replace=lambda: _load_if_whole(folder) is None)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    other = None if placed else _load_if_whole(folder)
    return written if other is None else other


def save(data: xr.Dataset, folder: Path) -> None:
    """Write a Dataset whole or not at all, in place of an older one.

    Raises:
        StoreError: If it cannot be written.
    """
    folder = absolute(folder)
    part = _write_aside(data, folder)
    try:
        _put_in_place(part, folder, replace=lambda: True)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def load(folder: Path) -> xr.Dataset:
    """Read a Dataset that `kept` or `save` wrote, into memory.

    Raises:
        StoreError: If the Dataset is missing, or not what was written.
    """
    try:
        return _load(absolute(folder))
    except DamagedError as error:
        raise StoreError(f"{folder}: {error}; remove it, and run the command again") from error


def _load_if_whole(folder: Path) -> xr.Dataset | None:
    """Read a Dataset; return None where it is missing, and, with a warning, where it is not whole."""
    try:
        return _load(folder)
    except DamagedError as error:
        if folder.exists():
            warnings.warn(f"{folder}: {error}: it is made again", stacklevel=3)
        return None


def _load(folder: Path) -> xr.Dataset:
    import zarr

    try:
        files = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        group = json.loads(files["zarr.json"])
        seal = group["attributes"].pop(SEAL)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError("it is not whole") from error
    if _seal(files, group) != seal:
        raise DamagedError("its files are not those that were written")
    files["zarr.json"] = json.dumps(group).encode()
    buffer = zarr.core.buffer.default_buffer_prototype().buffer
    store = zarr.storage.MemoryStore({name: buffer.from_bytes(data) for name, data in files.items()})
    return xr.open_zarr(store, consolidated=False).load()


def _seal(files: Mapping[str, bytes], group: Mapping[str, Any]) -> str:
    """Hash the names and contents of all files, and the group without its seal."""
    digest = hashlib.sha256(json.dumps(group, sort_keys=True).encode())
    for name in sorted(files.keys() - {"zarr.json"}):
        digest.update(f"{name}\0{hashlib.sha256(files[name]).hexdigest()}\n".encode())
    return digest.hexdigest()


def _write_aside(data: xr.Dataset, folder: Path) -> Path:
    """Write a Dataset, sealed, into a folder of its own beside the one that it is for; return that one."""
    part = _partial(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder)
        plain = in_order(data).drop_encoding()
        plain.attrs.pop(SEAL, None)
        plain.to_zarr(part, mode="w", consolidated=False)
        files = {
            p.relative_to(part).as_posix(): p.read_bytes() for p in sorted(part.rglob("*")) if p.is_file()
        }
        group = json.loads(files["zarr.json"])
        seal = _seal(files, group)
        group.setdefault("attributes", {})[SEAL] = seal
        (part / "zarr.json").write_text(json.dumps(group))
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return part


def _put_in_place(part: Path, folder: Path, replace: Callable[[], bool]) -> bool:
    """Give a finished folder its name; what has that name goes, unless `replace` says that it stays.

    Returns:
        Whether it has the name.

    Raises:
        StoreError: If the name cannot be had.
    """
    reason: OSError | None = None
    for _ in range(_TRIES):
        try:
            os.rename(part, folder)  # fails where a folder is that is not empty: nothing is ever mixed
            return True
        except OSError as error:
            reason = error
        if not os.path.lexists(folder):
            continue
        if not replace():
            return False
        aside = _partial(folder)
        try:
            os.rename(folder, aside)
        except FileNotFoundError:
            continue  # another process moved it
        except OSError as error:
            reason = error
            break
        if aside.is_dir() and not aside.is_symlink():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.unlink()
    raise StoreError(f"{folder} cannot be written ({reason}); mend that, or give another --out") from reason


# ---- plain data


def kept_json(path: Path, key: str, make: Callable[[], Any], **beside: Any) -> Any:
    """Return the plain data that stands in a file under a key; make it first where it is missing, or torn.

    Args:
        path: The file.
        key: Hash of everything that makes it; what stands there under another key is made again.
        make: Makes it.
        **beside: What else the file says, for those who read it.

    Returns:
        The data, as JSON gives it back.
    """
    path = absolute(path)
    cached = _read_json(path)
    if cached is None or cached["key"] != key:
        save_json({"key": key, **beside, "numbers": make()}, path)
        cached = _read_json(path)
        if cached is None:
            raise StoreError(
                f"{path} was just written and cannot be read; look whether something else writes there"
            )
    return cached["numbers"]


def save_json(data: Any, path: Path) -> None:
    """Write plain data whole or not at all, in place of an older file; numpy's numbers and arrays are plain."""
    path = absolute(path)
    part = _partial(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        with open(part, "x") as file:
            file.write(json.dumps(data, indent=1, default=_number) + "\n")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _read_json(path: Path) -> dict[str, Any] | None:
    """Return what a file holds, None where there is none, or, with a warning, where it is torn."""
    try:
        data = json.loads(path.read_text())
        if isinstance(data, dict) and {"key", "numbers"} <= data.keys():
            return data
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        pass
    warnings.warn(f"{path} is torn or no result: it is made again", stacklevel=3)
    return None


def _number(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else str(value)


# ---- names of what is not finished


def _host() -> str:
    return "".join(c if c.isalnum() else "-" for c in socket.gethostname())[:40]


def _partial(path: Path) -> Path:
    """Return a name beside `path` that nobody else uses, in this process or another."""
    tail = f"{_PARTIAL}{_host()}-{os.getpid()}-{uuid.uuid4().hex}"
    return path.with_name("." + short(path.name, NAME_BYTES - _TAIL_BYTES) + tail)


def _remove_leftovers(path: Path) -> None:
    """Remove what processes of this host that are dead left unfinished of one result."""
    start = "." + short(path.name, NAME_BYTES - _TAIL_BYTES) + f"{_PARTIAL}{_host()}-"
    for name in os.listdir(path.parent):
        pid = name.removeprefix(start).partition("-")[0]
        if name.startswith(start) and pid.isdigit() and not process_lives(int(pid)):
            leftover = path.with_name(name)
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)
