"""Where an attention is computed, and what it is given: queries, keys and values, after norm and rotation.

Torch's attention function is heard where a model calls it, inside of a module, with the very tensors that it is given
(mask, scale and all). What does not go through torch's function is not heard, and the engine says so.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from threading import get_ident
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dit_lens.errors import CaptureError
from dit_lens.families.site import Site, Tokens, submodule, unhook
from dit_lens.plan.plan import Carried

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.hooks import RemovableHandle

PARTS = ("query", "key", "value", "output", "whole")
"""What of an attention a site holds, in the order in which they are visited: edits of the first come into the last."""


@dataclass(frozen=True)
class Attention:
    """One attention of one row: who looks, at what, and how.

    Attributes:
        q: [query, head, channel], of all tokens that look.
        k: [key, head, channel], of all tokens that are looked at.
        v: [key, head, channel].
        mask: added to the logits, or booleans of what may be seen, [1 or head, 1 or query, key]; None where all is seen.
        scale: of the logits: softmax(scale q k + mask).
        queries: how the queries' tokens stand.
        keys: how the keys' tokens stand.
        chosen: positions of the keys of the grid that are asked for; None for all of them.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None
    scale: float
    queries: Tokens
    keys: Tokens
    chosen: tuple[int, ...] | None = None

    @property
    def heads(self) -> int:
        """Number of heads."""
        return int(self.q.shape[1])

    @property
    def device(self) -> torch.device:
        """Where it stands."""
        return self.q.device

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(frame, y, x) of the queries, and channels of a head: the dimensions of a value on their grid."""
        return (*self.queries.grid, int(self.q.shape[2]))

    def of_heads(self, heads: tuple[int, ...]) -> Attention:
        """Return the attention of some heads."""
        if heads == tuple(range(self.heads)):
            return self
        first, last = heads[0], heads[-1] + 1
        chosen = slice(first, last) if heads == tuple(range(first, last)) else list(heads)
        mask = self.mask if self.mask is None or self.mask.shape[0] == 1 else self.mask[chosen]
        q, k, v = (part[:, chosen] for part in (self.q, self.k, self.v))
        return replace(self, q=q, k=k, v=v, mask=mask)

    def of_keys(self, chosen: tuple[int, ...] | None) -> Attention:
        """Return it, asked for some keys of the grid only; all are looked at as before."""
        return replace(self, chosen=chosen)

    def copied(self) -> Attention:
        """Return it with tensors of its own."""
        mask = None if self.mask is None else self.mask.clone()
        return replace(self, q=self.q.clone(), k=self.k.clone(), v=self.v.clone(), mask=mask)


@dataclass(frozen=True)
class Heard:
    """The arguments of one call of an attention function, on all rows.

    Attributes:
        q: [row, token, head, channel].
        k: [row, token, head, channel].
        v: [row, token, head, channel].
        mask: [row or 1, head or 1, query or 1, key]; None where all is seen.
        scale: of the logits.
        beside: keys before and after those of the stream that is looked at, where several share the attention.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None
    scale: float
    beside: tuple[int, int] = (0, 0)

    @property
    def k_of_stream(self) -> Tensor:
        """The keys of the stream that is looked at, [row, token, channel of all heads]."""
        before, after = self.beside
        return self.k[:, before : self.k.shape[1] - after].flatten(2)

    def of_queries(self, part: slice) -> Heard:
        """Return what some of the queries see."""
        mask = self.mask if self.mask is None or self.mask.shape[2] == 1 else self.mask[:, :, part]
        return replace(self, q=self.q[:, part], mask=mask)

    def of_row(
        self, row: int, queries: Tokens, keys: Tokens, chosen: tuple[int, ...] | None = None
    ) -> Attention:
        """Return what one row sees."""
        mask = self.mask
        if mask is not None:
            mask = mask[row if mask.shape[0] > 1 else 0]
        return Attention(self.q[row], self.k[row], self.v[row], mask, self.scale, queries, keys, chosen)


Visit = Callable[[Any], Tensor | None]


@dataclass(frozen=True)
class JoinedTokens:
    """How the tokens of one stream come into a joint attention, which takes those of several in one sequence.

    Attributes:
        argument: name of the module's argument that carries them.
        projection: path below the module of the linear layer that makes their values.
    """

    argument: str
    projection: str


