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


@options
@reads("region", "group", site="cross_attention", long_name="attention of regions to groups of tokens")
def mass_in_regions(
    a: Attention, *, regions: NDArray[np.bool_], groups: tuple[int, ...], count: int, heads: str = "all"
) -> Tensor:
    """How much the places of a region look at groups of tokens of the prompt, [head, region, group]: the mean over the places.

    Args:
        a: the attention.
        regions: [region, frame, y, x] of the tokens that look. NaN comes of a region without a token.
        groups: number of each prompt token's group; -1 for those of none.
        count: of groups.
        heads: each on its own.
    """
    numbers = torch.full((a.keys.total,), -1)
    numbers[a.keys.part] = torch.tensor(groups)
    inside = torch.from_numpy(regions.reshape(len(regions), -1)).to(a.device, torch.float32)
    inside = inside / inside.sum(1, keepdim=True)
    # A head at a time: the map of all would be heads x tokens x groups.
    return torch.cat([inside @ mass(a.of_heads((head,)), numbers, count) for head in range(a.heads)])


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


__all__ = ["best_matches", "frame_separation", "mass_in_regions"]
