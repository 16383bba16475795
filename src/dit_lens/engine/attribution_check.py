"""Whether an attribution is to be trusted: at some places drawn at random, the patch is made in truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import spearmanr
from torch import Tensor

from dit_lens.engine.taps import Key
from dit_lens.plan.functions import Configured
from dit_lens.plan.places import Spot

if TYPE_CHECKING:
    from dit_lens.engine.attribution_task import Attribution
    from dit_lens.plan.binding import Binding

LOW = 0.8
"""Rank correlation below which an estimate comes with a warning."""


@dataclass(frozen=True)
class Token:
    """One token's state at one place.

    Attributes:
        step: of it.
        key: site, branch and layer.
        index: position on the grid, (frame, y, x), and the head where the site has heads.
    """

    step: int
    key: Key
    index: tuple[int, ...]


@dataclass(frozen=True)
class DrawnTokens:
    """Places that were drawn, with the estimate and the exact gain of each.

    Attributes:
        tokens: the places.
        estimates: of the gain in the metric, [check].
        exact: the gain where the token's state is patched, [check].
    """

    tokens: Sequence[Token]
    estimates: np.ndarray
    exact: np.ndarray

    @property
    def spearman(self) -> float:
        """Rank correlation of both; NaN where one of them has one value alone."""
        if len({*self.estimates.tolist()}) < 2 or len({*self.exact.tolist()}) < 2:
            return float("nan")
        return float(spearmanr(self.estimates, self.exact).statistic)

    @property
    def warning(self) -> str:
        """What to beware of, in a sentence; empty where the estimate ranks the places as the patches do."""
        if np.isnan(self.spearman):
            return f"The check says nothing: the estimates or the exact gains of its {len(self.tokens)} places do not differ."
        if self.spearman >= LOW:
            return ""
        return (
            f"The estimate ranks {len(self.tokens)} random places with a rank correlation of {self.spearman:.2f} with exact "
            f"patches, below {LOW}: patch the places that matter, or integrate."
        )


def check_places(task: Attribution, count: int, seed: int) -> DrawnTokens:
    """Patch single tokens at random places, each drawn alike.

    Args:
        task: whose estimates are there.
        count: number of places; all of them where there are fewer.
        seed: of the draw.
    """
    tokens = _draw(task, count, seed)
    estimates = [float(task.estimates[token.step, token.key][token.index]) for token in tokens]
    exact: dict[Token, float] = {}
    for step in sorted({token.step for token in tokens}):
        chosen = [token for token in tokens if token.step == step]
        states = task.states(step)
        # Copies: the states of all layers would be held by views of one token each.
        values = [states[token.key][token.index].clone() for token in chosen]
        del states
        exact.update(zip(chosen, _gains(task, step, chosen, values), strict=True))
    return DrawnTokens(tokens, np.array(estimates), np.array([exact[token] for token in tokens]))


def _draw(task: Attribution, count: int, seed: int) -> list[Token]:
    places = list(task.estimates)
    sizes = [task.estimates[place].size for place in places]
    ends = np.cumsum(sizes)
    drawn = np.random.default_rng(seed).choice(ends[-1], min(count, int(ends[-1])), replace=False)
    tokens = []
    for number in sorted(drawn.tolist()):
        n = int(np.searchsorted(ends, number, side="right"))
        inside = np.unravel_index(number - (ends[n] - sizes[n]), task.estimates[places[n]].shape)
        tokens.append(Token(*places[n], tuple(int(i) for i in inside)))
    return tokens


def _gains(task: Attribution, step: int, tokens: Sequence[Token], values: Sequence[Tensor]) -> list[float]:
    """Return what the metric gains by each patch.

    The unpatched row goes through the model in a forward of the same size as the patched ones, so that both round alike.
    """
    passage, until = task.corrupt, task.read_at(step)
    placed: list[list[Binding]] = [
        [task.bind(_put(token.index, value), step, site=token.key[0], key=token.key)]
        for token, value in zip(tokens, values, strict=True)
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
    return gains[: len(tokens)]


def _put(index: tuple[int, ...], value: Tensor) -> Configured:
    return Configured(put_token, {"index": index, "value": value})


def put_token(h: Tensor, at: Spot, *, index: tuple[int, ...], value: Tensor) -> Tensor:
    """Put one token's state in its place: an edit, h is its own copy."""
    h[index] = value
    return h


__all__ = ["DrawnTokens", "Token", "check_places"]
