"""A run that is made anew, whatever stands in its place: written beside its place, and put there in one move when it is complete.

Limits: the move is one system call on Linux. Elsewhere there is a moment in which the old run stands beside its place;
the next run of this name puts it back.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import time
import uuid
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from dit_lens.errors import StoreError
from dit_lens.store import files
from dit_lens.store.journal import Journal
from dit_lens.store.journal import read as read_journal
from dit_lens.store.names import PARTIAL, REPLACED
from dit_lens.store.reader import load_run
from dit_lens.store.status import status_of

_FRESH = 60.0
"""Seconds for which a folder without a writer's name is left alone: another process may just be making it."""

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


class Aside:
    """A folder beside the place of a run.

    Args:
        path: The place: the run's folder in its store.

    Attributes:
        folder: Where the run is written; it does not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.folder = path.with_name(f"{path.name}{PARTIAL}{uuid.uuid4().hex[:8]}")
        self._settled = False
        _sweep(path)

    def take_place(self) -> Path:
        """Put the run, which is complete and closed, in its place; return the place. Doing it again does nothing.

        Where a complete run stands there that holds something else, a warning says so: what makes the two differ is not in
        their name. A process that is killed meanwhile leaves the old run or the new one there.
        """
        if self._settled:
            return self.path
        is_other = _is_whole(self.path) and _held(self.path) != _held(self.folder)
        _move(self.folder, self.path)
        self._settled = True
        if is_other:
            warnings.warn(
                f"{self.path} was made again, and holds other values than before: its name does not tell the two apart. Random "
                "numbers that are drawn without a seed do that, and what a body reads outside of Python. Use torch.Generator "
                "with a seed, or another store for each.",
                stacklevel=2,
            )
        return self.path

    def give_up(self) -> None:
        """Leave a run that did not become complete: in its place, unless more stands there.

        More is a run that is complete and not damaged, or whatever it is, where no step of the new one is committed.

        Does nothing after `take_place`.
        """
        if self._settled or not self.folder.exists():
            return
        self._settled = True
        is_more = _is_whole(self.path) or (self.path.exists() and not _steps(self.folder))
        if is_more or not _is_run(self.folder):
            _discard(self.folder)
        else:
            _move(self.folder, self.path)


def _move(folder: Path, path: Path) -> None:
    """Put a folder in the place of another, and remove that one."""
    try:
        if not path.exists():
            os.rename(folder, path)
            return
        old = _swap(folder, path)
        files.sync_path(str(path.parent))
    except OSError as error:
        raise StoreError(
            f"{folder} cannot take the place of {path}: {error}. What was recorded stands there."
        ) from error
    _discard(old)


def _swap(folder: Path, path: Path) -> Path:
    """Put a folder in the place of another; return where the other one is."""
    if _exchange(folder, path):
        return folder
    old = path.with_name(f"{path.name}{REPLACED}{uuid.uuid4().hex[:8]}")
    os.rename(path, old)
    try:
        os.rename(folder, path)
    except BaseException:
        os.rename(old, path)
        raise
    return old


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders in one system call; False where the system has none."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    return rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0


def _discard(folder: Path) -> None:
    """Remove a folder; what stays, the next run of this name removes. Of a link, what it leads to is left alone."""
    if folder.is_symlink():
        with suppress(OSError):
            folder.unlink()
        return
    try:
        shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:  # rmtree closes a descriptor twice where an interrupt comes in between
        if isinstance(error.__context__, KeyboardInterrupt):
            raise error.__context__ from None


def _sweep(path: Path) -> None:
    """Remove what killed processes have left beside a place; put an old run back that was on its way out."""
    for folder in _beside(path, REPLACED):
        if path.exists():
            _discard(folder)
        else:
            with suppress(OSError):
                os.rename(folder, path)
    for folder in _beside(path, PARTIAL):
        if _is_free(folder):
            _discard(folder)


def _beside(path: Path, middle: str) -> Iterator[Path]:
    if path.parent.is_dir():
        yield from (
            folder for folder in sorted(path.parent.iterdir()) if folder.name.startswith(path.name + middle)
        )


def _is_free(folder: Path) -> bool:
    """Say whether the writer of a run is gone: it has said who it is, and holds the run's lock no more."""
    try:
        if not read_journal(folder).session:  # it has the folder, and not yet the lock
            return time.time() - folder.stat().st_mtime > _FRESH
        Journal(str(folder), durable=False).close()
    except StoreError:
        return False
    except OSError:
        return True
    return True


def _is_whole(path: Path) -> bool:
    try:
        stored = load_run(path)
        return status_of(stored).complete and not stored.flaw()
    except (StoreError, OSError, ValueError, KeyError):
        return False


def _held(path: Path) -> tuple[Any, ...]:
    """Return what a run holds: the checksums of its units, and what is said of its steps."""
    ledger = read_journal(path)
    return {key: entry.crc32c for key, entry in ledger.units.items()}, ledger.steps


def _steps(path: Path) -> int:
    try:
        return len(read_journal(path).steps)
    except (StoreError, OSError):
        return 0


def _is_run(path: Path) -> bool:
    return (path / "zarr.json").exists()


__all__ = ["Aside"]
