"""A placed function on one run: what it selects there. `Placed.bind` makes it; the engine looks it up at every step."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dit_lens.plan.plan import Placed


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
        served: (step, expert) at which the function fires, where that expert serves that step.
        places: (branch, layer) at which it fires in such a step; (None, None) outside the blocks.
        heads: selected heads of an attention, in order; empty where the site has none.
        by_head: whether it is told every head on its own, as a coordinate of the place.
        head_count: heads that the site has.
        keys: stream of the tokens that an attention looks at.
        over_seeds: whether it is an edit that sees the rows of several seeds together.
        reads_x0: whether it is an edit that takes x0 of the step before.
    """

    placed: Placed
    is_edit: bool
    steps: frozenset[int]
    branches: frozenset[str]
    layers: frozenset[int]
    experts: frozenset[str]
    served: frozenset[tuple[int, str]]
    places: tuple[tuple[str | None, int | None], ...]
    over_seeds: bool
    reads_x0: bool
    heads: tuple[int, ...] = ()
    by_head: bool = False
    head_count: int = 0
    keys: str = "video"

    def never_fired(self, experts: Sequence[str], branches: Sequence[Collection[str]] | None = None) -> str:
        """Say in a sentence that the function fires in no step of a run; "" where it does.

        Args:
            experts: the DiT that serves each step.
            branches: the guidance branches that run in each step. Default: all.
        """
        steps = [step for step, expert in enumerate(experts) if (step, expert) in self.served]
        if not steps:
            return f"{self.placed} never fired in this run: no step had its sigma and expert together."
        if (
            branches is not None
            and self.branches
            and all(self.branches.isdisjoint(branches[n]) for n in steps)
        ):
            return f"{self.placed} never fired in this run: its branch ran in none of its steps."
        return ""
