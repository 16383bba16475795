"""A placed function on one run: what it selects there. The engine looks it up at every step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from dit_lens.errors import PlanError
from dit_lens.plan.plan import Layout, Placed


@dataclass(frozen=True, eq=False)  # two equal edits are two edits
class Binding:
    """A record or an edit, its place resolved on a run's coordinates.

    Attributes:
        placed: the function and its place.
        is_edit: whether it replaces the value; a record only reads it.
        steps: selected steps, by number and by noise level.
        branches: selected guidance branches; empty outside the blocks.
        layers: selected layers; empty outside the blocks.
        experts: selected DiTs.
    """

    placed: Placed
    is_edit: bool
    steps: frozenset[int]
    branches: frozenset[str]
    layers: frozenset[int]
    experts: frozenset[str]

    @classmethod
    def of(cls, placed: Placed, is_edit: bool, layout: Layout, sigmas: Sequence[float]) -> Binding:
        """Resolve a place.

        Raises:
            PlanError: no step that it selects has a noise level in its range.
        """
        low, high = placed.place.sigma or (-inf, inf)
        steps = frozenset(s for s in placed.steps(layout) if low <= sigmas[s] <= high)
        if not steps:
            raise PlanError(f"{placed}: no selected step has its sigma there; they are {list(sigmas)}.")
        inside = not placed.on_latents
        branches = placed.branches(layout) if inside else ()
        layers = placed.layers(layout) if inside else ()
        experts = placed.place.expert or layout.experts
        return cls(placed, is_edit, steps, frozenset(branches), frozenset(layers), frozenset(experts))

    @property
    def over_seeds(self) -> bool:
        """Whether the edit sees the rows of several seeds together."""
        return bool(getattr(self.placed.function, "over_seeds", False))

    @property
    def places(self) -> list[tuple[str | None, int | None]]:
        """The (branch, layer) at which the function fires in a selected step; (None, None) outside the blocks."""
        if self.placed.on_latents:
            return [(None, None)]
        return [(branch, layer) for branch in self.branches for layer in self.layers]

    def selects(self, step: int, expert: str) -> bool:
        """Say whether a step that an expert serves is selected."""
        return step in self.steps and expert in self.experts
