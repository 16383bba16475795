"""Who writes a run in this process, and whether that somebody is still at work with it.

An interrupt may come at any moment, also while a writer is being made or closed, and then nobody is left who would
free the run. So the next one who wants the run asks here: what nobody is at work with is freed for them.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dit_lens.store.journal import Journal
    from dit_lens.store.worker import Worker

_TENURES: list[weakref.ref[Tenure]] = []


class Tenure:
    """One writer's hold on a run.

    Args:
        folder: The run's folder, as an absolute path without links.
        lease: A lock that is held as long as somebody may call the writer. `with lease:` around all of the work
            is C code, so no interrupt can keep it from being released.
        changing: Whether the writer is still being made.

    Attributes:
        changing: Whether a call of the writer is under way. Where it stands although no call is, one was
            interrupted, and nobody knows how far it came.
        journal: The journal that is held, with its lock.
        worker: The thread that frees the run when it ends; None as long as there is none.
    """

    def __init__(self, folder: str, lease: threading.Lock | None = None, changing: bool = True) -> None:
        self.folder, self._lease = folder, lease
        self._owner, self._pid = threading.current_thread(), os.getpid()
        self.changing = changing
        self.journal: Journal | None = None
        self.worker: Worker | None = None
        self._given_up = self._freed = False
        _TENURES.append(weakref.ref(self, _forget))

    @property
    def is_ours(self) -> bool:
        """Whether this process holds the run: one that was forked off only has a copy of what its parent holds."""
        return self._pid == os.getpid()

    @property
    def wanted(self) -> bool:
        """Whether somebody may still call the writer."""
        return not self._given_up and (self._lease is None or self._lease.locked())

    def give_up(self) -> None:
        """Let the run be freed in the background: nobody calls the writer any more."""
        self._given_up = True
        if self.worker is not None:
            self.worker.leave()

    @property
    def over(self) -> bool:
        """Whether nobody is at work with the run, though it was not freed."""
        if self._freed or not self.is_ours:
            return False
        interrupted = self.changing and (
            self._owner is threading.current_thread() or not self._owner.is_alive()
        )
        return interrupted or not self.wanted

    def free(self) -> None:
        """Free the run: when this returns, another writer may have it."""
        self._given_up = True
        if not self.is_ours:
            return
        if self.worker is not None:
            self.worker.stop()
        elif self.journal is not None:
            self.journal.close()
        self._freed = True


def free_leftovers(folder: str, successor: Tenure) -> bool:
    """Free a run from those of this process who no longer work with it; return whether there were any."""
    leftovers = [t for t in tenures() if t is not successor and t.folder == folder and t.over]
    for tenure in leftovers:
        tenure.free()
    return bool(leftovers)


def tenures() -> Iterator[Tenure]:
    """Go through the tenures of this process."""
    for reference in list(_TENURES):
        tenure = reference()
        if tenure is not None:
            yield tenure


def _forget(reference: weakref.ref[Tenure]) -> None:
    if reference in _TENURES:
        _TENURES.remove(reference)
