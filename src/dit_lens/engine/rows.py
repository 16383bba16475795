"""Rows: trajectories in the engine, each with its plan and with where its records go."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dit_lens.plan.binding import Binding
from dit_lens.plan.functions import is_packages_own
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


@dataclass
class Shared:
    """Functions of the user's that several rows go through, a step of one before the next step of another.

    What such a function keeps between two calls, be it for a moment, comes from one row into another.

    Attributes:
        functions: by id.
        keeps_nothing: (function, where, branch, step) at which one is known to keep nothing.
    """

    functions: set[int]
    keeps_nothing: set[tuple[int, Where, str | None, int]] = field(default_factory=set)

    @classmethod
    def of(cls, placed: Iterable[Iterable[Placed]], least: int = 2) -> Shared:
        """Return the functions that are placed on several rows.

        Args:
            placed: on each row.
            least: rows that are several: 1 where each row is called several times a step.
        """
        rows: dict[int, set[int]] = defaultdict(set)
        for number, items in enumerate(placed):
            for item in items:
                if not is_packages_own(item.function):
                    rows[id(item.function)].add(number)
        return cls({function for function, numbers in rows.items() if len(numbers) >= least})
