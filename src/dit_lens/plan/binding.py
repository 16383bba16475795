"""A placed function on one run: what it selects there, and what it writes. Looked up at every visit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dit_lens.errors import PlanError
from dit_lens.plan.places import Spot
from dit_lens.plan.plan import Layout, Placed


@dataclass(frozen=True, eq=False)  # two equal edits are two edits
class Slot:
    """A record or an edit, its place resolved on a run's coordinates.

    Attributes:
        placed: the function and its place.
        is_edit: whether it replaces the value; a record only reads it.
        steps: selected steps, by number and by noise level.
        branches: selected guidance branches.
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
    def of(cls, placed: Placed, is_edit: bool, layout: Layout, sigmas: Sequence[float]) -> Slot:
        """Resolve a place.

        Raises:
            PlanError: no step that it selects has a noise level in its range.
        """
        low, high = placed.place.sigma or (0.0, 1.0)
        steps = frozenset(s for s in placed.steps(layout) if low <= sigmas[s] <= high)
        if not steps:
            raise PlanError(f"{placed}: no selected step has its sigma there; they are {list(sigmas)}.")
        layers = () if placed.on_latents else placed.layers(layout)
        experts = placed.place.expert or layout.experts
        return cls(
            placed, is_edit, steps, frozenset(placed.branches(layout)), frozenset(layers), frozenset(experts)
        )

    def hangs(self, site: str, stream: str, layer: int, expert: str) -> bool:
        """Say whether the function hangs on a site of a block."""
        placed = self.placed
        here = placed.site == site and placed.stream == stream
        return here and layer in self.layers and expert in self.experts

    def selects(self, spot: Spot) -> bool:
        """Say whether a place is selected; its site and layer are those where the function hangs."""
        return (
            spot.step in self.steps
            and (spot.branch is None or spot.branch in self.branches)
            and spot.expert in self.experts
        )
