"""One background thread that does a writer's disk work in order, and ends at the first thing that fails.

The thread looks for tasks by itself, a few times a second, and is woken only where the caller waits or much data does.
A thread woken for every small task takes the interpreter from its caller, and does alone what many tasks need once.

The caller's side uses only primitives that an interrupt cannot leave half done: `deque`, `queue.SimpleQueue` and plain
locks, which are C code. Every number is written by one side alone.
"""

from __future__ import annotations

import _thread
import os
import queue
import threading
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from dit_lens.errors import StoreError

_WAKE_AT = 8 << 20  # bytes
_LOOK_AGAIN = 0.05  # seconds after which the caller looks whether the thread is still alive
_PATIENCE = 0.2  # seconds for which a task may wait; as often the thread asks whether it is still wanted

Task = tuple[Callable[[], None], int, str]
"""What to do, the bytes of data that it holds, and its name in an error."""


class Worker:
    """Does tasks in the order given. After one fails, the rest are dropped and every later call raises.

    The thread ends in one of three ways: `stop` was called, nobody wants it any more, or something failed. Each
    of them goes through `end`, once, in the thread. Every wait of the caller ends with the thread.

    Args:
        max_bytes: How much data may wait. A larger task is let in when nothing else waits.
        settle: Work that tasks have put off. Called once more when something has failed, so it has to know whether
            that was itself.
        due: In how many seconds `settle` is to be called; None while nothing is put off.
        end: What frees everything that the tasks use; the thread's last act.
        wanted: Whether anybody may still call; an idle thread asks a few times a second.
    """

    def __init__(
        self,
        max_bytes: int,
        settle: Callable[[], None] = lambda: None,
        due: Callable[[], float | None] = lambda: None,
        end: Callable[[], None] = lambda: None,
        wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        self._max_bytes, self._settle, self._due, self._end = max_bytes, settle, due, end
        self._wanted = wanted
        self._tasks: deque[Task] = deque()  # given, and not begun yet
        self._wakes: queue.SimpleQueue[bool] = queue.SimpleQueue()  # whether no task comes after those given
        self._given_bytes = self._given = 0  # written by the caller
        self._woken_at = 0  # bytes that had been given when the thread was last woken; written by the caller
        self._done_bytes = self._done = 0  # written by the thread
        self._bell = threading.Lock()  # the thread releases it after every task, for a caller that waits
        self._bell.acquire()
        self._failure: tuple[str, BaseException] | None = None
        self._ended = self._freed = False
        self._pid = os.getpid()
        # Not `threading.Thread`: its `start` and `join` hold locks that an interrupt keeps them from letting go. Nobody
        # waits for the thread at exit: a run left open stays incomplete, and its interpreter can end.
        body = partial(self._loop)  # only the thread holds it, and no traceback: it goes with the thread
        self._life = weakref.ref(body)
        _thread.start_new_thread(body, ())

    def submit(self, task: Callable[[], None], nbytes: int, label: str) -> None:
        """Queue a task that holds `nbytes` of data; wait only while the queue is full.

        The task begins within a fraction of a second, or at once where much data waits.

        Args:
            task: What to do.
            nbytes: Size of the data that it holds.
            label: Its name in an error.

        Raises:
            StoreError: If an earlier task failed; names that task's label.
        """
        if self._held and self._held + nbytes > self._max_bytes:
            self._wake()
            self._wait(lambda: not self._held or self._held + nbytes <= self._max_bytes)
        self.check()
        self._tasks.append((task, nbytes, label))
        self._given_bytes += nbytes
        self._given += 1
        if self._given_bytes - max(self._woken_at, self._done_bytes) >= _WAKE_AT:
            self._wake()

    def join(self) -> None:
        """Return when all tasks given so far are done.

        Raises:
            StoreError: If one failed.
        """
        self._wake()
        self._wait(lambda: self._done >= self._given)
        self.check()
        if self._done < self._given:
            raise StoreError("the thread that writes has ended before its work was done; open the run again")

    def stop(self) -> None:
        """End the thread after the tasks given so far; never raises for a task that failed."""
        if os.getpid() != self._pid:
            return  # the run is the parent's, which goes on with it
        self._wake(last=True)
        self._wait(lambda: False)
        if not self._freed:  # the thread was killed before it came to it
            self._end()
            self._freed = True

    def leave(self) -> None:
        """Let the thread end after the tasks that it has, without waiting for it."""
        self._wakes.put(True)

    def check(self) -> None:
        """Raise StoreError if a task failed."""
        if self._failure is not None:
            label, error = self._failure
            raise StoreError(
                f"{label}: {type(error).__name__}: {error}. Nothing after it was written; what was committed "
                "before can be read. Mend the cause and open the run again: it goes on from there"
            ) from error

    # ---- the caller's side

    @property
    def _held(self) -> int:
        """Bytes that wait or are being worked on."""
        return self._given_bytes - self._done_bytes

    @property
    def _runs(self) -> bool:
        """Whether the thread has not ended, in whatever way; a process that was forked off has none."""
        return not self._ended and self._life() is not None and os.getpid() == self._pid

    def _wake(self, last: bool = False) -> None:
        self._woken_at = self._given_bytes
        self._wakes.put(last)

    def _wait(self, ready: Callable[[], bool]) -> None:
        """Return when `ready` says so, or when the thread has ended: then nothing is left to wait for."""
        while not ready() and self._runs:
            self._bell.acquire(timeout=_LOOK_AGAIN)

    # ---- the thread's side

    def _loop(self) -> None:
        try:
            failure = self._work()
            with suppress(BaseException):  # the run is freed, whatever the disk says now
                self._end()
                self._freed = True
            self._failure = failure  # told only now: who hears of it can open the run again
            self._tasks.clear()  # the data of what is not done goes now
        finally:
            self._ended = True
            self._ring()

    def _work(self) -> tuple[str, BaseException] | None:
        """Do tasks until the last one or the first failure; return the failure, with the label of what failed."""
        label = "commit"
        try:
            last = False
            while not last:
                last = self._await_tasks()
                while self._tasks:
                    task, nbytes, label = self._tasks.popleft()
                    task()
                    del task  # the data goes before the room for it is given back
                    self._done_bytes += nbytes
                    self._done += 1
                    self._ring()
                    label = "commit"
                    self._settle_if_due()  # also while tasks keep coming
            self._settle()
        except BaseException as error:
            with suppress(BaseException):
                self._settle()  # what came before the failure stands; it does nothing where it is what failed
            return label, error
        return None

    def _await_tasks(self) -> bool:
        """Wait until tasks are to be done; return whether none comes after those given."""
        left = self._settle_if_due()
        try:
            return self._wakes.get(timeout=_PATIENCE if left is None else min(left, _PATIENCE))
        except queue.Empty:
            return not self._wanted()

    def _settle_if_due(self) -> float | None:
        """Settle where that is due; return in how many seconds it will be, None where nothing is put off."""
        left = self._due()
        if left is None or left > 0:
            return left
        self._settle()
        return None

    def _ring(self) -> None:
        if self._bell.locked():
            self._bell.release()
