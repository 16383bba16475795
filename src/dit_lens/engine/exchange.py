"""How rows of several seeds meet at an edit, where they go through the model one after another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from dit_lens.engine.recorder import same_bits
from dit_lens.engine.rows import Where
from dit_lens.errors import PlanError
from dit_lens.plan.plan import Placed

Meeting = tuple[Placed, Where, str | None, int]
"""Where rows are seen together: an edit over seeds, at a place, on a branch, and which of the meetings there it is."""

T = TypeVar("T")


@dataclass
class Exchange:
    """What the rows of a group hand to one another.

    Attributes:
        rows: how many there are.
        outcomes: by meeting, what the edit came to, [row, frame, y, x, channel], as far as that is known.
        brought: by meeting, what each row brought, by its number in the group.
        row: the row that runs now.
    """

    rows: int
    outcomes: dict[Meeting, Tensor] = field(default_factory=dict)
    brought: dict[Meeting, dict[int, Tensor]] = field(default_factory=dict)
    row: int = 0

    def meet(self, meeting: Meeting, value: Tensor) -> Tensor:
        """Leave the running row's value for the others, and take what is known of the outcome."""
        self.brought.setdefault(meeting, {})[self.row] = value
        return self.outcomes[meeting][self.row] if meeting in self.outcomes else value

    def settle(
        self, forward: Callable[[bool], T], edit: Callable[[Meeting, list[int], Tensor], Tensor], last: bool
    ) -> list[T]:
        """Run the rows one after another until what they hand over at every meeting stands.

        Each round settles at least one more meeting, in the order in which the model comes to them.

        Args:
            forward: runs the row that `row` names. It is told whether the round is the last one, in which
                records are taken.
            edit: (meeting, rows, their values [row, frame, y, x, channel]) to what the edit makes of them.
            last: whether a last round is needed once everything stands, for records.

        Raises:
            PlanError: it never stands: the same rows bring other values every time.
        """
        rounds = 0
        while True:
            results = self._round(forward, last=False)
            outcomes = {meeting: self._outcome(edit, meeting) for meeting in self.brought}
            stands = outcomes.keys() == self.outcomes.keys() and all(
                same_bits(self.outcomes[meeting], value) for meeting, value in outcomes.items()
            )
            self.outcomes, self.brought = outcomes, {}
            if stands:
                return self._round(forward, last=True) if last else results
            rounds += 1
            if rounds > len(outcomes) + 1:
                placed = next(iter(outcomes))[0]
                raise PlanError(
                    f"{placed} sees the rows of several seeds, which run here one after another, and never finds the same values "
                    "twice: an edit before it draws random numbers without a seed (dl.add_noise draws by the place), or the "
                    "model is not deterministic. Let all seeds run together, with a larger at_once."
                )

    def _round(self, forward: Callable[[bool], T], last: bool) -> list[T]:
        results = []
        for row in range(self.rows):
            self.row = row
            results.append(forward(last))
        return results

    def _outcome(self, edit: Callable[[Meeting, list[int], Tensor], Tensor], meeting: Meeting) -> Tensor:
        """Return what the edit makes of the rows that came; the places of other rows stay empty."""
        rows = sorted(self.brought[meeting])
        values = torch.stack([self.brought[meeting][row] for row in rows])
        out = values.new_zeros((self.rows, *values.shape[1:]))
        out[rows] = edit(meeting, rows, values)
        return out
