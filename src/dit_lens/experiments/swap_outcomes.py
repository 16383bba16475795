"""What swaps come to: how far towards the donor, of the last latents and of x0 right away, and whose answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from dit_lens import analysis
from dit_lens.engine.batch import Batch
from dit_lens.engine.stepped import Stepped
from dit_lens.engine.sweep import Now, run_arms
from dit_lens.experiments.leverage import Movement
from dit_lens.experiments.samples import given_frames
from dit_lens.experiments.swaps import OWN, ROWS, Swap, partner, receives, run_swaps
from dit_lens.families.latents import apart

Array = NDArray[np.float64]
DIMS = ("pair", "direction")
LATENTS = ("row", "latent_channel", "frame", "latent_y", "latent_x")


@dataclass(frozen=True)
class CleanEnds:
    """Where the clean runs of the rows end, and what the runs of receivers are measured by.

    Attributes:
        batch: of `rows_of`.
        latents: the last ones, [row, channel, frame, y, x].
        given: latent frames at the beginning that are given, which no distance counts; of a single frame, which is all that
            there is to compare, none is left out.
        is_judged: whether the samples have scorers.
    """

    batch: Batch
    latents: Tensor
    given: int
    is_judged: bool

    @classmethod
    def of(cls, batch: Batch, is_judged: bool, latents: Tensor | None = None) -> CleanEnds:
        """Take the ends of the clean rows. Default: run them."""
        latents = apart(run_arms(batch, [])[0] if latents is None else latents)["video"]
        given = min(given_frames(batch.pairs[0][0]), latents.shape[2] - 1)
        return cls(batch, latents, given, is_judged)

    @property
    def receivers(self) -> list[int]:
        """The rows that receive, in the order of pair and direction."""
        return [row for row in range(len(self.latents)) if receives(row)]

    def leaning(self, latents: Tensor, rows: Sequence[int]) -> Array:
        """Return how far latents lean from the ends of rows to those of their partners, [row]; see `analysis.leaning`."""
        own, other = self.latents[list(rows)], self.latents[[partner(row) for row in rows]]
        x, a, b = (self._free(one) for one in (latents, own, other))
        values: Array = analysis.leaning(x, a, b).values
        return values

    def apart(self) -> Array:
        """Return the root mean square distance of the ends of A and B, [pair, direction]."""
        off = self._free(self.latents) - self._free(
            self.latents[[partner(r) for r in range(len(self.latents))]]
        )
        rms = ((off**2).mean(LATENTS[1:]) ** 0.5).values[self.receivers]
        return by_direction(rms)

    def _free(self, latents: Tensor) -> xr.DataArray:
        """Return the frames that are not given."""
        values = apart(latents)["video"].double().cpu().numpy()
        return xr.DataArray(values[:, :, self.given :], dims=LATENTS)

    def solved(self, latents: Tensor) -> NDArray[np.bool_]:
        """Return whether videos solve their own sample, and their partner's: [2, pair, direction].

        A partner's scorer is shown the video with the frame that was given to the partner, for it would not know the other one.

        Args:
            latents: of all rows, [row, channel, frame, y, x].
        """
        hits = []
        for row in self.receivers:
            own, other = latents[row : row + 1], latents[row : row + 1].clone()
            other[:, :, : self.given] = self.latents[partner(row), :, : self.given]
            video = self.batch.decode(own)[0]
            shown = video if bool((own == other).all()) else self.batch.decode(other)[0]
            samples = (self.batch.pairs[r][0] for r in (row, partner(row)))
            hits.append([s.score(v).solved for s, v in zip(samples, (video, shown), strict=True)])
        return np.stack([by_direction(np.array(column, bool)) for column in zip(*hits, strict=True)])

    def clean(self) -> xr.Dataset:
        """Return what holds for every arm: `apart`, and with scorers whether the clean runs are `right`, or `confused`.

        A clean run is confused where it solves its partner's sample, too: no answer then tells whose it is.
        """
        data = {"apart": (DIMS, self.apart())}
        if self.is_judged:
            right, confused = self.solved(self.latents)
            data |= {"right": (DIMS, right), "confused": (DIMS, confused)}
        return xr.Dataset(data)


def by_direction(rows: NDArray[Any]) -> NDArray[Any]:
    """Return values of the receivers, [..., row], as [..., pair, direction]."""
    return rows.reshape(*rows.shape[:-1], -1, ROWS // 2)


def outcomes_of(ends: CleanEnds, site: str, layer: int, swaps: Sequence[Swap]) -> xr.Dataset:
    """Run the arms of one site of one layer, and read them.

    Returns:
        On [arm, pair, direction]: `leaning` of the last latents; `leaning_x0` of x0 at the last swapped step, and
        `leaning_x0_clean` of the clean run's there; `movement` of the latents right after that step, RMS, as a share of the RMS
        of the clean run's; where there are scorers `flip`, the video solves the donor's sample, and
        `kept`, its own. On [pair, direction]: `own_change`, the largest change of a latent by a run's own states.
    """
    belief = _Belief(ends, swaps)
    movement = Movement(belief.last, len(ends.latents), ends.given)

    def look(now: Now) -> None:
        belief.look(now)
        movement.look(now)

    _, ended = run_swaps(ends.batch, site, layer, swaps, look, belief.look_clean)
    rows = ends.receivers
    lean = np.stack([ends.leaning(latents[rows], rows) for latents in ended])
    own = [swap.name for swap in swaps].index(OWN)
    change = (ended[own] - ends.latents).float().abs().amax((1, 2, 3, 4)).cpu().numpy()[rows]
    data = {
        "leaning": (("arm", *DIMS), by_direction(lean)),
        "leaning_x0": (("arm", *DIMS), by_direction(belief.edited[:, rows])),
        "leaning_x0_clean": (("arm", *DIMS), by_direction(belief.clean[:, rows])),
        "movement": (("arm", *DIMS), by_direction(movement.values[:, rows] / movement.sizes[:, rows])),
        "own_change": (DIMS, by_direction(change)),
    }
    if ends.is_judged:
        solved = np.stack([ends.solved(latents) for latents in ended])
        data |= {"kept": (("arm", *DIMS), solved[:, 0]), "flip": (("arm", *DIMS), solved[:, 1])}
    return xr.Dataset(data)


class _Belief:
    """How x0 leans at the last swapped step of every arm, and the clean run's there.

    Attributes:
        edited: [arm, row].
        clean: [arm, row].
    """

    def __init__(self, ends: CleanEnds, swaps: Sequence[Swap]) -> None:
        self.ends, self.last = ends, [swap.steps[-1] for swap in swaps]
        self.edited = np.full((len(swaps), len(ends.latents)), np.nan)
        self.clean = self.edited.copy()

    def look_clean(self, step: int, clean: Stepped) -> None:
        """Measure the clean rows at a step."""
        arms, rows = [n for n, last in enumerate(self.last) if last == step], self.ends.receivers
        if arms:
            self.clean[np.ix_(arms, rows)] = self.ends.leaning(apart(clean.x0)["video"][rows], rows)

    def look(self, now: Now) -> None:
        """Measure the rows of a forward whose arm swaps here for the last time."""
        here = [i for i, (arm, _) in enumerate(now.rows) if self.last[arm] == now.step]
        if here:
            arms, rows = zip(*(now.rows[i] for i in here), strict=True)
            self.edited[arms, rows] = self.ends.leaning(apart(now.edited.x0)["video"][here], rows)


__all__ = ["CleanEnds", "by_direction", "outcomes_of"]
