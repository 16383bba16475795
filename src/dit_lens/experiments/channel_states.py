"""The largest channels of clean runs: what they carry, what a state is without them, and edits that take away what they say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

import dit_lens as dl
from dit_lens.analysis.cka_sampled import kernel_cka, sample_tokens, unit_kernel
from dit_lens.analysis.massive import PROFILE, channel_sizes, largest_channels, matched_channels, profile
from dit_lens.engine.batch import Batch
from dit_lens.errors import DitLensError
from dit_lens.plan.plan import Placed

LARGEST, MATCHED, RANDOM = "largest", "same variance", "random"
"""Sets of channels; the random ones are numbered."""
WITHOUT = (LARGEST, RANDOM)
"""What is left out of a state."""
TEXT = np.dtypes.StringDType()


def sets_of(random: int) -> list[str]:
    """Return the names of the sets of channels, of which so many are random."""
    return [LARGEST, MATCHED, *(f"{RANDOM} {n + 1}" for n in range(random))]


class ChannelStates:
    """What is measured of the channels of clean runs.

    Args:
        batch: the pairs.
        channels: of a state.
        steps: that are mapped.
        layers: that are mapped.
        edited: the layer whose channels are edited.
        k: how many of a state's largest channels are looked at.
        tokens: of a state that CKA compares, at most.
        draw: seed of what is drawn: tokens, and random channels.
    """

    def __init__(
        self,
        batch: Batch,
        channels: int,
        *,
        steps: list[int],
        layers: list[int],
        edited: int,
        k: int,
        tokens: int,
        draw: int,
    ) -> None:
        self.batch, self.edited, self.steps, self.layers = batch, edited, steps, layers
        self.k, self.draw = k, draw
        self.watched = sorted({*layers, edited})
        self.tokens = sample_tokens(int(np.prod(batch.grid)), tokens, draw)
        rows, branches = len(batch.pairs), len(batch.layout.branches)
        self.sums = np.zeros((rows, 3, channels))
        shape = rows, len(self.steps), branches, len(self.layers)
        self.profiles = np.full((*shape, len(PROFILE)), np.nan)
        self.without = np.full((*shape, len(WITHOUT), 2), np.nan)

    def look(self, row: int, at: tuple[int, int, int], tokens: Tensor) -> None:
        """Measure a state: for the edits, where it is of the edited layer; for the maps, where it is asked for."""
        step, branch, layer = at[0], at[1], self.watched[at[2]]
        is_mapped = step in self.steps and layer in self.layers
        if not is_mapped and layer != self.edited:
            return
        sizes = channel_sizes(tokens)
        if layer == self.edited:
            self.sums[row] += sizes
        if is_mapped:
            place = row, self.steps.index(step), branch, self.layers.index(layer)
            self.profiles[place] = profile(sizes, self.k)
            largest = largest_channels(sizes[0], self.k).tolist()
            sets = largest, self.others(row, largest, 0)
            self.without[place] = [self.left(tokens, channels) for channels in sets]

    def left(self, tokens: Tensor, channels: list[int]) -> tuple[float, float]:
        """Return how alike a state and what is left of it without some channels are: correlation of energy, and CKA.

        NaN where all tokens are alike, as neither is defined there.
        """
        less = tokens.clone()
        less[:, channels] = 0
        energy = torch.stack([x.norm(dim=1, dtype=torch.float64) for x in (tokens, less)])
        varies = bool((energy.amax(1) - energy.amin(1) > 1e-9 * energy.amax(1)).all())
        same_map = float(torch.corrcoef(energy)[0, 1]) if varies else float("nan")
        try:
            return same_map, kernel_cka(*(unit_kernel(x, self.tokens) for x in (tokens, less)))
        except DitLensError:
            return same_map, float("nan")

    def others(self, row: int, channels: Sequence[int], number: int) -> list[int]:
        """Draw as many channels that are none of these: the same ones for a pair, whatever else is measured."""
        rng = np.random.default_rng([self.draw, self.batch.pairs[row][1], number])
        left = np.setdiff1d(np.arange(self.sums.shape[-1]), channels)
        return sorted(int(c) for c in rng.choice(left, len(channels), replace=False))

    def sets(self, row: int, random: int) -> dict[str, list[int]]:
        """Return the channels of a pair that are edited, by the name of their set, of which so many are random."""
        size, _, variance = self.sums[row]
        largest = largest_channels(size, self.k).tolist()
        sets = {LARGEST: largest, MATCHED: matched_channels(variance, largest)}
        drawn = {f"{RANDOM} {n + 1}": self.others(row, largest, n + 1) for n in range(random)}
        return sets | drawn

    def taken(self, row: int, channels: Sequence[int], to: str) -> float:
        """Return how far an edit moves the states of a clean run, relative to their norm (root mean square over steps)."""
        _, energy, variance = self.sums[row]
        gone = variance if to == "mean" else energy
        return float((gone[list(channels)].sum() / energy.sum()) ** 0.5)

    def dataset(self) -> xr.Dataset:
        """Return what was measured, by pair."""
        dims = ("pair", "step", "branch", "layer")
        data: dict[str, Any] = {name: (dims, self.profiles[..., i]) for i, name in enumerate(PROFILE)}
        data |= {
            name: ((*dims, "without"), self.without[..., i]) for i, name in enumerate(("same_map", "cka"))
        }
        coords = {
            "step": self.steps,
            "layer": self.layers,
            "branch": np.array(self.batch.layout.branches, TEXT),
            "without": np.array(WITHOUT, TEXT),
            "sigma": ("step", [self.batch.sigmas[step] for step in self.steps]),
        }
        return xr.Dataset(data, coords)


def settle(channels: Sequence[int], to: str, layer: int) -> Placed:
    """Return an edit: some channels of what a block returns, at all steps and branches, become their token mean, or 0."""
    return Placed(set_channels(channels=tuple(channels), to=to), dl.at(layer=layer))


@dl.options
def set_channels(h: Tensor, at: dl.Spot, *, channels: tuple[int, ...], to: str) -> Tensor:
    """Set some channels of a value [frame, y, x, channel] to their mean over its tokens, or to 0."""
    out, chosen = h.clone(), list(channels)
    mean = h[..., chosen].mean((0, 1, 2), dtype=torch.promote_types(h.dtype, torch.float32))
    out[..., chosen] = mean.to(h.dtype) if to == "mean" else 0
    return out


__all__ = ["LARGEST", "MATCHED", "RANDOM", "WITHOUT", "ChannelStates", "set_channels", "sets_of", "settle"]
