"""Whole files or none: write aside, make durable, rename. Nothing here knows what the bytes mean."""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cache
from typing import Any

from dit_lens.errors import StoreError

PARTIAL = ".partial"
_SYNCFS_FROM = 6  # from this many files on, one syncfs costs less than an fsync each
_BUFFERS_AT_ONCE = 512  # IOV_MAX is 1024
_BINARY = getattr(os, "O_BINARY", 0)  # Windows would turn line ends otherwise
_NONBLOCK = getattr(os, "O_NONBLOCK", 0)  # opening a pipe does not wait for its other end


def write_partial(path: str, buffers: Iterable[Any]) -> int:
    """Write C-contiguous buffers, one after another, to `path` + ".partial"; return the number of bytes.

    Buffers are taken as they come, so a generator holds only what it has made. What fails is removed.
    """
    total = 0
    fd = os.open(path + PARTIAL, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _BINARY, 0o666)
    try:
        try:
            batch: list[memoryview] = []
            for buffer in buffers:
                batch.append(memoryview(buffer).cast("B"))
                if len(batch) == _BUFFERS_AT_ONCE or batch[-1].nbytes >= 1 << 20:
                    total += _write_all(fd, batch)
                    batch = []
            total += _write_all(fd, batch)
        finally:
            os.close(fd)
    except BaseException:
        remove_partial(path)
        raise
    return total


def _write_all(fd: int, batch: list[memoryview]) -> int:
    total = sum(view.nbytes for view in batch)
    left = batch
    while left:
        written = os.writev(fd, left) if hasattr(os, "writev") else os.write(fd, left[0])
        while left and written >= left[0].nbytes:
            written -= left[0].nbytes
            left = left[1:]
        if left and written:
            left = [left[0][written:], *left[1:]]
    return total


def remove_partial(path: str) -> None:
    """Remove `path` + ".partial" where it can be removed."""
    with suppress(OSError):
        os.unlink(path + PARTIAL)


def publish(paths: Sequence[str], durable: bool) -> None:
    """Give `*.partial` files their final names: first all bytes on disk, then the names, then those on disk.

    Many small files are made durable together: a step of 24 files costs one wait, not 24.
    """
    if durable:
        sync_files([path + PARTIAL for path in paths])
    for path in paths:
        os.replace(path + PARTIAL, path)
    if durable:
        for folder in {os.path.dirname(path) for path in paths}:
            sync_path(folder)


def write_file(path: str, data: bytes, durable: bool) -> None:
    """Write one whole file under its name, or leave what was there."""
    write_partial(path, [data])
    try:
        publish([path], durable)
    except BaseException:
        remove_partial(path)
        raise


def read_file(path: str | os.PathLike[str]) -> bytes:
    """Return a file's bytes.

    Raises:
        StoreError: If the path is a pipe, a device or a folder: reading it might never end.
        OSError: If it cannot be read.
    """
    fd = os.open(path, os.O_RDONLY | _NONBLOCK | _BINARY)
    try:
        check_regular(path, os.fstat(fd))
    except BaseException:
        os.close(fd)
        raise
    with open(fd, "rb", buffering=0) as file:
        return file.read()


def read_if_there(path: str | os.PathLike[str]) -> bytes | None:
    """Return a file's bytes, None where there is no such file; else as `read_file`."""
    try:
        return read_file(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def sizes(folder: str) -> dict[str, int]:
    """Return the sizes of what lies in a folder, by name; nothing where there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
    except (FileNotFoundError, NotADirectoryError):
        return {}


def check_regular(path: str | os.PathLike[str], status: os.stat_result) -> None:
    """Raise StoreError unless a path is a plain file."""
    if not stat.S_ISREG(status.st_mode):
        raise StoreError(f"{os.fspath(path)} is no plain file, so it is not read; copy the run again, whole")


def sync_files(paths: Sequence[str]) -> None:
    """Return when the bytes of all these files, which lie on one file system, are on disk."""
    if len(paths) >= _SYNCFS_FROM and _syncfs(paths[0]):
        return
    for path in paths:
        sync_path(path)


def sync_path(path: str) -> None:
    """Return when this file's bytes, or this folder's names, are on disk."""
    if os.name == "nt":
        if os.path.isdir(path):
            return  # Windows opens no folders, and keeps their names in its journal
        flags = os.O_RDWR | _BINARY  # it flushes only what is open for writing
    else:
        flags = os.O_RDONLY
    fd = os.open(path, flags)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _syncfs(path: str) -> bool:
    # Linux only, and not in `os`. It also waits for what others have written on this file system; but we wait
    # in a background thread, and for 24 files it costs a tenth of the CPU time of 24 fsyncs.
    call = _syncfs_call()
    if call is None:
        return False
    fd = os.open(path, os.O_RDONLY)
    try:
        if call(fd) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), path)
    finally:
        os.close(fd)
    return True


@cache
def _syncfs_call() -> Any:
    return getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None) if os.name == "posix" else None
