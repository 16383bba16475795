"""One background thread that does a writer's disk work in order, and ends at the first thing that fails.

The caller's side uses only primitives that an interrupt cannot leave half done: `queue.SimpleQueue` and plain
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
_ASK_AGAIN = 0.2  # seconds after which an idle thread asks whether it is still wanted

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
        wanted: Whether anybody may still call; an idle thread asks several times a second.
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
        self._waiting: deque[Task] = deque()  # given, and not handed over yet
        self._waiting_bytes = 0
        self._inbox: queue.SimpleQueue[tuple[deque[Task], bool]] = (
            queue.SimpleQueue()
        )  # tasks; whether the last
        self._given_bytes = self._given = 0  # written by the caller
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

    def submit(self, task: Callable[[], None], nbytes: int, label: str, wake: bool = True) -> None:
        """Queue a task that holds `nbytes` of data; wait only while the queue is full.

        Args:
            task: What to do.
            nbytes: Size of the data that it holds.
            label: Its name in an error.
            wake: Whether the thread gets the task at once. Otherwise the task waits for the next one that
                wakes, or until much waits: a thread woken for every small task takes the interpreter from its
                caller.

        Raises:
            StoreError: If an earlier task failed; names that task's label.
        """
        if self._held and self._held + nbytes > self._max_bytes:
            self._hand_over()
            self._wait(lambda: not self._held or self._held + nbytes <= self._max_bytes)
        self.check()
        self._waiting.append((task, nbytes, label))
        self._waiting_bytes += nbytes
        self._given_bytes += nbytes
        self._given += 1
        if wake or self._waiting_bytes >= _WAKE_AT:
            self._hand_over()

    def join(self) -> None:
        """Return when all tasks given so far are done.

        Raises:
            StoreError: If one failed.
        """
        self._hand_over()
        self._wait(lambda: self._done >= self._given)
        self.check()
        if self._done < self._given:
            raise StoreError("the thread that writes has ended before its work was done; open the run again")

    def stop(self) -> None:
        """End the thread after the tasks given so far; never raises for a task that failed."""
        self._hand_over(last=True)
        self._wait(lambda: False)
        if not self._freed:  # the thread was killed before it came to it
            self._end()
            self._freed = True

    def leave(self) -> None:
        """Let the thread end after the tasks that it has, without waiting for it."""
        self._inbox.put((deque(), True))

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

    def _hand_over(self, last: bool = False) -> None:
        tasks, self._waiting, self._waiting_bytes = self._waiting, deque(), 0
        self._inbox.put((tasks, last))

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
            with suppress(queue.Empty):
                while True:
                    self._inbox.get_nowait()  # the data of what is not done goes now
        finally:
            self._ended = True
            self._ring()

    def _work(self) -> tuple[str, BaseException] | None:
        """Do tasks until the last one or the first failure; return the failure, with the label of what failed."""
        label = "commit"
        try:
            last = False
            while not last:
                tasks, last = self._next()
                while tasks:
                    task, nbytes, label = tasks.popleft()
                    task()
                    del task  # the data goes before the room for it is given back
                    self._done_bytes += nbytes
                    self._done += 1
                    self._ring()
                label = "commit"
            self._settle()
        except BaseException as error:
            with suppress(BaseException):
                self._settle()  # what came before the failure stands; it does nothing where it is what failed
            return label, error
        return None

    def _next(self) -> tuple[deque[Task], bool]:
        """Return the next tasks, and whether they are the last; settle where that is due."""
        while True:
            left = self._due()
            if left is not None and left <= 0:
                self._settle()
                left = None
            try:
                return self._inbox.get(timeout=_ASK_AGAIN if left is None else min(left, _ASK_AGAIN))
            except queue.Empty:
                if not self._wanted():
                    return deque(), True

    def _ring(self) -> None:
        if self._bell.locked():
            self._bell.release()
