"""How far edits move a run, and what they do where they have moved it equally."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import xarray as xr

from dit_lens import analysis
from dit_lens.analysis.at_amount import Read
from dit_lens.engine.sweep import Now
from dit_lens.experiments.outcomes import BOUNDS
from dit_lens.families.latents import apart

READS: tuple[Read, ...] = ("line", "before", "after")
LEFT_OPEN = "left open between intervals"
"""What a summary calls the estimates that are possible between the two intervals around a level of movement."""


class Movement:
    """How far each arm has moved the video latents of a pair right after its last edited step: RMS distance to the clean run's.

    Hand `look` to `run_arms`.

    Args:
        last: the last edited step of each arm.
        pairs: how many pairs there are.
        given: latent frames at the beginning that are given, and are not counted.

    Attributes:
        values: [arm, pair]; 0 where a pair was not edited.
        sizes: RMS of the clean run's latents there, [arm, pair]; 0 where a pair was not edited.
    """

    def __init__(self, last: Sequence[int], pairs: int, given: int = 0) -> None:
        self.last, self.given = list(last), given
        self.values, self.sizes = np.zeros((2, len(last), pairs))

    def look(self, now: Now) -> None:
        """Compare the edited rows of a forward with their clean ones."""
        if now.step not in self.last:
            return
        edited, clean = (
            apart(x.latents)["video"][:, :, self.given :].float() for x in (now.edited, now.clean)
        )
        for row, (arm, pair) in enumerate(now.rows):
            if now.step == self.last[arm]:
                self.values[arm, pair] = float((edited[row] - clean[pair]).square().mean().sqrt())
                self.sizes[arm, pair] = float(clean[pair].square().mean().sqrt())


def at_equal_movement(
    first: xr.Dataset, second: xr.Dataset, names: Sequence[str], along: str = "interval"
) -> dict[str, Any]:
    """Compare two edits where both have moved a sample's latents equally: as far as both come.

    The level is another one in each sample, and the same for both edits. Between two intervals the estimate lies on the line
    (`analysis.at_amount`), which a curved response does not: two edits of one response differ on it. So the interval of a
    difference holds all that the outcomes of the two intervals around the level leave open, for an outcome that only rises, or
    only falls, with the movement. A sample is left out where one edit moves it farther in its first interval than the other does
    in any.

    Args:
        first: the outcomes and `movement`, [sample, along], in intervals of growing length; `sigma` on `along`, the noise level
            of the last edited step.
        second: the edit that it is compared with, likewise.
        names: of the outcomes.
        along: the dimension of intervals.

    Returns:
        How many samples are compared, at which mean movement and mean noise levels, and the first minus the second for each
        outcome: the estimate, its interval, and the range of estimates that the intervals of steps leave open; with fewer than 2
        samples why there is no comparison.
    """
    edits = (first, second)
    level = xr.concat([edit.movement.max(along) for edit in edits], "edit").min("edit")
    both = [_read(edit, "movement", level, along).notnull().values for edit in edits]
    known = np.flatnonzero(both[0] & both[1])
    if len(known) < 2:
        ends = [[float(edit.movement.isel({along: at}).mean()) for at in (0, -1)] for edit in edits]
        spans = " and ".join(f"{low:.3g} to {high:.3g}" for low, high in ends)
        return {
            "samples": len(known),
            "not compared": f"from their first interval to their last they move the latents by {spans}: give other --until",
        }
    level = level.isel(sample=known)
    pair = first.isel(sample=known), second.isel(sample=known)
    return {
        "samples": len(known),
        "movement": float(level.mean()),
        "noise levels": [float(_read(edit, "sigma", level, along).mean()) for edit in pair],
        **{name: _difference(*pair, name, level, along) for name in names},
    }


def _difference(
    first: xr.Dataset, second: xr.Dataset, name: str, level: xr.DataArray, along: str
) -> dict[str, Any]:
    """Return an outcome of one edit minus that of another at a level of movement, with all that the two intervals leave open."""
    (line, *ends), (other_line, *other_ends) = (
        [_read(edit, name, level, along, read) for read in READS] for edit in (first, second)
    )
    corners = [analysis.effect(*both, bounds=BOUNDS[name]) for both in product(ends, other_ends)]
    estimates = [float(corner.effect) for corner in corners]
    return {
        "effect": float((line - other_line).mean()),
        "low": min(float(corner.low) for corner in corners),
        "high": max(float(corner.high) for corner in corners),
        LEFT_OPEN: [min(estimates), max(estimates)],
    }


def _read(edit: xr.Dataset, name: str, level: xr.DataArray, along: str, read: Read = "line") -> xr.DataArray:
    """Return an outcome of each sample where its movement first reaches the level."""
    values = analysis.at_amount(edit[name], edit.movement, level, along, read)
    return values.reset_coords(drop=True).transpose("sample")


__all__ = ["Movement", "at_equal_movement"]
