"""Records of attention and of heads that are small numbers already where they are read: no map leaves the model.

Each keeps every head apart. `dl.attention(...)` has the maps themselves.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dit_lens.attention_records import logits, mass, reads
from dit_lens.families.attention import Attention
from dit_lens.plan.functions import options
from dit_lens.records import keeps

MEASURES = ("mass", "auc")
"""What `words_in_regions` measures."""


@options
@reads(
    *("region", "group", "measure"),
    site="cross_attention",
    long_name="attention of regions to groups of tokens",
)
def words_in_regions(
    a: Attention, *, regions: NDArray[np.bool_], groups: tuple[int, ...], count: int, heads: str = "all"
) -> Tensor:
    """How regions of the video look at groups of tokens of the prompt, [head, region, group, measure].

    The measures: `mass`, the attention to the group, mean over the places of the region; `auc`, the chance that a place of the
    region looks at the group more than a place elsewhere does, ties counted half (Mann and Whitney 1947): 0.5 for a map that
    does not know the region.

    Args:
        a: the attention.
        regions: [region, frame, y, x] of the tokens that look. NaN comes of a region without a token, and the `auc` of one that
            is everything.
        groups: number of each prompt token's group; -1 for those of none.
        count: of groups.
        heads: each on its own.
    """
    numbers = torch.full((a.keys.total,), -1)
    numbers[a.keys.part] = torch.tensor(groups)
    inside = torch.from_numpy(regions.reshape(len(regions), -1)).to(a.device)
    # A head at a time: the maps of all would be heads x tokens x groups.
    maps = (mass(a.of_heads((head,)), numbers, count)[0] for head in range(a.heads))
    return torch.stack([_measured(of_head, inside) for of_head in maps])


def _measured(of_head: Tensor, inside: Tensor) -> Tensor:
    """Return the `MEASURES` of one head's maps [token, group] in regions [region, token]: [region, group, measure]."""
    values, weights = of_head.T.contiguous().double(), inside.double()
    here = weights.sum(1, keepdim=True)
    in_order = values.sort(-1).values
    below, up_to = torch.searchsorted(in_order, values), torch.searchsorted(in_order, values, right=True)
    rank = (below + up_to + 1).double() / 2  # of 1 to n, equal values share theirs
    above = weights @ rank.T - here * (here + 1) / 2
    auc = above / (here * (values.shape[1] - here))
    return torch.stack([weights @ values.T / here, auc], -1).float()


@options
@reads("query", "key_frame", "axis", site="attention", long_name="where q.k is largest")
def best_matches(a: Attention, *, places: tuple[tuple[int, int, int], ...], heads: str = "all") -> Tensor:
    """Where in every frame q.k with chosen places is largest, [head, query, key_frame, (y, x)]; NaN where nothing may be seen.

    The argmax is taken before the softmax, which is 0 far from its largest value, and so has no argmax there.

    Args:
        a: the attention.
        places: (frame, y, x) of the tokens that look.
        heads: each on its own.
    """
    frame, y, x = a.keys.grid
    numbers = torch.tensor([(f * y + row) * x + column for f, row, column in places], device=a.device)
    found = []
    for head in range(a.heads):
        scores = logits(a.of_heads((head,)), numbers + a.queries.before)[0][:, a.keys.part]
        best, where = scores.unflatten(1, (frame, y * x)).max(-1)
        position = torch.stack([where // x, where % x], -1).float()
        found.append(position.masked_fill(best.isinf()[..., None], math.nan))
    return torch.stack(found)


@keeps(site="heads", long_name="variance between frames, over total variance")
def frame_separation(h: Tensor) -> Tensor:
    """How well a head's outputs h[frame, y, x, channel] tell frames apart: variance between frames over total variance.

    The mean over all tokens is taken off; with o the rest, and o_f its mean over the n tokens of a frame, the share is
    sum_f n |o_f|^2 / sum |o|^2, from 0 (frames have one mean) to 1 (tokens of a frame are alike): the correlation ratio eta^2.
    It grows with the index of Calinski and Harabasz (1974), (N - F) / (F - 1) * eta^2 / (1 - eta^2), by which
    arXiv 2603.02919 picks heads. Tokens that are drawn alike in all frames have (F - 1) / (N - 1) on average. 0 where all tokens
    are alike.
    """
    tokens = h.to(torch.promote_types(h.dtype, torch.float32)).flatten(1, 2)
    centred = tokens - tokens.mean((0, 1))
    between = tokens.shape[1] * centred.mean(1).square().sum()
    total = centred.square().sum()
    return torch.where(total > 0, between / total, torch.zeros_like(total)).float()


__all__ = ["MEASURES", "best_matches", "frame_separation", "words_in_regions"]
