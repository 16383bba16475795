"""How diffusers' pipelines lay out latents, and where they stand in what a model is given.

The library works on [row, channel, frame, y, x]. Pipelines keep videos in one of three orders, images without frames,
and packed tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from dit_lens.errors import CaptureError, PlanError

if TYPE_CHECKING:
    from torch import Tensor

Triple = tuple[int, int, int]
ORDER = "bcfyx"
"""The library's order of dimensions: row, channel, frame, y, x."""
LAYOUTS = {
    **dict.fromkeys(("CogVideoXTransformer3DModel", "ConsisIDTransformer3DModel"), "bfcyx"),
    "Kandinsky5Transformer3DModel": "bfyxc",
    **dict.fromkeys(
        (
            *("WanTransformer3DModel", "WanVACETransformer3DModel", "WanAnimateTransformer3DModel"),
            *("SkyReelsV2Transformer3DModel", "ChronoEditTransformer3DModel", "MochiTransformer3DModel"),
            *("HunyuanVideoTransformer3DModel", "HunyuanVideo15Transformer3DModel"),
            *("LTXVideoTransformer3DModel", "CosmosTransformer3DModel", "SanaVideoTransformer3DModel"),
            *("AllegroTransformer3DModel", "EasyAnimateTransformer3DModel"),
        ),
        "bcfyx",
    ),
}
"""Transformer to the order of its latents' dimensions, read off its code."""


@dataclass(frozen=True)
class Arrangement:
    """How the latents of one call stand.

    Attributes:
        grid: (frame, y, x) of the video's tokens.
        pack: latent positions of one token, (frame, y, x), where the pipeline packs latents into tokens.
        layout: order of the dimensions of latents that have five.
        before: latent frames before the video's, such as those of reference images.
    """

    grid: Triple
    pack: Triple = (1, 1, 1)
    layout: str = ORDER
    before: int = 0

    @property
    def channel(self) -> int:
        """The dimension of a pipeline's five-dimensional latents that holds channels."""
        return self.layout.index("c")

    def read(self, x: Tensor) -> Tensor:
        """Return the pipeline's latents as [row, channel, frame, y, x], without frames before the video."""
        return self.read_whole(x)[:, :, self.before :]

    def write(self, x: Tensor, like: Tensor) -> Tensor:
        """Return [row, channel, frame, y, x] as the pipeline has its latents: the inverse of `read`.

        Args:
            x: the video's latents.
            like: latents in the pipeline's own layout; frames before the video are taken from them.
        """
        if self.before:
            x = torch.cat([self.read_whole(like)[:, :, : self.before].to(x.dtype), x], 2)
        return self.write_whole(x, like)

    def read_whole(self, x: Tensor) -> Tensor:
        """Return the pipeline's latents as [row, channel, frame, y, x], with all frames."""
        if x.ndim == 3:
            x = x.unflatten(1, self.grid).unflatten(-1, (-1, *self.pack))
            # now [row, f, y, x, channel, pf, py, px]
            return x.permute(0, 4, 1, 5, 2, 6, 3, 7).flatten(6, 7).flatten(4, 5).flatten(2, 3)
        if x.ndim == 4:
            return x.unsqueeze(2)
        return x.permute([self.layout.index(dim) for dim in ORDER])

    def write_whole(self, x: Tensor, like: Tensor) -> Tensor:
        """Return [row, channel, frame, y, x] in the layout of `like`: the inverse of `read_whole`."""
        if like.ndim == 3:
            (f, h, w), (pf, ph, pw) = self.grid, self.pack
            x = x.unflatten(4, (w, pw)).unflatten(3, (h, ph)).unflatten(2, (f, pf))
            return x.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4, 7).flatten(1, 3).contiguous()
        if like.ndim == 4:
            return x.squeeze(2)
        return x.permute([ORDER.index(dim) for dim in self.layout]).contiguous()


def packing(pipe: Any) -> Triple | None:
    """Return how many latent positions (frame, y, x) one packed token has; None where latents are not packed."""
    if not hasattr(pipe, "_pack_latents"):
        return None
    spatial = getattr(pipe, "transformer_spatial_patch_size", 2)
    return getattr(pipe, "transformer_temporal_patch_size", 1), spatial, spatial


