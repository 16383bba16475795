"""Runs taken up again: from a step on, with frames held, or from the start; once, or until the compute of one run is used up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from dit_lens.engine.outcomes import outcomes
from dit_lens.experiments.picks import agreed, sharpness

if TYPE_CHECKING:
    from dit_lens.engine.batch import Batch

OTHER_NOISE = 1_000_003
"""Added to a noise seed for the noise that the first try draws, twice that for the second, and so on."""


@dataclass(frozen=True)
class Way:
    """A way to take a run up again.

    Attributes:
        name: of the way.
        first: the step that each try goes back to; 0 is the start, from other noise.
        held: latent frames that are held.
    """

    name: str
    first: tuple[int, ...]
    held: int = 0

    def steps(self, total: int) -> int:
        """Return how many steps its tries take in all, of runs of so many."""
        return sum(total - first for first in self.first)


def until_used_up(first: int, total: int) -> tuple[int, ...]:
    """Return the steps that tries go back to, until they have taken as many steps as one run of `total`.

    All go back to `first`, but for the last one, which takes the steps that are left.
    """
    tries, left = divmod(total, total - first)
    return (first,) * tries + ((total - left,) if left else ())


def other_noise(batch: Batch, number: int = 0) -> Tensor:
    """Return noise of other seeds, on the grid of the batch's own; of every try by its number."""
    rows = [
        torch.randn(
            batch.noise.shape[1:],
            generator=torch.Generator().manual_seed(seed + (1 + number) * OTHER_NOISE),
        )
        for _, seed in batch.pairs
    ]
    return torch.stack(rows).to(batch.noise)


def rerun(batch: Batch, start: Tensor, noise: Tensor, ended: Tensor, first: int, held: int) -> Tensor:
    """Run every pair again from a step on, its first latent frames held at what they were.

    Args:
        batch: the pairs.
        start: latents of step 0, where the run begins there.
        noise: that the run's last latents get, to go back to a step, or to be held at one.
        ended: last latents of the runs.
        first: step to begin with.
        held: latent frames that are held.
    """
    sigma = batch.sigmas[first]
    x = start if first == 0 else (1 - sigma) * ended + sigma * noise
    for step in range(first, batch.steps):
        sigma = batch.sigmas[step]
        x = x.clone()
        x[:, :, :held] = ((1 - sigma) * ended + sigma * noise)[:, :, :held]
        x[:, :, : batch.fixed_frames] = batch.noise[:, :, : batch.fixed_frames]  # of no noise level
        x = batch.step(step, x).latents
    x = x.clone()
    x[:, :, :held] = ended[:, :, :held]
    return x


def rescues(batch: Batch, ended: Tensor, ways: list[Way]) -> xr.Dataset:
    """Take every run up again in every way.

    Of several tries the most frequent answer is picked, the sharpest of the most frequent ones (`agreed`): nothing is known of
    the right one. A try that two ways have in common is made once.

    Args:
        batch: the pairs.
        ended: last latents of their runs.
        ways: to take them up again.

    Returns:
        `rescued` [way, pair]: whether the pick is right. `cost` [way], in runs, and `nfe` [way], in forwards of the model, one
        for each step and guidance branch.
    """
    tries: dict[tuple[int, int, int], Tensor] = {}
    for way in ways:
        for number, first in enumerate(way.first):
            if (first, way.held, number) not in tries:
                noise = other_noise(batch, number)
                tries[first, way.held, number] = rerun(batch, noise, noise, ended, first, way.held)
    judged = outcomes(batch, torch.stack([*tries.values()]), ended)
    sharp = np.array([sharpness(batch, x) for x in tries.values()])
    place = {key: n for n, key in enumerate(tries)}
    rescued = np.zeros((len(ways), len(batch.pairs)), bool)
    for i, way in enumerate(ways):
        rows = [place[first, way.held, number] for number, first in enumerate(way.first)]
        for pair in range(len(batch.pairs)):
            pick = agreed(judged.answer.values[rows, pair].tolist(), sharp[rows, pair].tolist())
            rescued[i, pair] = judged.solved.values[rows[pick], pair]
    steps = np.array([way.steps(batch.steps) for way in ways])
    out = xr.Dataset({"rescued": (("way", "pair"), rescued)})
    return out.assign_coords(
        way=np.array([way.name for way in ways], np.dtypes.StringDType()),
        cost=("way", steps / batch.steps),
        nfe=("way", steps * len(batch.layout.branches)),
    )


def runs_of_ways(ways: list[Way], steps: int) -> float:
    """Return how many whole runs the ways cost: a try that two have in common is made once."""
    tries = {(first, way.held, n) for way in ways for n, first in enumerate(way.first)}
    return sum(steps - first for first, *_ in tries) / steps


__all__ = ["Way", "other_noise", "rerun", "rescues", "runs_of_ways", "until_used_up"]
