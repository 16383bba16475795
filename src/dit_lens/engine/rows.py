"""Rows: trajectories in the engine, each with its plan and with where its records go."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dit_lens.errors import PlanError
from dit_lens.plan.binding import Binding
from dit_lens.plan.functions import KEEPS, is_packages_own, kept_by
from dit_lens.plan.plan import Placed

if TYPE_CHECKING:
    from dit_lens.engine.recorder import Recorder

Where = tuple[str, str, int | None]
"""Site, stream and layer. The layer is None outside the blocks."""


@dataclass(frozen=True)
class Moment:
    """One denoising step.

    Attributes:
        step: number, 0 the noisiest.
        sigma: its noise level.
        timestep: what the model is told.
        expert: the DiT that serves it.
        stage: pass of the sampling loop.
    """

    step: int
    sigma: float
    timestep: float
    expert: str
    stage: int = 0


@dataclass(eq=False)
class Row:
    """One trajectory.

    Attributes:
        seed: of its initial noise.
        edits: what replaces its values, in the order in which it does.
        records: what reads its values, after the edits.
        recorders: where its records go. A row may stand for several runs that are still the same.
        sample: its number in a prompt batch.
        group: rows of one number are seen together by edits over seeds.
    """

    seed: int
    edits: Sequence[Binding] = ()
    records: Sequence[Binding] = ()
    recorders: list[Recorder] = field(default_factory=list)
    sample: int = 0
    group: int | None = None

    @property
    def placed(self) -> list[Placed]:
        """What is placed on it."""
        return [binding.placed for binding in (*self.edits, *self.records)]


class Shared:
    """What of the user's is placed on rows that take turns: what one keeps between two calls may come into another row.

    Args:
        placed: on each row.
        least: rows of one function that are several: 1 where each row is called several times a step.

    Attributes:
        functions: of the user's, by id.
        several: ids of those that several rows go through.
        watched: whether there is anything to watch.
    """

    def __init__(self, placed: Iterable[Iterable[Placed]], least: int = 2) -> None:
        rows: dict[int, set[int]] = defaultdict(set)
        self.functions: dict[int, Callable[..., Any]] = {}
        for number, items in enumerate(placed):
            for item in items:
                if not is_packages_own(item.function):
                    rows[id(item.function)].add(number)
                    self.functions[id(item.function)] = item.function
        self.several = {function for function, numbers in rows.items() if len(numbers) >= least}
        self.watched = bool(self.several) or len(set().union(*rows.values())) > 1
        self._states: dict[int, str] = {}

    def look(self) -> None:
        """Take note of what every function keeps now."""
        if self.watched:
            self._states = {key: kept_by(function) for key, function in self.functions.items()}

    def refuse_kept(self, function: Callable[..., Any], before: str) -> None:
        """Refuse a function that has kept something since, where another row may read it.

        Args:
            function: that was called.
            before: `kept_by` of it, before it was.

        Raises:
            PlanError: several rows go through it, or what it kept is seen by a function of another row.
        """
        if kept_by(function) == before:
            return
        if id(function) in self.several:
            raise PlanError(KEEPS)
        states = {key: kept_by(other) for key, other in self.functions.items()}
        if any(state != self._states.get(key, state) for key, state in states.items() if key != id(function)):
            raise PlanError(KEEPS)
        self._states = states