@dataclass(frozen=True)
class AttentionSite(Site):
    """A site in an attention: its queries, keys or values as they are given to it, its output, or all of it.

    Attributes:
        part: one of `PARTS`; `whole` is read by records of attention alone.
        number: which call of the attention function it is inside of the module, from 0 on.
        keys: stream of the tokens that are looked at.
        like: path below the block to a linear layer that gives as many channels.
        plain: name of a class of which the module's call is the attention itself, unmasked, of (queries, keys, values), each
            [row, token, channel of all heads], with `num_heads`: it is read there, whatever function it goes through.
        own: in a joint attention, how the tokens of the site's stream come into it. None elsewhere.
        looked_at: in a joint attention, how those of the stream `keys` do.
    """

    part: str = "query"
    number: int = 0
    keys: str = "video"
    like: str = ""
    plain: str = ""
    own: JoinedTokens | None = None
    looked_at: JoinedTokens | None = None

    def carried(self, block: nn.Module, channels: int) -> Carried:
        """Return what the site holds of every token; see `Site.carried`."""
        heads = self.head_count(block)
        width = Site(self.like).width(block) if self.like else 0
        return Carried(width // heads if heads else 0, heads, self.part == "whole", self.keys)

    def attach(self, module: nn.Module, visit: Visit) -> RemovableHandle:
        """Let `visit` see the part, as [row, token, channel of all heads], and replace it; `whole` as `Heard`.

        See `Site.attach`. The calls are heard only while `listening`.
        """
        owner = get_ident()
        seen = visit if self.own is None else self._in_joint(visit)

        def enter(target: nn.Module, args: Any, kwargs: Any) -> Any:
            if get_ident() != owner:
                return None
            if type(target).__name__ == self.plain:
                return self._given(target, (args, kwargs), visit)
            _inside().enter(target, (self.number, PARTS.index(self.part), seen))
            for part in filter(None, (self.own, self.looked_at)):
                given = Site("", "input", item=(part.argument,)).of_inputs(target, (args, kwargs))
                _inside().notes[-1][part.argument] = given
            return None

        def project(path: str) -> Any:
            def note(target: nn.Module, args: Any, output: Tensor) -> None:
                if get_ident() == owner and _inside().notes:
                    _inside().notes[-1][path] = args[0], output

            note.visit = visit  # type: ignore[attr-defined]
            return note

        def leave(target: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            if get_ident() != owner:
                return None
            if type(target).__name__ == self.plain:
                return None if output is None else self._made(target, (args, kwargs), output, visit)
            _inside().leave(target)
            return None

        enter.visit = leave.visit = visit  # type: ignore[attr-defined]  # by which `unhook` knows them
        module.register_forward_hook(leave, with_kwargs=True, always_call=True)
        for path in self._projections():
            module.get_submodule(path).register_forward_hook(project(path))
        return module.register_forward_pre_hook(enter, with_kwargs=True)

    def detach(self, module: nn.Module, visit: Visit) -> None:
        """Remove the hooks of `attach`, those of a joint attention's projections too."""
        for path in ("", *self._projections()):
            unhook(submodule(module, path), visit)

    def _projections(self) -> set[str]:
        return {part.projection for part in (self.own, self.looked_at) if part is not None}

    def _in_joint(self, visit: Visit) -> Visit:
        """Return a visit of the stream's own tokens in the sequence of a joint attention."""
        assert self.own is not None
        own, looked_at = self.own, self.looked_at

        def within(h: Tensor | Heard) -> Tensor | None:
            notes = _inside().notes[-1]
            part = _place(own, notes)
            if isinstance(h, Heard):
                keys, total = _place(looked_at or own, notes), h.k.shape[1]
                visit(replace(h.of_queries(part), beside=(keys.start, total - keys.stop)))
                return None
            new = visit(h[:, part])
            if new is None:
                return None
            out = h.clone()
            out[:, part] = new
            return out

        return within

    def _given(self, module: nn.Module, inputs: Any, visit: Visit) -> Any:
        """Let a plain attention's queries, keys or values be seen before it runs; return its arguments where they changed."""
        if self.part not in PARTS[:3]:
            return None
        site = Site("", "input", item=(PARTS.index(self.part),))
        new = visit(site.of_inputs(module, inputs))
        return None if new is None else site.into_inputs(module, inputs, new)

    def _made(self, module: nn.Module, inputs: Any, output: Tensor, visit: Visit) -> Tensor | None:
        """Let a plain attention's output be seen, or all that it was given."""
        if self.part == "output":
            return visit(output)
        if self.part == "whole":
            given = (Site("", "input", item=(n,)).of_inputs(module, inputs) for n in range(3))
            count = int(module.num_heads)  # type: ignore[arg-type]
            query, key, value = (part.unflatten(2, (count, -1)) for part in given)
            visit(Heard(query, key, value, None, query.shape[-1] ** -0.5))
        return None


class Inside:
    """The modules that run in this thread and are listened to, the innermost last."""

    def __init__(self) -> None:
        self.modules: list[nn.Module] = []
        self.visits: list[list[tuple[int, int, Visit]]] = []
        self.calls: list[int] = []
        self.notes: list[dict[str, Any]] = []  # of the tokens that come into a joint attention

    def enter(self, module: nn.Module, visit: tuple[int, int, Visit]) -> None:
        """A module begins, where a visit is wanted."""
        if not self.modules or self.modules[-1] is not module:
            self.modules.append(module)
            self.visits.append([])
            self.calls.append(0)
            self.notes.append({})
        self.visits[-1].append(visit)

    def leave(self, module: nn.Module) -> None:
        """A module ends."""
        if self.modules and self.modules[-1] is module:
            for kept in (self.modules, self.visits, self.calls, self.notes):
                kept.pop()

    def wanted(self) -> dict[str, list[Visit]]:
        """Return the visits of the next call of the attention function, by part."""
        number = self.calls[-1]
        self.calls[-1] += 1
        visits = sorted((v for v in self.visits[-1] if v[0] == number), key=lambda v: v[1])
        return {part: [v[2] for v in visits if v[1] == n] for n, part in enumerate(PARTS)}


def _place(part: JoinedTokens, notes: dict[str, Any]) -> slice:
    """Return where the tokens of a stream stand in the sequence of a joint attention, by the values that are made of them.

    Raises:
        CaptureError: that is not known: they are nowhere, or in two places.
    """
    value: Tensor = notes["value"]
    given, (taken, made) = notes[part.argument], notes.get(part.projection, (None, None))
    count, total = given.shape[1], value.shape[1]
    starts: set[int] = set()
    if made is not None and made.shape[0] == value.shape[0]:
        joined = taken.shape[1] == total > count  # one projection of all streams, which were joined before it
        whole, own = (taken, given) if joined else (value, made)
        if not joined or torch.equal(made, value):
            starts = {n for n in (0, total - count) if torch.equal(whole[:, n : n + count], own)}
    if len(starts) != 1:
        raise CaptureError(
            f"A joint attention of {total} tokens: where the {count} of {part.argument} stand in it is not known, so none of "
            "its sites can be read."
        )
    start = starts.pop()
    return slice(start, start + count)


class _Threads(threading.local):
    inside: Inside | None = None


_THREADS = _Threads()


def _inside() -> Inside:
    if _THREADS.inside is None:
        _THREADS.inside = Inside()
    return _THREADS.inside


@contextmanager
def listening() -> Iterator[None]:
    """Hear the calls of torch's attention function in this thread, inside of the modules that sites are attached to."""
    before, _THREADS.inside = _THREADS.inside, Inside()
    try:
        with _Listener():
            yield
    finally:
        _THREADS.inside = before


@contextmanager
def resting() -> Iterator[None]:
    """Hear nothing in this thread: what a record or an edit computes is no attention of the model's."""
    before, _THREADS.inside = _THREADS.inside, None
    try:
        yield
    finally:
        _THREADS.inside = before


class _Listener(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inside = _THREADS.inside
        if func is not F.scaled_dot_product_attention or inside is None or not inside.modules:
            return func(*args, **(kwargs or {}))
        visits = inside.wanted()
        if not any(visits.values()):
            return func(*args, **(kwargs or {}))
        return _visited(func, visits, *args, **(kwargs or {}))


def _visited(
    function: Callable[..., Tensor],
    visits: dict[str, list[Visit]],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attend, [row, head, token, channel], with every part seen, and maybe replaced, on its way.

    Raises:
        CaptureError: the heads of queries and keys are not as many, or the tensors are of other dimensions.
    """
    if query.ndim != 4 or key.shape[1] != query.shape[1]:
        raise CaptureError(
            f"An attention of queries {tuple(query.shape)} and keys {tuple(key.shape)}: its sites are known for [row, head, "
            "token, channel], with a key for every head of the queries."
        )
    _inside().notes[-1]["value"] = value.transpose(1, 2).flatten(2)
    query, key, value = (
        _seen(part, visits[name]) for part, name in zip((query, key, value), PARTS[:3], strict=True)
    )
    for visit in visits["whole"]:
        q, k, v = (part.transpose(1, 2) for part in (query, key, value))
        mask = _whole_mask(attn_mask, is_causal, query, key)
        visit(Heard(q, k, v, mask, query.shape[-1] ** -0.5 if scale is None else scale))
    out = function(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    return _seen(out, visits["output"])


def _seen(part: Tensor, visits: list[Visit]) -> Tensor:
    for visit in visits:
        new = visit(part.transpose(1, 2).flatten(2))
        if new is not None:
            part = new.unflatten(2, (part.shape[1], -1)).transpose(1, 2)
    return part


def _whole_mask(mask: Tensor | None, is_causal: bool, query: Tensor, key: Tensor) -> Tensor | None:
    """Return a mask as [row or 1, head or 1, query or 1, key]."""
    if is_causal:
        size = query.shape[2], key.shape[2]
        return torch.ones(size, dtype=torch.bool, device=query.device).tril()[None, None]
    if mask is None:
        return None
    while mask.ndim < 4:
        mask = mask[None]
    return mask


__all__ = [
    "Attention",
    "AttentionSite",
    "Heard",
    "listening",
    "resting",
]
