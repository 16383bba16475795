"""Rows: trajectories in the engine, each with its plan and with where its records go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dit_lens.plan.binding import Binding

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
