"""Whole files or none: write aside, make durable, rename. Nothing here knows what the bytes mean."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable, Sequence
from typing import Any

PARTIAL = ".partial"
_SYNCFS_FROM = 6  # from this many files on, one syncfs costs less than an fsync each
_BUFFERS_AT_ONCE = 512  # IOV_MAX is 1024


def write_partial(path: str, buffers: Iterable[Any]) -> int:
    """Write C-contiguous buffers, one after another, to `path` + ".partial"; return the number of bytes.

    Buffers are taken as they come, so a generator holds only what it has made.
    """
    total = 0
    fd = os.open(path + PARTIAL, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        batch: list[memoryview] = []
        for buffer in buffers:
            batch.append(memoryview(buffer).cast("B"))
            if len(batch) == _BUFFERS_AT_ONCE or batch[-1].nbytes >= 1 << 20:
                total += _write_all(fd, batch)
                batch = []
        return total + _write_all(fd, batch)
    finally:
        os.close(fd)


def _write_all(fd: int, batch: list[memoryview]) -> int:
    total = sum(view.nbytes for view in batch)
    left = batch
    while left:
        done = os.writev(fd, left)
        while left and done >= left[0].nbytes:
            done -= left[0].nbytes
            left = left[1:]
        if left and done:
            left = [left[0][done:], *left[1:]]
    return total


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
    publish([path], durable)


def sync_files(paths: Sequence[str]) -> None:
    """Return when the bytes of all these files, which lie on one file system, are on disk."""
    if len(paths) >= _SYNCFS_FROM and _syncfs(paths[0]):
        return
    for path in paths:
        sync_path(path)


def sync_path(path: str) -> None:
    """Return when this file's bytes, or this folder's names, are on disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _syncfs(path: str) -> bool:
    # Linux only, and not in `os`. It also waits for what others have written on this file system; but we wait
    # in a background thread, and for 24 files it costs a tenth of the CPU time of 24 fsyncs.
    call = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None) if os.name == "posix" else None
    if call is None:
        return False
    fd = os.open(path, os.O_RDONLY)
    try:
        if call(fd) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), path)
    finally:
        os.close(fd)
    return True