def patch(pipe: Any, dit: Any) -> Triple:
    """Return how many latent positions (frame, y, x) one token has.

    Raises:
        PlanError: the transformer does not say.
    """
    packed = packing(pipe)
    if packed is not None:
        return packed
    size = getattr(dit.config, "patch_size", None)
    if isinstance(size, int):
        return getattr(dit.config, "patch_size_t", None) or 1, size, size
    if not isinstance(size, tuple | list) or len(size) != 3:
        raise PlanError(
            f"{type(pipe).__name__} is not supported: {type(dit).__name__} has patch_size={size!r} in its configuration, which "
            "does not say how many latent positions (frame, y, x) one token has. Write a family for it "
            "(docs/adding-a-family.md), or use dl.blocks(transformer, ...) for the transformer alone."
        )
    t, y, x = size
    return t, y, x


def output_channels(dit: Any) -> int | None:
    """Return how many channels a transformer's output has; None where its configuration does not say."""
    names = ("out_channels", "out_visual_dim", "in_channels")
    channels = (getattr(dit.config, name, None) for name in names)
    return next((int(count) for count in channels if count), None)


def layout_of(dit: Any, latents: Tensor) -> str:
    """Return the order of the dimensions of a transformer's latents, checked against its configuration.

    Args:
        dit: the transformer.
        latents: five dimensions, in the pipeline's own order.

    Raises:
        PlanError: the order is not known, or the configuration contradicts it.
    """
    names = [kind.__name__ for kind in type(dit).__mro__]
    known = next((LAYOUTS[name] for name in names if name in LAYOUTS), None)
    channels = output_channels(dit)

    def fits(layout: str) -> bool:
        # Some models give a variance of as many channels beside the velocity.
        return channels in (None, latents.shape[layout.index("c")], 2 * latents.shape[layout.index("c")])

    possible = [known] if known else sorted(set(LAYOUTS.values()))
    fitting = [layout for layout in possible if fits(layout)]
    if len(fitting) != 1:
        raise PlanError(
            f"{names[0]}: which dimension of its latents {tuple(latents.shape)} is the channel is not known: it gives "
            f"{channels} channels, and {' or '.join(possible)} {'fit' if fitting else 'do not fit'}. Add it to LAYOUTS in "
            "dit_lens.families.diffusers.latents."
        )
    return fitting[0]


def own_channels(dit: Any, x: Tensor) -> Tensor:
    """Return latents without the condition that some pipelines keep behind their channels (Kandinsky 5)."""
    if x.ndim == 5 and getattr(dit.config, "visual_cond", False):
        return x[..., : dit.config.out_visual_dim]
    return x


