"""One background thread that does a writer's disk work in order, from a queue bounded in bytes."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from dit_lens.errors import StoreError

_WAKE_AT = 8 << 20  # bytes


class Worker:
    """Does tasks in the order given. After one fails, the rest are dropped and every later call raises.

    Args:
        max_bytes: How much data may wait. A larger task is let in when nothing else waits.
        settle: Work that tasks have put off.
        due: In how many seconds `settle` is to be called; None while nothing is put off.
    """

    def __init__(
        self,
        max_bytes: int,
        settle: Callable[[], None] = lambda: None,
        due: Callable[[], float | None] = lambda: None,
    ) -> None:
        self._max_bytes, self._settle, self._due = max_bytes, settle, due
        self._tasks: deque[tuple[Callable[[], None], int, str]] = deque()
        self._held = 0  # bytes that wait or are being worked on
        self._change = threading.Condition()
        self._thread: threading.Thread | None = None
        self._failure: tuple[str, BaseException] | None = None

    def submit(self, task: Callable[[], None], nbytes: int, label: str, wake: bool = True) -> None:
        """Queue a task that holds `nbytes` of data; wait only while the queue is full.

        Args:
            task: What to do.
            nbytes: Size of the data that it holds.
            label: Its name in an error.
            wake: Whether a sleeping thread is woken for it. Otherwise it waits for the next that wakes, or
                until much waits: a thread woken for every small task takes the interpreter from its caller.

        Raises:
            StoreError: If an earlier task failed; names that task's label.
        """
        with self._change:
            if self._held and self._held + nbytes > self._max_bytes:
                self._change.notify_all()
                self._change.wait_for(
                    lambda: self._failure or not self._held or self._held + nbytes <= self._max_bytes
                )
            self._raise()
            self._tasks.append((task, nbytes, label))
            self._held += nbytes
            if self._thread is None:
                # Not joined at exit: a run left open stays incomplete, and its interpreter can end.
                self._thread = threading.Thread(target=self._loop, name="dit_lens-store", daemon=True)
                self._thread.start()
            if wake or self._held >= _WAKE_AT:
                self._change.notify_all()

    def join(self) -> None:
        """Return when all tasks given so far are done.

        Raises:
            StoreError: If one failed.
        """
        done = threading.Event()
        if self._thread is not None:
            with self._change:
                self._raise()
                self._tasks.append((done.set, 0, "flush"))
                self._change.notify_all()
                self._change.wait_for(lambda: self._failure or done.is_set())
        self._raise()

    def stop(self) -> None:
        """End the thread after the tasks given so far; never raises for a task that failed."""
        with self._change:
            thread, self._thread = self._thread, None
            if thread is not None:
                self._tasks.append((_end, 0, "end"))
                self._change.notify_all()
        if thread is not None:
            thread.join()

    def _raise(self) -> None:
        if self._failure is not None:
            label, error = self._failure
            raise StoreError(
                f"{label}: {type(error).__name__}: {error}. Nothing after it was written; what was committed "
                "before can be read. Mend the cause and open the run again: it goes on from there"
            ) from error

    def _loop(self) -> None:
        while True:
            task, nbytes, label = self._next()
            if task is _end:
                return
            try:
                if self._failure is None:
                    task()
            except BaseException as error:
                if task != self._settle:
                    with suppress(Exception):  # what came before the failure stands
                        self._settle()
                self._failure = (label, error)
            del task  # the data goes before the room for it is given back
            with self._change:
                self._held -= nbytes
                self._change.notify_all()

    def _next(self) -> tuple[Callable[[], None], int, str]:
        left = self._due()
        with self._change:
            if left is not None and (left <= 0 or not self._change.wait_for(lambda: bool(self._tasks), left)):
                return self._settle, 0, "commit"
            self._change.wait_for(lambda: bool(self._tasks))
            return self._tasks.popleft()


def _end() -> None:
    """Stand for the end of the queue."""
