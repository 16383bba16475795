"""A batch in the place of the pipeline's loop, as functions of the user's see it.

An edit, a record or a hook may read its pipeline: the noise levels of its scheduler, where that stands, what guidance the call
was given. In a run the pipeline's own loop has set these. A batch runs without that loop, so its scheduler's state is put into
the pipeline's scheduler while it takes a step. What the pipeline itself keeps of its call has no such stand-in, and is refused
where a function reads it.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

from dit_lens.errors import PlanError
from dit_lens.plan.attributes import UNTOLD
from dit_lens.plan.classes import written_by_runs
from dit_lens.plan.content import Walk
from dit_lens.plan.origin import OF_MODELS

OF_NO_RUN = frozenset({"_all_hooks", "_offload_device", "_offload_gpu_id"}) | UNTOLD
"""Attributes that methods of pipelines write, and no call of one: where its models rest."""


_LOCK = threading.Lock()
_TURNS: WeakKeyDictionary[Any, threading.RLock] = WeakKeyDictionary()
"""By scheduler: held while a batch takes a step with it, for pipelines may share one."""


@contextmanager
def scheduler_in_place(
    pipe: Any, scheduler: Any, place: Callable[[Any, int], None], step: int
) -> Iterator[None]:
    """Let the pipeline's scheduler stand where that of a batch does, while the block takes a step.

    It stays the object that it is, for whoever holds it. Another thread that runs a pipeline with the same scheduler meanwhile
    sees this one's state, as two threads that share a scheduler always do; two batches take their steps in turn.

    Args:
        pipe: the pipeline.
        scheduler: of the batch, its noise levels set.
        place: (scheduler, step) lets a scheduler that counts its steps stand before one; see `Batching`.
        step: that is taken.
    """
    with _LOCK:
        turn = _TURNS.setdefault(pipe.scheduler, threading.RLock())
    with turn:
        held = vars(pipe.scheduler)
        before = dict(held)
        try:
            held.clear()
            held.update(vars(scheduler))
            place(pipe.scheduler, step)
            yield
        finally:
            held.clear()
            held.update(before)


_READERS: dict[int, int] = {}
"""Pipelines, by id, whose reading is watched, and the thread that is."""
_WATCHED: dict[Any, int] = {}
"""Classes that are asked for every attribute, and for how many pipelines."""


@contextmanager
def reads_refused(pipe: Any) -> Iterator[None]:
    """Refuse what code of the user's reads of a pipeline that only a call of the pipeline sets, however it comes to it.

    The class of the pipeline is asked for every attribute while the block runs; other pipelines and other threads are not kept
    from anything. A pipeline whose class takes no methods is not watched.
    """
    kind: Any = type(pipe)
    if not _of_runs(kind) or id(pipe) in _READERS or not _watch(kind):
        yield
        return
    _READERS[id(pipe)] = threading.get_ident()
    try:
        yield
    finally:
        del _READERS[id(pipe)]
        with _LOCK:
            _WATCHED[kind] -= 1
            if not _WATCHED[kind]:
                del _WATCHED[kind], kind.__getattribute__


def _watch(kind: Any) -> bool:
    """Let a class be asked for every attribute of its objects; say whether it can be."""
    with _LOCK:
        if kind in _WATCHED:
            _WATCHED[kind] += 1
            return True
        if "__getattribute__" in vars(kind):
            return False
        of_runs, plain = _of_runs(kind), kind.__getattribute__

        def read(holder: Any, name: str) -> Any:
            if (name in of_runs or name == "__dict__") and _READERS.get(id(holder)) == threading.get_ident():
                _refuse_user(kind, name)
            return plain(holder, name)

        try:
            kind.__getattribute__ = read
        except TypeError:
            return False
        _WATCHED[kind] = 1
        return True


def _refuse_user(kind: Any, name: str) -> None:
    """Refuse code of the user's that reads an attribute, by itself or through methods of the pipeline's library.

    All attributes at once, as torch reads them to find a module's parts, count as read by who does it.

    Raises:
        PlanError: it is the user's.
    """
    whole, frame = name == "__dict__", sys._getframe(2)
    while frame is not None:
        if frame.f_globals is globals():  # a property is read through here, too
            frame = frame.f_back  # type: ignore[assignment]
            continue
        top = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if top in ("torch", "dit_lens") or (whole and top in OF_MODELS):
            return
        if top not in OF_MODELS:
            what = "all of it" if whole else name.removeprefix("_")
            raise PlanError(
                f"Code of yours reads {kind.__name__}.{what}, which a call of the pipeline sets, and a batch makes none: "
                "take step, sigma and timestep from `at`, and what else it needs from a variable of your own; or use lens.run."
            )
        frame = frame.f_back  # type: ignore[assignment]


@lru_cache(maxsize=64)
def _of_runs(kind: Any) -> frozenset[str]:
    """Return the attributes of a class of pipelines that a call of one sets."""
    return written_by_runs(Walk([], of_pipeline=True), kind) - OF_NO_RUN


__all__ = ["reads_refused", "scheduler_in_place"]
