"""Whether an attribution is to be trusted: at some places drawn at random, the patch is made in truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from dit_lens.engine.taps import Key
from dit_lens.plan.functions import Configured
from dit_lens.plan.places import Spot

if TYPE_CHECKING:
    from dit_lens.engine.attribution_task import Attribution
    from dit_lens.plan.binding import Binding

NARROW = (torch.bfloat16, torch.float16)
LOW = 0.8
"""Rank correlation below which an estimate comes with a warning."""
FAR = 2.0
"""By what factor estimates may be larger or smaller than exact gains without a warning."""


@dataclass(frozen=True)
class Patched:
    """What one patch replaces.

    Attributes:
        step: of it.
        key: site, branch, layer and head.
        index: position of one token on the grid, (frame, y, x); () for all of them.
    """

    step: int
    key: Key
    index: tuple[int, ...]


@dataclass(frozen=True)
class DrawnPatches:
    """Patches that were drawn, with the estimate and the exact gain of each.

    Attributes:
        patches: the places.
        estimates: of the gain in the metric, [check].
        exact: the gain where it is patched, [check].
        dtype: number type of the model's states.
    """

    patches: Sequence[Patched]
    estimates: np.ndarray
    exact: np.ndarray
    dtype: torch.dtype

    @property
    def spearman(self) -> float:
        """Rank correlation of both; NaN where one of them has one value alone. What differs by rounding alone is one value."""
        ranked = [_rounded(values) for values in (self.estimates, self.exact)]
        if any(len({*values.tolist()}) < 2 for values in ranked):
            return float("nan")
        return float(spearmanr(*ranked).statistic)

    @property
    def slope(self) -> float:
        """Size of the estimates in units of the exact gains, by least squares: 1 if they are right, NaN if nothing gains."""
        square = float(self.exact @ self.exact)
        return float(self.estimates @ self.exact) / square if square else float("nan")

    @property
    def warning(self) -> str:
        """What to beware of, in a sentence; empty where estimates rank the places as patches do, and are of their size."""
        what = f"{len(self.patches)} {'single tokens' if self.patches[0].index else 'states of all tokens'}"
        if np.isnan(self.spearman):
            return f"The check of {what} says nothing: the estimates or the exact gains do not differ."
        if self.spearman < LOW:
            narrow = f" In {self.dtype} a patch may gain less than rounding." if self.dtype in NARROW else ""
            return (
                f"Estimates and exact patches of {what}, drawn at random, have a rank correlation of {self.spearman:.2f}, below "
                f"{LOW}: patch what matters, or integrate.{narrow}"
            )
        if not 1 / FAR <= self.slope <= FAR:
            return (
                f"Estimates of {what}, drawn at random, are {self.slope:.2g} of what exact patches gain: they rank places, and "
                "are no gains."
            )
        return ""


def check_places(task: Attribution, count: int, seed: int) -> dict[str, DrawnPatches]:
    """Patch single tokens, and whole states, at random places, each drawn alike.

    Args:
        task: whose estimates are there.
        count: number of each; all of them where there are fewer.
        seed: of the draw.

    Returns:
        Those of tokens by the name "token", those of whole states by "whole".
    """
    random = np.random.default_rng(seed)
    places = list(task.estimates)
    whole = random.choice(len(places), min(count, len(places)), replace=False)
    drawn = {
        "token": _draw_tokens(task, count, random),
        "whole": [Patched(step, key, ()) for step, key in (places[n] for n in sorted(whole.tolist()))],
    }
    return {name: _checked(task, patches) for name, patches in drawn.items()}


def _draw_tokens(task: Attribution, count: int, random: np.random.Generator) -> list[Patched]:
    places = list(task.estimates)
    sizes = [task.estimates[place].size for place in places]
    ends = np.cumsum(sizes)
    drawn = random.choice(ends[-1], min(count, int(ends[-1])), replace=False)
    patches = []
    for number in sorted(drawn.tolist()):
        n = int(np.searchsorted(ends, number, side="right"))
        inside = np.unravel_index(number - (ends[n] - sizes[n]), task.estimates[places[n]].shape)
        patches.append(Patched(*places[n], tuple(int(i) for i in inside)))
    return patches


def _checked(task: Attribution, patches: Sequence[Patched]) -> DrawnPatches:
    estimates = [float(task.estimates[patch.step, patch.key][patch.index].sum()) for patch in patches]
    exact: dict[Patched, float] = {}
    for step in sorted({patch.step for patch in patches}):
        chosen = [patch for patch in patches if patch.step == step]
        states = task.states(step)
        # Copies: the states of all layers would be held by views of one token each.
        values = [states[patch.key][patch.index].clone() for patch in chosen]
        del states
        exact.update(zip(chosen, _gains(task, step, chosen, values), strict=True))
    gains = np.array([exact[patch] for patch in patches])
    return DrawnPatches(patches, np.array(estimates), gains, task.batch.specimen.dtype)


def _rounded(values: np.ndarray) -> np.ndarray:
    """Return values to 5 digits of the largest."""
    largest = float(np.abs(values).max())
    return np.round(values / largest, 5) if largest else values


def _gains(task: Attribution, step: int, patches: Sequence[Patched], values: Sequence[Tensor]) -> list[float]:
    """Return what the metric gains by each patch.

    The unpatched row goes through the model in a forward of the same size as the patched ones, so that both round alike.
    """
    passage, until = task.corrupt, task.read_at(step)
    placed: list[list[Binding]] = [
        [task.bind(_put(patch.index, value), step, site=patch.key[0], key=patch.key)]
        for patch, value in zip(patches, values, strict=True)
    ]
    size = min(max(1, task.batch.at_once - 1), len(placed))
    gains: list[float] = []
    for begin in range(0, len(placed), size):
        part = placed[begin : begin + size]
        part += [[] for _ in range(size - len(part))]
        forwards: list[list[list[Binding]]] = [[[], *part]] if task.batch.at_once > 1 else [[[]], part]
        metrics: list[float] = []
        for rows in forwards:
            start = task.start(step).repeated(len(rows))
            found = passage.metric(step, start, until, [passage.row(more) for more in rows])
            metrics += [float(value) for value in found]
        gains += [metric - metrics[0] for metric in metrics[1:]]
    return gains[: len(patches)]


def _put(index: tuple[int, ...], value: Tensor) -> Configured:
    return Configured(put_state, {"index": index, "value": value})


def put_state(h: Tensor, at: Spot, *, index: tuple[int, ...], value: Tensor) -> Tensor:
    """Put one token's state in its place, or all of a state: an edit, h is its own copy."""
    h[index] = value
    return h


__all__ = ["DrawnPatches", "Patched", "check_places"]