def arrange(pipe: Any, dit: Any, latents: Tensor, inputs: Mapping[str, Any], before: int = 0) -> Arrangement:
    """Return how the latents of a call stand.

    Args:
        pipe: the pipeline.
        dit: the transformer.
        latents: x_s, as the pipeline has it.
        inputs: the call's arguments, by name.
        before: latent frames before the video's.

    Raises:
        PlanError: the latents are packed, and the call does not say into which grid; or their layout is not known.
    """
    if latents.ndim == 3:
        return Arrangement(_packed_grid(pipe, latents, inputs), packing(pipe) or (1, 1, 1))
    layout = layout_of(dit, latents) if latents.ndim == 5 else ORDER
    _, _, frames, *sizes = Arrangement((0, 0, 0), layout=layout).read_whole(latents).shape
    t, h, w = patch(pipe, dit)
    return Arrangement(((frames - before) // t, sizes[0] // h, sizes[1] // w), layout=layout, before=before)


def _packed_grid(pipe: Any, latents: Tensor, inputs: Mapping[str, Any]) -> Triple:
    if inputs.get("num_frames") is not None:
        grid = inputs["num_frames"], inputs["height"], inputs["width"]
    elif inputs.get("img_ids") is not None:
        ids = inputs["img_ids"].reshape(-1, inputs["img_ids"].shape[-1])[: latents.shape[1], -2:]
        grid = 1, int(ids[:, 0].max()) + 1, int(ids[:, 1].max()) + 1
    elif inputs.get("img_shapes"):
        first = inputs["img_shapes"][0]
        grid = tuple(first[0] if isinstance(first, list) else first)
    else:
        grid = (0, 0, 0)
    if grid[0] * grid[1] * grid[2] != latents.shape[1]:
        raise PlanError(
            f"{type(pipe).__name__} packs its latents into {latents.shape[1]} tokens, and the call to its model does not say "
            f"which grid they are (num_frames, height, width, or img_ids); it gives {sorted(inputs)}."
        )
    return grid


# ---- latents in what a model is given


def parts(hidden: Tensor, x: Tensor) -> list[tuple[slice, ...]]:
    """Return where copies of latents stand in what a model is given: once, or once for each merged branch.

    A condition may stand behind them, in channels or tokens.

    Raises:
        CaptureError: the input has no room for them.
    """
    rows = len(x)
    room = hidden.ndim == x.ndim and len(hidden) % rows == 0
    if not room or any(size < wanted for size, wanted in zip(hidden.shape[1:], x.shape[1:], strict=True)):
        raise CaptureError(
            f"What the model is given, {tuple(hidden.shape)}, has no room for the latents {tuple(x.shape)} that the pipeline "
            "prepared: which values are x_s is not known, so this run cannot be labelled."
        )
    rest = tuple(slice(0, size) for size in x.shape[1:])
    return [(slice(start, start + rows), *rest) for start in range(0, len(hidden), rows)]


def frames_put_in(hidden: Tensor, x: Tensor, arrangement: Arrangement) -> Tensor:
    """Return which latent frames the pipeline replaces in what it gives the model, [frame] of bool.

    A frame is the latents' own, or another one as a whole (a given first frame).

    Args:
        hidden: the model's input.
        x: x_s, as the pipeline has it.
        arrangement: of x.

    Raises:
        CaptureError: the input holds something else than x_s: a part of a frame, or all frames, differ.
    """
    seen = arrangement.read_whole(x)
    differing = []
    for part in parts(hidden, x):
        value = arrangement.read_whole(hidden[part])
        expected = seen.to(value.dtype)
        same = ((value == expected) | (value.isnan() & expected.isnan())).all(1)  # [row, frame, y, x]
        differs = ~same.transpose(0, 1).flatten(1)  # [frame, position]
        differing.append(torch.stack([differs.any(1), differs.all(1)]))
    # [branch, (somewhere, everywhere), frame], in one transfer from the device
    somewhere, everywhere = torch.stack(differing, 1).cpu()
    if not torch.equal(somewhere, everywhere) or bool(everywhere.all(1).any()):
        frames = somewhere.any(0).nonzero().flatten().tolist()
        raise CaptureError(
            f"The model is not given the latents {tuple(x.shape)} that the last step left: its input "
            f"{tuple(hidden.shape)} differs from them in the latent frames {frames}, in a part of a frame or in all frames. "
            "A callback, or the pipeline itself, scales, masks or mixes latents, so x_s is not what the model sees: such a run "
            "cannot be labelled."
        )
    if not torch.equal(everywhere.all(0), everywhere.any(0)):
        raise CaptureError(
            "The pipeline puts frames over the latents of one guidance branch, and not of the other."
        )
    return everywhere[0]


def substitute(hidden: Tensor, new: Tensor) -> Tensor:
    """Return what a model is given with other latents in it, once they are known to stand there.

    Args:
        hidden: the model's input.
        new: the latents, as the pipeline lays them out.
    """
    out = hidden.clone()
    for part in parts(hidden, new):
        out[part] = new.to(hidden.dtype)
    return out


def tokens(pipe: Any, dit: Any, latent: tuple[int, int, int, int]) -> Triple:
    """Return the (frame, y, x) token counts of latents (channel, frame, y, x)."""
    t, y, x = patch(pipe, dit)
    return latent[1] // t, latent[2] // y, latent[3] // x


__all__ = [
    "Arrangement",
    "arrange",
    "frames_put_in",
    "own_channels",
    "packing",
    "patch",
    "substitute",
    "tokens",
]
