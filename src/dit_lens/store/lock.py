"""One writer per run: the kernel's lock on the journal, or a lock file where the file system has none.

The kernel's lock (`flock`) goes with its process, however that ends. Some network mounts refuse it, and Windows
has none. There a writer leaves a file of its own beside the journal, which says whose it is; one whose process is
dead on this host counts for nothing. All writers of one run have to use one kind.
"""

from __future__ import annotations

import errno
import json
import os
import random
import socket
import time
import uuid
from collections.abc import Collection
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

_REFUSED = {errno.ENOLCK, errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP}
"""What a file system without locks says."""
_MARK = ".lock-"
_TRIES = 5
_LONGEST_PAUSE = 0.03  # seconds


class LockedError(Exception):
    """Somebody else holds the lock; `holder` says who, where that is known."""

    def __init__(self, holder: dict[str, Any] | None = None) -> None:
        super().__init__(holder)
        self.holder = holder


class FileLock:
    """The lock of one file; not taken when made.

    Args:
        path: The file.
        fd: Its descriptor, open for writing.
    """

    def __init__(self, path: str, fd: int) -> None:
        self._path, self._fd = path, fd
        self._flocked = False
        self.file = f"{path}{_MARK}{uuid.uuid4().hex}"
        """The lock file, where one is needed."""

    def acquire(self, held_here: Collection[str]) -> None:
        """Take the lock, without waiting for it.

        Args:
            held_here: The lock files that this process holds; another one with its number is a leftover.

        Raises:
            LockedError: If somebody holds it.
            OSError: If the file system refuses the lock file too.
        """
        if _flock(self._fd, lock=True):
            self._flocked = True
            return
        for attempt in range(_TRIES):
            self._write()
            # Both of two that begin at once see one another here, whichever came first; so never both go on.
            others = [holder for holder in _holders(self._path) if self._is_alive(holder, held_here)]
            if not others:
                return
            self._remove(self.file)
            if attempt + 1 < _TRIES:
                time.sleep(random.uniform(0, _LONGEST_PAUSE))
        raise LockedError(others[0])

    def release(self) -> None:
        """Let go of the lock; also of one that was never taken."""
        if self._flocked:
            # Said, not left to `close`: a process that was forked off has the descriptor too, and would hold it.
            _flock(self._fd, lock=False)
            self._flocked = False
        self._remove(self.file)

    def _write(self) -> None:
        whole = self.file + ".partial"
        fd = os.open(whole, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            os.write(fd, json.dumps(_this_process()).encode())
        finally:
            os.close(fd)
        os.replace(whole, self.file)

    def _is_alive(self, holder: dict[str, Any], held_here: Collection[str]) -> bool:
        file = holder["file"]
        if file == self.file:
            return False
        if holder.get("host") != socket.gethostname():
            return True  # nobody can tell from here
        pid = holder.get("pid")
        alive = file in held_here if pid == os.getpid() else _process_lives(pid, holder.get("started"))
        if not alive:
            self._remove(file)
        return alive

    @staticmethod
    def _remove(file: str) -> None:
        with suppress(OSError):
            os.unlink(file)


def _flock(fd: int, lock: bool) -> bool:
    """Take or release the kernel's lock; return whether there is one here.

    Raises:
        LockedError: If somebody holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return False
    try:
        fcntl.flock(fd, (fcntl.LOCK_EX | fcntl.LOCK_NB) if lock else fcntl.LOCK_UN)
    except BlockingIOError as error:
        raise LockedError from error
    except OSError as error:
        if error.errno in _REFUSED:
            return False
        raise
    return True


def _holders(path: str) -> list[dict[str, Any]]:
    """Read the lock files beside a file, one without sense included: it counts as somebody's."""
    folder, name = os.path.split(path)
    holders = []
    for other in sorted(os.listdir(folder)):
        if not other.startswith(name + _MARK) or other.endswith(".partial"):
            continue
        file = os.path.join(folder, other)
        try:
            with open(file, "rb") as opened:
                holder = json.loads(opened.read())
        except FileNotFoundError:
            continue  # let go of just now
        except ValueError:
            holder = None
        holders.append({**holder, "file": file} if isinstance(holder, dict) else {"file": file})
    return holders


def _this_process() -> dict[str, Any]:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    pid = os.getpid()
    return {"pid": pid, "host": socket.gethostname(), "time": now, "started": started(pid)}


def _process_lives(pid: Any, since: Any) -> bool:
    """Return whether a process of this host lives, and is the one that began then: numbers are used again."""
    if not isinstance(pid, int) or pid <= 0 or not process_lives(pid):
        return False
    return since is None or started(pid) in (None, since)


def process_lives(pid: int) -> bool:
    """Return whether a process of this host has a number, and is not dead and waiting for its parent to see it."""
    if os.name == "nt":
        import ctypes

        handle = ctypes.windll.kernel32.OpenProcess(0x1000, False, pid)  # type: ignore[attr-defined]
        if handle:
            ctypes.windll.kernel32.CloseHandle(handle)  # type: ignore[attr-defined]
        return bool(handle)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return _stat(pid)[:1] != ["Z"]


def started(pid: int) -> str | None:
    """Return when a process began, in the kernel's ticks; None where that is not known (no Linux)."""
    fields = _stat(pid)
    return fields[19] if len(fields) > 19 else None


def _stat(pid: int) -> list[str]:
    """Return what Linux says of a process, from its state on; nothing elsewhere."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rsplit(b")", 1)[1].decode().split()
    except (OSError, IndexError):
        return []
