"""Folders of runs for which no store was asked: gone with the run, and with the process however it ends.

A small run is put off: its folder is filled when somebody reads it (`draft.py`).

The folder of one run goes when nobody holds the run or one of its arrays. All folders of a process lie in one, which
goes at exit and at SIGTERM; what a killed process left is removed by the next one.
"""

from __future__ import annotations

import atexit
import gc
import multiprocessing
import os
import shutil
import signal
import socket
import tempfile
import threading
import uuid
import warnings
import weakref
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

from dit_lens.errors import StoreError
from dit_lens.store.lock import process_lives

_PREFIX = "dit_lens_"
_COLLECT_FROM = 8  # from this many folders on, some may only wait for the garbage collector
_MOST_BYTES = 64 << 20  # of all runs together that are put off; the oldest are written then


class _Parent:
    """The folder of this process that holds all others."""

    def __init__(self) -> None:
        self.path: str | None = None
        self.pid = 0
        self.scratches: weakref.WeakValueDictionary[int, Scratch] = weakref.WeakValueDictionary()  # in order
        self.numbers = count()
        self.collect_at = _COLLECT_FROM

    def get(self) -> str:
        """Return the folder; make it first where this process has none."""
        if self.path is None or self.pid != os.getpid() or not os.path.isdir(self.path):
            _remove_leftovers()
            self.pid = os.getpid()  # a process that was forked off has its own
            self.path = tempfile.mkdtemp(prefix=f"{_PREFIX}{_host()}_{self.pid}_")
            atexit.register(self.remove)
            _at_sigterm(self.remove)
        return self.path

    def remove(self) -> None:
        """Remove the folder, with all that is in it."""
        if self.path is not None and self.pid == os.getpid():
            shutil.rmtree(self.path, ignore_errors=True)

    def collect(self) -> None:
        """Let those folders go that only cycles hold, before there are many."""
        if len(self.scratches) >= self.collect_at:
            gc.collect()
            self.collect_at = max(_COLLECT_FROM, 2 * len(self.scratches))

    def bound(self, most_bytes: int) -> None:
        """Write the oldest of what was put off, until it takes no more memory than this."""
        scratches = [reference() for reference in self.scratches.valuerefs()]
        waiting = [scratch for scratch in scratches if scratch is not None and scratch.nbytes]
        excess = sum(s.nbytes for s in waiting) - most_bytes
        for scratch in waiting:
            if excess <= 0:
                break
            excess -= scratch.nbytes
            with suppress(StoreError, OSError):  # whoever reads the run is told; it stays in memory
                scratch.settle()


_PARENT = _Parent()
if hasattr(os, "register_at_fork"):  # two processes would fill one folder
    os.register_at_fork(before=lambda: _PARENT.bound(0))


class Scratch:
    """One temporary folder; it goes with the last reference to this object.

    Attributes:
        path: The folder.
        nbytes: Size of what was put off.
    """

    def __init__(self) -> None:
        _PARENT.collect()
        self.path = Path(_PARENT.get()) / uuid.uuid4().hex[:12]
        self.path.mkdir()
        self._finalizer = weakref.finalize(self, _remove, str(self.path), os.getpid())
        self._start()
        _PARENT.scratches[next(_PARENT.numbers)] = self

    def _start(self) -> None:
        self._lock, self.nbytes = threading.RLock(), 0
        self._writes: list[Callable[[], None]] = []  # that were put off

    def put_off(self, write: Callable[[], None], nbytes: int) -> None:
        """Leave it to the first reader to fill the folder.

        Args:
            write: Fills it.
            nbytes: Size of the data that waits for it.
        """
        self._writes.append(write)
        self.nbytes += nbytes
        _PARENT.bound(_MOST_BYTES)

    def settle(self) -> None:
        """Fill the folder, where that was put off.

        Raises:
            StoreError: It cannot be written. What was put off is kept, and can be asked for again.
        """
        with self._lock:
            while self._writes:
                self._writes[0]()
                del self._writes[0]
            self.nbytes = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> Scratch:
        return self  # the folder is one, and stays as long as anybody holds it

    def check_leaving(self) -> None:
        """Say what becomes of a run that is pickled: its folder is this process's.

        Raises:
            StoreError: This process is a worker, whose folder is gone when the other process reads it.
        """
        message = f"{self.path} is a run in no store, in a temporary folder of this process, and gone with it: give store="
        if multiprocessing.parent_process() is not None:
            raise StoreError(message)
        warnings.warn(message, stacklevel=2)

    def __getstate__(self) -> dict[str, Any]:
        self.check_leaving()
        self.settle()
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.path = state["path"]  # of another process, or another copy, which removes it
        self._start()

    def remove(self) -> None:
        """Remove the folder now."""
        self._finalizer()


def _remove(path: str, pid: int) -> None:
    if pid == os.getpid():
        try:
            shutil.rmtree(path, ignore_errors=True)
        finally:  # once more, where an interrupt cut it short
            shutil.rmtree(path, ignore_errors=True)


def _host() -> str:
    return "".join(c if c.isalnum() else "-" for c in socket.gethostname())[:40]


def _remove_leftovers() -> None:
    """Remove what processes of this host left that were killed."""
    parent = tempfile.gettempdir()
    start = f"{_PREFIX}{_host()}_"
    for name in os.listdir(parent):
        pid = name.removeprefix(start).partition("_")[0]
        if name.startswith(start) and pid.isdigit() and not process_lives(int(pid)):
            shutil.rmtree(os.path.join(parent, name), ignore_errors=True)


def _at_sigterm(work: Any) -> None:
    """Do something before SIGTERM ends this process, where nobody else handles that signal."""
    if threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        return

    def end(number: int, frame: Any) -> None:
        work()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    signal.signal(signal.SIGTERM, end)
