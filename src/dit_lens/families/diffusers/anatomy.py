"""Where in a diffusers transformer the blocks are, and where in a block the streams stand.

Block classes are those of diffusers' own `TransformerBlockRegistry`; nothing is guessed from a class's name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import nn

from dit_lens.errors import CaptureError, PlanError
from dit_lens.families.attention import AttentionSite, JoinedTokens
from dit_lens.families.attention_sites import sites_of_attention, sites_of_image
from dit_lens.families.patching import refuse_compiled
from dit_lens.families.site import Site

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

    from dit_lens.families.family import Anatomy

Sites = dict[str, dict[str, Site]]
"""Stream name to site name to where it is."""


BESIDE = ("vace_blocks", "text_transformer_blocks")
"""Lists of blocks that do not carry the video's hidden state: hints of Wan VACE, the text of Kandinsky 5."""
ROW_BY_ROW = ("MochiAttention",)
"""Joint attentions that attend to one row after the other, without its padding: not one sequence of all rows."""
TEMPORAL = "temporal_transformer_blocks"
"""A list whose blocks run in turns with those of another one."""


def block_lists(dit: nn.Module) -> tuple[str, ...]:
    """Return the names of a transformer's lists of blocks, in the order in which they run.

    Raises:
        PlanError: the registry knows none of its blocks, or some of them only.
    """
    from diffusers.hooks._common import _ALL_TRANSFORMER_BLOCK_IDENTIFIERS as KNOWN

    refuse_compiled("transformer", dit)
    children = {name: list(child) for name, child in dit.named_children() if isinstance(child, nn.ModuleList)}
    lists = {name: blocks for name, blocks in children.items() if blocks and name not in BESIDE}
    registered = {name: [metadata(block) is not None for block in blocks] for name, blocks in lists.items()}
    complete = tuple(name for name, known in registered.items() if name in KNOWN and all(known))
    kinds = {name: "/".join(sorted({type(b).__name__ for b in blocks})) for name, blocks in lists.items()}
    if not complete:
        raise PlanError(
            f"diffusers' TransformerBlockRegistry knows none of the block lists of {type(dit).__name__} ({kinds}): "
            "register every class of them (diffusers.hooks.TransformerBlockRegistry), or write a family "
            "(docs/adding-a-family.md)."
        )
    missing = {
        name: kinds[name]
        for name, known in registered.items()
        if name not in complete and (name in KNOWN or any(known) or name.endswith(("blocks", "layers")))
    }
    if missing:
        raise PlanError(
            f"{type(dit).__name__}: the blocks in {', '.join(complete)} are known, those in {missing} are not "
            "(their class is not in "
            "diffusers' TransformerBlockRegistry, or the list is none that diffusers names), and layers would be left out in "
            "silence. Register their classes (diffusers.hooks.TransformerBlockRegistry), or write a family "
            "(docs/adding-a-family.md)."
        )
    if TEMPORAL in complete and len(complete) > 1:
        raise PlanError(
            f"{type(dit).__name__}: the blocks of {' and '.join(complete)} run in turns, so they cannot be "
            "numbered one list after "
            "the other: write a family (docs/adding-a-family.md)."
        )
    return complete


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
    arguments = [
        first.hidden_states_argument_name,
        *([first.encoder_hidden_states_argument_name] if joint else []),
    ]
    for kind in known:
        absent = [name for name in arguments if name not in inspect.signature(kind.forward).parameters]
        if absent:
            raise PlanError(
                f"{kind.__name__} is registered with the arguments {absent}, which it does not take."
            )
    # Some classes that are registered at 0 return the tensor itself, and no tuple.
    place = hidden if joint or hidden else None
    streams: Sites = {"video": _ends(first.hidden_states_argument_name, place)}
    if joint:
        streams["text"] = _ends(first.encoder_hidden_states_argument_name, text)
    if len(known) == 1:  # what is inside differs between kinds of block
        for stream, inner in _inside(blocks, joint).items():
            streams.setdefault(stream, {}).update(inner)
    return streams


