"""A batch in the place of the pipeline's loop, as functions of the user's see it.

An edit, a record or a hook may read its pipeline: the noise levels of its scheduler, where that stands, what guidance the call
was given. In a run the pipeline's own loop has set these. A batch runs without that loop, so its scheduler's state is put into
the pipeline's scheduler while it takes a step. What the pipeline itself keeps of its call has no such stand-in, and is refused
where a function reads it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from dit_lens.errors import PlanError
from dit_lens.plan.attributes import UNTOLD
from dit_lens.plan.classes import written_by_runs
from dit_lens.plan.content import Walk
from dit_lens.plan.origin import OF_MODELS

OF_NO_RUN = frozenset({"_all_hooks", "_offload_device", "_offload_gpu_id"}) | UNTOLD
"""Attributes that methods of pipelines write, and no call of one: where its models rest."""


@contextmanager
def scheduler_in_place(
    pipe: Any, scheduler: Any, place: Callable[[Any, int], None], step: int
) -> Iterator[None]:
    """Let the pipeline's scheduler stand where that of a batch does, while the block takes a step.

    It stays the object that it is, for whoever holds it.

    Args:
        pipe: the pipeline.
        scheduler: of the batch, its noise levels set.
        place: (scheduler, step) lets a scheduler that counts its steps stand before one; see `Batching`.
        step: that is taken.
    """
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


@contextmanager
def reads_refused(pipe: Any) -> Iterator[None]:
    """Refuse what the block reads of a pipeline that only a call of the pipeline sets, however it comes to it."""
    kind: Any = type(pipe)
    try:
        object.__setattr__(pipe, "__class__", _watched(kind))
    except TypeError:  # its objects are laid out in a way of their own
        yield
        return
    try:
        yield
    finally:
        object.__setattr__(pipe, "__class__", kind)


@lru_cache(maxsize=64)
def _watched(kind: Any) -> Any:
    """Return a class like a pipeline's whose objects refuse to be read where a run has written."""
    of_runs = written_by_runs(Walk([], of_pipeline=True), kind) - OF_NO_RUN

    def read(pipe: Any, name: str) -> Any:
        if name in of_runs or (name == "__dict__" and of_runs and not _is_read_by_library()):
            what = (
                f"{kind.__name__}.{name.removeprefix('_')}"
                if name in of_runs
                else f"all of a {kind.__name__}"
            )
            raise PlanError(
                f"A record or an edit reads {what}, which a call of the pipeline sets, and a batch makes none: take step, sigma "
                "and timestep from `at`, and what else it needs from a variable of your own; or use lens.run."
            )
        return kind.__getattribute__(pipe, name)

    attributes = {"__getattribute__": read, "__module__": kind.__module__, "__qualname__": kind.__qualname__}
    return type(kind)(kind.__name__, (kind,), attributes)


def _is_read_by_library() -> bool:
    """Say whether the code that reads is a library's: torch looks for a module's parts so."""
    module = str(sys._getframe(2).f_globals.get("__name__", ""))
    return module.partition(".")[0] in {*OF_MODELS, "torch", "dit_lens"}


__all__ = ["reads_refused", "scheduler_in_place"]
