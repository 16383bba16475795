"""Where in a diffusers transformer the blocks are, and where in a block the streams stand.

Block classes are those of diffusers' own `TransformerBlockRegistry`; nothing is guessed from a class's name.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from dit_lens.errors import PlanError
from dit_lens.families.site import Site

Sites = dict[str, dict[str, Site]]
"""Stream name to site name to where it is."""


def block_lists(dit: nn.Module) -> tuple[str, ...]:
    """Return the names of a transformer's lists of blocks, in the order in which they run.

    Raises:
        PlanError: the registry knows none of its blocks.
    """
    from diffusers.hooks._common import _ALL_TRANSFORMER_BLOCK_IDENTIFIERS as KNOWN

    children = {name: list(child) for name, child in dit.named_children() if isinstance(child, nn.ModuleList)}
    found = tuple(n for n, blocks in children.items() if n in KNOWN and blocks and all(map(metadata, blocks)))
    if not found:
        kinds = {n: type(blocks[0]).__name__ for n, blocks in children.items() if blocks}
        raise PlanError(
            f"diffusers' TransformerBlockRegistry knows none of the block lists of {type(dit).__name__} ({kinds}): "
            "register the class there (diffusers.hooks.TransformerBlockRegistry), or write a family (docs/adding-a-family.md)."
        )
    return found


def metadata(block: nn.Module) -> Any:
    """Return what the registry says of a block; None where it does not know it."""
    from diffusers.hooks._helpers import TransformerBlockRegistry

    try:
        return TransformerBlockRegistry.get(type(block))
    except ValueError:
        return None


def sites(dit: nn.Module, lists: tuple[str, ...]) -> Sites:
    """Return the sites that all blocks have, by stream.

    Raises:
        PlanError: the lists carry their streams at different places.
    """
    blocks = [block for name in lists for block in getattr(dit, name)]
    known = {type(block): metadata(block) for block in blocks}
    places = {(m.return_hidden_states_index, m.return_encoder_hidden_states_index) for m in known.values()}
    if len(places) > 1:
        raise PlanError(
            f"{type(dit).__name__}: its kinds of block, {sorted(k.__name__ for k in known)}, return the hidden state at "
            f"different places, {sorted(places, key=str)}: not supported."
        )
    (first, *_), ((hidden, text),) = known.values(), places
    joint = text is not None
    found: Sites = {"video": _ends(first.hidden_states_argument_name, hidden if joint else None)}
    if joint:
        found["text"] = _ends(first.encoder_hidden_states_argument_name, text)
    if len(known) == 1:  # what is inside differs between kinds of block
        for stream, inner in _inside(blocks, joint).items():
            found[stream] |= inner
    return found


def _ends(argument: str, index: int | None) -> dict[str, Site]:
    return {
        "block": Site(
            "", long_name="residual stream after the block", item=None if index is None else (index,)
        ),
        "block_in": Site("", "input", long_name="residual stream before the block", item=(argument,)),
    }


def _inside(blocks: list[nn.Module], joint: bool) -> Sites:
    """Return the sites below a block, by the names that diffusers' classes share."""

    def module(*paths: str) -> str | None:
        return next((p for p in paths if all(_has(block, p) for block in blocks)), None)

    attention = module("attn1", "attn")
    what = "joint attention" if joint else "self-attention"
    paths = {"self_attn": (attention, f"{what} output, before its gate")}
    # One projection for text and video together holds neither alone.
    if not joint or (attention and module(f"{attention}.add_q_proj")):
        paths["ffn"] = module("ffn", "ff"), "feed-forward output, before its gate"
        for name in "qkv":
            paths[name] = module(f"{attention}.to_{name}"), f"{what} {name} projection"
    if not joint:
        paths["cross_attn"] = module("attn2"), "cross-attention output"
    inner = {"video": {n: Site(p, long_name=words) for n, (p, words) in paths.items() if p is not None}}
    if joint and attention is not None and module("ff_context"):
        inner["text"] = {
            "self_attn": Site(attention, long_name=f"{what} output, before its gate", item=(1,)),
            "ffn": Site("ff_context", long_name="feed-forward output, before its gate"),
        }
    return inner


def _has(block: nn.Module, path: str) -> bool:
    try:
        return isinstance(block.get_submodule(path), nn.Module)
    except AttributeError:
        return False


def width(dit: nn.Module) -> int:
    """Return the number of channels of a transformer's hidden state."""
    config: Any = dit.config
    return int(getattr(dit, "inner_dim", 0) or config.num_attention_heads * config.attention_head_dim)
