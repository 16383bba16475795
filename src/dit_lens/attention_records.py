"""Records of attention: what looks at what, kept as small reductions, since the map itself is never held.

Each is computed anew from the queries and keys that the model's own attention was given (after norm, rotation, mask and edits):
softmax(scale q k + mask). Sums over groups of keys (the words of a prompt, latent frames) go through the same kernel as the
model's attention, with an indicator of the group in place of the values, so they cost about one attention; what needs every
weight (entropy, mass on self) is computed in blocks of queries, in float32.

Here `a` is an `Attention`: the queries and keys of one row, of the selected heads.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dit_lens.errors import PlanError
from dit_lens.families.attention import Attention
from dit_lens.families.site import Tokens
from dit_lens.plan.functions import Configured, options
from dit_lens.plan.places import whole_number
from dit_lens.records import keeps

BLOCK_BYTES = 64 << 20
"""Of the weights that are held at once, in float32."""
CACHE_BYTES = 4 << 20
"""The same on a CPU, whose caches are small."""


def weights(a: Attention, queries: Tensor) -> Tensor:
    """Return the attention of some queries, [head, query, key], in float32: all keys, those beside the grid too.

    Args:
        a: the attention.
        queries: positions of tokens, [query], counted from the first token that looks.
    """
    return logits(a, queries).softmax(-1)


def logits(a: Attention, queries: Tensor) -> Tensor:
    """Return scale q k + mask of some queries, [head, query, key], in float32; -inf where a key may not be seen.

    Args:
        a: the attention.
        queries: positions of tokens, [query], counted from the first token that looks.
    """
    query, key = (part.float().transpose(0, 1) for part in (a.q[queries], a.k))
    products = (query * a.scale) @ key.transpose(1, 2)
    if a.mask is None:
        return products
    mask = a.mask if a.mask.shape[1] == 1 else a.mask[:, queries]
    if mask.dtype == torch.bool:
        return products.masked_fill(~mask, -math.inf)
    return products + mask.float()


def mass(a: Attention, groups: Tensor, count: int) -> Tensor:
    """Return how much every query of the grid looks at groups of keys, [head, query, group], in float32.

    The model's own kernel attends to an indicator of each group; in its number type, whose rounding the result has.

    Args:
        a: the attention.
        groups: number of each key's group, [key]; -1 for keys of none.
        count: of groups.
    """
    part, width = a.queries.part, a.q.shape[2]
    q, k, mask = a.q[part].transpose(0, 1)[None], a.k.transpose(0, 1)[None], a.mask
    if mask is not None:
        mask = (mask if mask.shape[1] == 1 else mask[:, part])[None]
    sums = []
    for first in range(0, count, width):  # kernels want values as wide as keys
        wanted = torch.arange(first, first + width, device=a.device)
        seen = (groups[:, None].to(a.device) == wanted).to(a.q.dtype).expand(1, a.heads, -1, -1)
        of_groups = F.scaled_dot_product_attention(q, k, seen, mask, scale=a.scale)[0]
        sums.append(of_groups[..., : count - first].float())
    return torch.cat(sums, -1)


def _grid_groups(tokens: Tokens, numbers: Tensor) -> Tensor:
    """Return the groups of all tokens, of which those beside the grid have none."""
    groups = torch.full((tokens.total,), -1)
    groups[tokens.part] = numbers
    return groups


def _frames(tokens: Tokens) -> Tensor:
    frame, y, x = tokens.grid
    return torch.arange(frame).repeat_interleave(y * x)


def _over_heads(a: Attention, heads: str, of: Callable[[Attention], Tensor], each: int = 1) -> Tensor:
    """Return a value of each head, [head, ...], or its mean over them, of which few heads are held at once.

    Args:
        a: the attention.
        heads: "all" or "mean".
        of: an attention of some heads to their values, [head, ...].
        each: values of a query.
    """
    size = max(1, BLOCK_BYTES // (4 * a.queries.count * max(a.q.shape[2], each)))
    parts = (of(a.of_heads(tuple(part))) for part in _batched(a.heads, size))
    if heads == "all":
        return torch.cat(list(parts))
    total = next(parts).sum(0)
    while (part := next(parts, None)) is not None:
        total += part.sum(0)
        del part  # before the next one is made
    return total / a.heads


def _batched(count: int, size: int) -> Iterator[range]:
    """Yield the positions up to a count, some at a time."""
    for first in range(0, count, size):
        yield range(first, min(first + size, count))


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
    """Yield positions of queries on the grid, and their logits [head, query, key], of which few are held at once."""
    size = max(1, (BLOCK_BYTES if a.q.is_cuda else CACHE_BYTES) // (4 * a.heads * a.k.shape[0]))
    for block in positions.split(size):
        yield block, logits(a, block.to(a.device) + a.queries.before)


def _maps(a: Attention, queries: int | None, of: Callable[[Tensor, Tensor], Tensor], *more: int) -> Tensor:
    """Return values of every query on the grid, [head, frame, y, x, *more]; NaN for queries that are left out.

    Args:
        a: the attention.
        queries: of each frame; None for all.
        of: (logits [head, query, key], positions of the queries) to their values, [head, query, *more].
        more: sizes of what a query has.
    """
    out = torch.full((a.heads, a.queries.count, *more), math.nan, device=a.device)
    exact = replace(a, q=a.q.float(), k=a.k.float())  # once, not for every block
    for block, of_block in _blocks(exact, _sampled(a, queries)) if not a.q.is_meta else ():
        out[:, block.to(a.device)] = of(of_block, block)
    return _on_grid(a, out)


# ---- the records


def reads(
    *dims: str, site: str, looks_at: tuple[str, ...] | None = None, units: str = "1", long_name: str
) -> Callable[[Any], Any]:
    """Declare a record of attention: what it keeps, and which attention it reads unless the place says otherwise.

    Args:
        dims: of its result.
        site: of the attention.
        looks_at: what the keys may be: "itself", the stream that looks; "frames", another stream that has them; "text",
            "image". None: anything.
        units: of its values.
        long_name: what it is, in words.
    """

    def declare(function: Any) -> Any:
        function.reads_attention, function.looks_at = True, looks_at
        return keeps(*dims, site=site, units=units, long_name=long_name)(function)

    return declare


@options
@reads(
    "frame",
    "y",
    "x",
    "text_token",
    site="cross_attention",
    looks_at=("text",),
    long_name="attention to each token of the prompt",
)
def attention_to_text(a: Attention, *, heads: str = "mean") -> Tensor:
    """How much every place looks at each token of the prompt, padding and special tokens among them."""
    return _over_heads(a, heads, _to_each_key, len(_keys(a)))


@options
@reads(
    "frame",
    "y",
    "x",
    "image_token",
    site="image_attention",
    looks_at=("image",),
    long_name="attention to each token of the image",
)
def attention_to_image(a: Attention, *, heads: str = "mean") -> Tensor:
    """How much every place looks at each token of the image that an image-to-video model is given."""
    return _over_heads(a, heads, _to_each_key, len(_keys(a)))


def _to_each_key(a: Attention) -> Tensor:
    place = _keys(a).to(a.device)
    return _maps(a, None, lambda logits, _: logits.softmax(-1)[..., place], len(place))


def _keys(a: Attention) -> Tensor:
    """Return the positions of the keys that are asked for, among all of them."""
    chosen = torch.arange(a.keys.count) if a.chosen is None else torch.tensor(a.chosen)
    return chosen + a.keys.before


@options
@reads(
    "frame",
    "key_frame",
    site="attention",
    looks_at=("itself", "frames"),
    long_name="attention from frame to frame",
)
def attention_over_frames(a: Attention, *, heads: str = "mean", queries: int | None = None) -> Tensor:
    """How much the places of a latent frame look at each latent frame: the mean over queries, the sum over keys."""
    positions = _sampled(a, queries).to(a.device) + a.queries.before
    frames = a.queries.grid[0]
    mask = a.mask if a.mask is None or a.mask.shape[1] == 1 else a.mask[:, positions]
    some = replace(a, q=a.q[positions], mask=mask, queries=Tokens((frames, 1, len(positions) // frames)))
    groups = _grid_groups(a.keys, _frames(a.keys))

    def of(part: Attention) -> Tensor:
        return _on_grid(part, mass(part, groups, a.keys.grid[0])).mean((2, 3))

    return _over_heads(some, heads, of)


@options
@reads(
    "query", "frame", "y", "x", site="attention", looks_at=("itself",), long_name="where chosen places look"
)
def attention_from(
    a: Attention, *, places: tuple[tuple[int, int, int], ...] = (), heads: str = "mean"
) -> Tensor:
    """Where each of some places (frame, y, x) looks, on the grid of the keys."""
    grid = a.queries.grid
    positions = torch.tensor([(f * grid[1] + y) * grid[2] + x for f, y, x in places], device=a.device)
    of_places = weights(a, positions + a.queries.before)[..., a.keys.part].unflatten(-1, a.keys.grid)
    return of_places if heads == "all" else of_places.mean(0)


@options
@reads(
    "frame",
    "y",
    "x",
    site="attention",
    looks_at=("itself", "frames", "text", "image"),
    units="nat",
    long_name="entropy of attention",
)
def attention_entropy(a: Attention, *, heads: str = "mean", queries: int | None = None) -> Tensor:
    """Entropy of where every place looks, in nats, over all keys: 0 for one key, log n for n alike."""

    def entropy(logits: Tensor, _: Tensor) -> Tensor:
        return torch.special.entr(logits.softmax(-1)).sum(-1)

    return _over_heads(a, heads, lambda part: _maps(part, queries, entropy))


@options
@reads("frame", "y", "x", site="attention", looks_at=("itself",), long_name="attention to itself")
def attention_to_self(a: Attention, *, heads: str = "mean", queries: int | None = None) -> Tensor:
    """How much every place looks at itself."""

    def own(logits: Tensor, block: Tensor) -> Tensor:
        place = (block + a.keys.before).to(a.device)
        of_itself = logits.gather(-1, place.expand(len(logits), -1)[..., None])[..., 0]
        return (of_itself - logits.logsumexp(-1)).exp()

    return _over_heads(a, heads, lambda part: _maps(part, queries, own))


@options
@reads(
    "frame",
    "y",
    "x",
    site="attention",
    looks_at=("itself", "frames"),
    long_name="attention to the first frame",
)
def attention_to_first_frame(a: Attention, *, heads: str = "mean") -> Tensor:
    """How much every place looks at the first latent frame."""
    groups = _grid_groups(a.keys, torch.where(_frames(a.keys) == 0, 0, -1))
    return _over_heads(a, heads, lambda part: _on_grid(part, mass(part, groups, 1))[..., 0])


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
    takes = inspect.signature(maker).parameters
    if "queries" in more and "queries" not in takes:
        raise PlanError(
            f"{maker.__name__}(queries=...): every place looks there; queries= goes with over='frames', entropy and to='self'."
        )
    made: Configured = maker(heads=heads, **more)
    return made


def _places(from_: Any) -> tuple[tuple[int, int, int], ...]:
    try:
        places = tuple(tuple(whole_number(n) for n in place) for place in from_)
    except TypeError:
        places = ()
    if not places or any(len(place) != 3 or None in place for place in places):
        raise PlanError(f"attention(from_={from_!r}): a list of places (frame, y, x) of the grid.")
    return places  # type: ignore[return-value]


__all__ = ["Attention", "attention", "logits", "mass", "reads", "weights"]
