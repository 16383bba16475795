"""Records of attention: what looks at what, kept as small reductions, since the map itself is never held.

Each is computed anew from the queries and keys that the model's own attention was given (after norm, rotation, mask and edits):
softmax(scale q k + mask). Sums over groups of keys (the words of a prompt, latent frames) go through the same kernel as the
model's attention, with an indicator of the group in place of the values, so they cost about one attention; what needs every
weight (entropy, mass on self) is computed in blocks of queries, in float32.

Here `a` is an `Attention`: the queries and keys of one row, of the selected heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dit_lens.errors import CaptureError, PlanError
from dit_lens.families.attention import Attention
from dit_lens.families.site import Tokens
from dit_lens.plan.functions import Configured, options
from dit_lens.records import keeps

BLOCK_BYTES = 64 << 20
"""Of the weights that are held at once, in float32."""


def weights(a: Attention, queries: Tensor) -> Tensor:
    """Return the attention of some queries, [head, query, key], in float32: all keys, those beside the grid too.

    Args:
        a: the attention.
        queries: positions of tokens, [query], counted from the first token that looks.
    """
    query, key = (part.float().transpose(0, 1) for part in (a.q[queries], a.k))
    return _logits(a, query @ key.transpose(1, 2), queries).softmax(-1)


def _logits(a: Attention, products: Tensor, queries: Tensor) -> Tensor:
    logits = products * a.scale
    if a.mask is None:
        return logits
    mask = a.mask if a.mask.shape[1] == 1 else a.mask[:, queries]
    if mask.dtype == torch.bool:
        return logits.masked_fill(~mask, -math.inf)
    return logits + mask.float()


def mass(a: Attention, groups: Tensor, count: int) -> Tensor:
    """Return how much every query of the grid looks at groups of keys, [head, query, group], in float32.

    The model's own kernel attends to an indicator of each group; in its number type, whose rounding the result has.

    Args:
        a: the attention.
        groups: number of each key's group, [key]; -1 for keys of none.
        count: of groups.
    """
    part, width = a.queries.part, a.q.shape[2]
    query, key = a.q[part].transpose(0, 1)[None], a.k.transpose(0, 1)[None]
    mask = a.mask
    if mask is not None:
        mask = (mask if mask.shape[1] == 1 else mask[:, part])[None]
    out = torch.empty(a.heads, a.queries.count, count, device=a.device, dtype=torch.float32)
    for first in range(0, count, width):  # kernels want values as wide as keys
        wanted = torch.arange(first, first + width, device=a.device)
        seen = (groups[:, None].to(a.device) == wanted).to(a.q.dtype)
        values = seen.expand(1, a.heads, *seen.shape)
        of_groups = F.scaled_dot_product_attention(query, key, values, mask, scale=a.scale)[0]
        stop = min(count, first + width)
        out[:, :, first:stop] = of_groups[..., : stop - first].float()
    return out


def _grid_groups(tokens: Tokens, numbers: Tensor) -> Tensor:
    """Return the groups of all tokens, of which those beside the grid have none."""
    groups = torch.full((tokens.total,), -1)
    groups[tokens.part] = numbers
    return groups


def _frames(tokens: Tokens) -> Tensor:
    frame, y, x = tokens.grid
    return torch.arange(frame).repeat_interleave(y * x)


def _of_heads(per_head: Tensor, heads: str) -> Tensor:
    """Return a value of each head, [head, ...], as it is or as the mean over them."""
    return per_head if heads == "all" else per_head.mean(0)


def _on_grid(a: Attention, values: Tensor) -> Tensor:
    """Return values of the queries, [head, query, ...], on their grid."""
    return values.unflatten(1, a.queries.grid)


def _sampled(a: Attention, queries: int | None) -> Tensor:
    """Return positions of some queries on the grid, evenly spread over every frame; all of them without a number."""
    frame, y, x = a.queries.grid
    each = y * x if queries is None else min(queries, y * x)
    within = torch.linspace(0, y * x - 1, each).round().long()
    return (torch.arange(frame)[:, None] * (y * x) + within).flatten()


def _blocks(a: Attention, positions: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield positions of queries on the grid, and their weights [head, query, key], of which few are held at once."""
    size = max(1, BLOCK_BYTES // (4 * a.heads * a.k.shape[0]))
    for block in positions.split(size):
        yield block, weights(a, block.to(a.device) + a.queries.before)


def _maps(a: Attention, queries: int | None, of: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Return a number for every query on the grid, [head, frame, y, x]; NaN for those that are left out."""
    out = torch.full((a.heads, a.queries.count), math.nan, device=a.device)
    if a.q.is_meta:
        return _on_grid(a, out)
    for block, of_block in _blocks(a, _sampled(a, queries)):
        out[:, block.to(a.device)] = of(of_block, block)
    return _on_grid(a, out)


# ---- the records; each returns [head, ...] of which the means are taken here


def _reads(*dims: str, site: str, units: str = "1", long_name: str) -> Callable[[Any], Any]:
    """Declare a record of attention: what it keeps, and which attention it reads unless the place says otherwise."""

    def declare(function: Any) -> Any:
        function.reads_attention = True
        return keeps(*dims, site=site, units=units, long_name=long_name)(function)

    return declare


@options
@_reads(
    "frame", "y", "x", "text_token", site="cross_attention", long_name="attention to each token of the prompt"
)
def attention_to_text(a: Attention, *, heads: str = "mean") -> Tensor:
    """How much every place looks at each token of the prompt, padding and special tokens among them."""
    return _of_heads(_on_grid(a, mass(a, *_each_key(a))), heads)


@options
@_reads(
    "frame", "y", "x", "image_token", site="image_attention", long_name="attention to each token of the image"
)
def attention_to_image(a: Attention, *, heads: str = "mean") -> Tensor:
    """How much every place looks at each token of the image that an image-to-video model is given."""
    return _of_heads(_on_grid(a, mass(a, *_each_key(a))), heads)


def _each_key(a: Attention) -> tuple[Tensor, int]:
    chosen = range(a.keys.count) if a.chosen is None else a.chosen
    numbers = torch.full((a.keys.count,), -1)
    numbers[list(chosen)] = torch.arange(len(chosen))
    return _grid_groups(a.keys, numbers), len(chosen)


@options
@_reads("frame", "key_frame", site="attention", long_name="attention from frame to frame")
def attention_over_frames(a: Attention, *, heads: str = "mean", queries: int | None = None) -> Tensor:
    """How much the places of a latent frame look at each latent frame: the mean over queries, the sum over keys."""
    part = _sampled(a, queries).to(a.device)
    chosen = Attention(
        a.q[part + a.queries.before],
        a.k,
        a.v,
        a.mask if a.mask is None or a.mask.shape[1] == 1 else a.mask[:, part + a.queries.before],
        a.scale,
        Tokens((a.queries.grid[0], 1, len(part) // a.queries.grid[0])),
        a.keys,
    )
    of_frames = _on_grid(chosen, mass(chosen, _grid_groups(a.keys, _frames(a.keys)), a.keys.grid[0]))
    return _of_heads(of_frames.mean((2, 3)), heads)


@options
@_reads("query", "frame", "y", "x", site="attention", long_name="where chosen places look")
def attention_from(
    a: Attention, *, places: tuple[tuple[int, int, int], ...] = (), heads: str = "mean"
) -> Tensor:
    """Where each of some places (frame, y, x) looks, on the grid of the keys."""
    grid = a.queries.grid
    for place in places:
        if not all(0 <= n < size for n, size in zip(place, grid, strict=True)):
            raise CaptureError(f"attention(from_=...): {place} is not on the grid (frame, y, x) = {grid}.")
    positions = torch.tensor([(f * grid[1] + y) * grid[2] + x for f, y, x in places], device=a.device)
    of_places = weights(a, positions + a.queries.before)[..., a.keys.part]
    return _of_heads(of_places.unflatten(-1, a.keys.grid), heads)


@options
@_reads("frame", "y", "x", site="attention", units="nat", long_name="entropy of attention")
def attention_entropy(a: Attention, *, heads: str = "mean", queries: int | None = None) -> Tensor:
    """Entropy of where every place looks, in nats, over all keys: 0 for one key, log n for n alike."""

    def entropy(of_block: Tensor, _: Tensor) -> Tensor:
        return torch.special.entr(of_block).sum(-1)

    return _of_heads(_maps(a, queries, entropy), heads)


@options
@_reads("frame", "y", "x", site="attention", long_name="attention to itself")
def attention_to_self(a: Attention, *, heads: str = "mean", queries: int | None = None) -> Tensor:
    """How much every place looks at itself."""

    def own(of_block: Tensor, block: Tensor) -> Tensor:
        place = (block + a.keys.before).to(a.device)
        return of_block.gather(-1, place.expand(a.heads, -1)[..., None])[..., 0]

    return _of_heads(_maps(a, queries, own), heads)


@options
@_reads("frame", "y", "x", site="attention", long_name="attention to the first frame")
def attention_to_first_frame(a: Attention, *, heads: str = "mean") -> Tensor:
    """How much every place looks at the first latent frame."""
    numbers = torch.where(_frames(a.keys) == 0, 0, -1)
    return _of_heads(_on_grid(a, mass(a, _grid_groups(a.keys, numbers), 1))[..., 0], heads)


RECORDS: dict[str, Any] = {
    "text": attention_to_text,
    "image": attention_to_image,
    "self": attention_to_self,
    "first_frame": attention_to_first_frame,
}


def attention(
    *,
    to: str | None = None,
    over: str | None = None,
    from_: Sequence[tuple[int, int, int]] | None = None,
    entropy: bool = False,
    heads: str = "mean",
    queries: int | None = None,
) -> Configured:
    """Return a record of one reduction of an attention; the map itself is never held.

    Exactly one of `to`, `over`, `from_` and `entropy` says which. With `dl.at(head=...)` the heads are selected, with
    `dl.at(text_token=...)` the tokens of the prompt that are kept; `dl.at(site="cross_attention")` reads another attention
    than the default.

    Args:
        to: "text": each token of the prompt, [frame, y, x, text_token]. "image": each token of the image. "self",
            "first_frame": one number a place, [frame, y, x].
        over: "frames": [frame, key_frame], the mean over the places of a frame.
        from_: places (frame, y, x) of the grid: where each looks, [query, frame, y, x].
        entropy: in nats, over all keys, [frame, y, x].
        heads: "mean" over the selected heads, or "all": each on its own, on a dimension `head`.
        queries: places of each frame that look, evenly spread; default all. Others are NaN on a map, and left out of a mean.

    Raises:
        PlanError: not exactly one reduction, or an option that it does not take.

    Example:
        >>> attention(to="text"), attention(over="frames", heads="all")
        (attention_to_text(heads='mean'), attention_over_frames(heads='all', queries=None))
    """
    asked = {"to": to, "over": over, "from_": from_, "entropy": entropy or None}
    given = [name for name, value in asked.items() if value is not None]
    if len(given) != 1:
        raise PlanError(f"attention({', '.join(given)}): say exactly one of to, over, from_ and entropy.")
    if heads not in ("mean", "all"):
        raise PlanError(f"attention(heads={heads!r}): 'mean' or 'all'; select some with dl.at(head=...).")
    if queries is not None and (isinstance(queries, bool) or not isinstance(queries, int) or queries < 1):
        raise PlanError(f"attention(queries={queries!r}): a whole number of places of each frame, 1 or more.")
    sampled = {} if queries is None else {"queries": queries}
    if to is not None:
        if to not in RECORDS:
            raise PlanError(f"attention(to={to!r}): one of {', '.join(RECORDS)}.")
        return _made(RECORDS[to], heads, sampled)
    if over is not None:
        if over != "frames":
            raise PlanError(f"attention(over={over!r}): 'frames' alone.")
        return _made(attention_over_frames, heads, sampled)
    if from_ is not None:
        return _made(attention_from, heads, {"places": _places(from_), **sampled})
    return _made(attention_entropy, heads, sampled)


def _made(maker: Any, heads: str, more: dict[str, Any]) -> Configured:
    made: Configured = maker(heads=heads, **more)
    return made


def _places(from_: Any) -> tuple[tuple[int, int, int], ...]:
    try:
        places = tuple(tuple(int(n) for n in place) for place in from_)
    except TypeError:
        places = ()
    if not places or any(len(place) != 3 for place in places):
        raise PlanError(f"attention(from_={from_!r}): a list of places (frame, y, x) of the grid.")
    return places  # type: ignore[return-value]


__all__ = ["Attention", "attention", "mass", "weights"]