def watch_outputs(dit: nn.Module, anatomy: Anatomy) -> Callable[[], None]:
    """Check, as the first block of every list runs, that it returns what the registry says; returns what undoes it.

    A registered place that is wrong would read one stream under the name of another.
    """
    handles: dict[nn.Module, RemovableHandle] = {}

    def check(block: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        handles.pop(block).remove()  # once is enough
        _check_output(block, args, kwargs, output)

    def remove() -> None:
        while handles:
            handles.popitem()[1].remove()

    for path in anatomy.blocks:
        block = dit.get_submodule(f"{path}.0")
        handles[block] = block.register_forward_hook(check, with_kwargs=True)
    return remove


def _check_output(block: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
    """Compare what a block returns with what is registered of its class.

    Raises:
        CaptureError: they do not agree.
    """
    known = metadata(block)
    places = [known.return_hidden_states_index, known.return_encoder_hidden_states_index]
    what = f"{type(block).__name__} is registered as returning (hidden state, text) at {tuple(places)}"
    tensors = [n for n, v in enumerate(output) if hasattr(v, "shape")] if isinstance(output, tuple) else [0]
    if places[1] is None and len(tensors) > 1:
        raise CaptureError(
            f"{what}, and returns {len(tensors)} tensors: which one is the video's is not known. Register both places "
            "(TransformerBlockMetadata)."
        )
    if places[0] not in tensors:
        raise CaptureError(f"{what}, and returns tensors at {tensors} alone: mend the registration.")
    value = output[places[0]] if isinstance(output, tuple) else output
    name = known.hidden_states_argument_name
    state = Site("", "input", item=(name,)).of_inputs(block, (args, kwargs))
    if value.shape != state.shape:
        raise CaptureError(
            f"{what}, where it returns {tuple(value.shape)}; it is given {name} of {tuple(state.shape)}: mend the registration."
        )


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
    if feed_forward := paths.get("ffn", (None,))[0]:
        inner["video"]["ffn_in"] = Site(feed_forward, "input", "feed-forward input, after modulation")
    if not joint and attention is not None:
        inner["video"] |= _heads(blocks, attention)[0]
        if (cross := module("attn2")) is not None:
            looking, seen = _heads(blocks, cross, cross=True, keys="text", words="cross-attention")
            inner["video"] |= looking
            inner["text"] = seen
            if seen and module(f"{cross}.add_k_proj"):  # which is computed before the prompt's
                projections = (f"{cross}.to_q", f"{cross}.add_k_proj", f"{cross}.add_v_proj")
                of_image, inner["image"] = sites_of_image(cross, f"{cross}.heads", projections, number=0)
                inner["video"] |= of_image
    if joint and attention is not None:
        for stream, sites_of_stream in _joint_heads(blocks, attention).items():
            inner.setdefault(stream, {}).update(sites_of_stream)
    if joint and attention is not None and module("ff_context"):
        inner["text"] |= {
            "self_attn": Site(attention, long_name=f"{what} output, before its gate", item=(1,)),
            "ffn": Site("ff_context", long_name="feed-forward output, before its gate"),
        }
    return inner


def _joint_heads(blocks: list[nn.Module], path: str) -> Sites:
    """Return the sites in a joint attention of diffusers' shape, by stream. Where each stream stands in it is seen as it runs."""
    attentions = [block.get_submodule(path) for block in blocks]
    known = [isinstance(getattr(one, "heads", None), int) and _has(one, "to_v") for one in attentions]
    if not all(known) or type(attentions[0]).__name__ in ROW_BY_ROW:
        return {"video": {}, "text": {}}
    text = "add_v_proj" if all(_has(one, "add_v_proj") for one in attentions) else "to_v"
    parts = {
        "video": JoinedTokens("hidden_states", "to_v"),
        "text": JoinedTokens("encoder_hidden_states", text),
    }

    def site(stream: str, part: str, words: str, keys: str) -> Site:
        return AttentionSite(
            path,
            long_name=f"joint attention{words}",
            heads=f"{path}.heads",
            part=part,
            keys=keys,
            like=f"{path}.to_v",
            own=parts[stream],
            looked_at=parts[keys],
        )

    return {
        stream: {
            "attn_q": site(stream, "query", " queries, as attention gets them", stream),
            "attn_k": site(stream, "key", " keys, as attention gets them", stream),
            "attn_v": site(stream, "value", " values, as attention gets them", stream),
            "attention": site(stream, "whole", ", to its own stream", stream),
            f"{other}_attention": site(stream, "whole", ", to the other stream", keys),
            "heads": site(stream, "output", " heads, before their projection", stream),
        }
        for stream, other, keys in (("video", "cross", "text"), ("text", "video", "video"))
    }


def _heads(blocks: list[nn.Module], path: str, **words: Any) -> tuple[dict[str, Site], dict[str, Site]]:
    """Return the sites in an attention of diffusers' shape: `heads`, projections `to_q`, ..., and `to_out.0`."""
    attentions = [block.get_submodule(path) for block in blocks]
    parts = ("to_q", "to_k", "to_v", "to_out.0")
    if not all(isinstance(getattr(one, "heads", None), int) for one in attentions) or not all(
        _has(one, part) for one in attentions for part in parts
    ):
        return {}, {}
    # An attention with added keys attends to them first: to the tokens of an image.
    added = words.get("cross") and getattr(attentions[0], "add_k_proj", None) is not None
    q, k, v, out = (f"{path}.{part}" for part in parts)
    return sites_of_attention(path, f"{path}.heads", (q, k, v), out, number=int(bool(added)), **words)


def _has(block: nn.Module, path: str) -> bool:
    try:
        return isinstance(block.get_submodule(path), nn.Module)
    except AttributeError:
        return False


def width(dit: nn.Module) -> int:
    """Return the number of channels of a transformer's hidden state.

    Raises:
        PlanError: its configuration does not say.
    """
    config: Any = dit.config
    channels = getattr(dit, "inner_dim", None) or getattr(config, "model_dim", None)
    if channels is None and hasattr(config, "num_attention_heads") and hasattr(config, "attention_head_dim"):
        channels = config.num_attention_heads * config.attention_head_dim
    if channels is None:
        raise PlanError(
            f"{type(dit).__name__} does not say how many channels its hidden state has: write a family (docs/adding-a-family.md)."
        )
    return int(channels)
