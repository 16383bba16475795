"""How diffusers' pipelines lay out latents: [row, channel, frame, y, x], frame before channel, images, packed tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from dit_lens.errors import PlanError

if TYPE_CHECKING:
    from torch import Tensor

Triple = tuple[int, int, int]
FRAME_FIRST = ("CogVideoX",)
"""Models whose latents are [row, frame, channel, y, x]."""


@dataclass(frozen=True)
class Arrangement:
    """How the latents of one call stand.

    Attributes:
        grid: (frame, y, x) of the tokens.
        pack: latent positions of one token, (frame, y, x), where the pipeline packs latents into tokens.
        frame_first: whether frames stand before channels.
    """

    grid: Triple
    pack: Triple = (1, 1, 1)
    frame_first: bool = False

    def read(self, x: Tensor) -> Tensor:
        """Return the pipeline's latents as [row, channel, frame, y, x]."""
        if x.ndim == 3:
            x = x.unflatten(1, self.grid).unflatten(
                -1, (-1, *self.pack)
            )  # [row, f, y, x, channel, pf, py, px]
            return x.permute(0, 4, 1, 5, 2, 6, 3, 7).flatten(6, 7).flatten(4, 5).flatten(2, 3)
        if x.ndim == 4:
            return x.unsqueeze(2)
        return x.transpose(1, 2) if self.frame_first else x

    def write(self, x: Tensor, like: Tensor) -> Tensor:
        """Return [row, channel, frame, y, x] as the pipeline has its latents: the inverse of `read`."""
        if like.ndim == 3:
            (f, h, w), (pf, ph, pw) = self.grid, self.pack
            x = x.unflatten(4, (w, pw)).unflatten(3, (h, ph)).unflatten(2, (f, pf))
            return x.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4, 7).flatten(1, 3).contiguous()
        if like.ndim == 4:
            return x.squeeze(2)
        return (x.transpose(1, 2) if self.frame_first else x).contiguous()


def packing(pipe: Any) -> Triple | None:
    """Return how many latent positions (frame, y, x) one packed token has; None where latents are not packed."""
    if not hasattr(pipe, "_pack_latents"):
        return None
    spatial = getattr(pipe, "transformer_spatial_patch_size", 2)
    return getattr(pipe, "transformer_temporal_patch_size", 1), spatial, spatial


def patch(pipe: Any, dit: Any) -> Triple:
    """Return how many latent positions (frame, y, x) one token has."""
    packed = packing(pipe)
    if packed is not None:
        return packed
    size = dit.config.patch_size
    if isinstance(size, tuple | list):
        t, y, x = size
        return t, y, x
    return getattr(dit.config, "patch_size_t", None) or 1, size, size


def arrange(pipe: Any, dit: Any, latents: Tensor, given: Mapping[str, Any]) -> Arrangement:
    """Return how the latents of a call stand.

    Args:
        pipe: the pipeline.
        dit: the transformer.
        latents: x_s, as the pipeline has it.
        given: the call's arguments, by name.

    Raises:
        PlanError: the latents are packed, and the call does not say into which grid.
    """
    if latents.ndim == 3:
        return Arrangement(_packed_grid(pipe, latents, given), packing(pipe) or (1, 1, 1))
    first = type(dit).__name__.startswith(FRAME_FIRST)
    _, _, *sizes = Arrangement((0, 0, 0), frame_first=first).read(latents).shape
    t, h, w = patch(pipe, dit)
    return Arrangement((sizes[0] // t, sizes[1] // h, sizes[2] // w), frame_first=first)


def _packed_grid(pipe: Any, latents: Tensor, given: Mapping[str, Any]) -> Triple:
    if given.get("num_frames") is not None:
        grid = given["num_frames"], given["height"], given["width"]
    elif given.get("img_ids") is not None:
        ids = given["img_ids"].reshape(-1, given["img_ids"].shape[-1])[: latents.shape[1], -2:]
        grid = 1, int(ids[:, 0].max()) + 1, int(ids[:, 1].max()) + 1
    elif given.get("img_shapes"):
        first = given["img_shapes"][0]
        grid = tuple(first[0] if isinstance(first, list) else first)
    else:
        grid = (0, 0, 0)
    if grid[0] * grid[1] * grid[2] != latents.shape[1]:
        raise PlanError(
            f"{type(pipe).__name__} packs its latents into {latents.shape[1]} tokens, and the call to its model does not say "
            f"which grid they are (num_frames, height, width, or img_ids); it gives {sorted(given)}."
        )
    return grid


def substitute(hidden: Tensor, old: Tensor, new: Tensor) -> Tensor:
    """Put new latents where the old ones stand in what a model is given.

    The model's input is made of the latents by casting, by repeating them for both branches, by setting a
    condition beside them (channels, tokens) or over some of their frames. They are found by their values.

    Args:
        hidden: the model's input.
        old: latents before the edit, as the pipeline has them.
        new: after it.

    Raises:
        PlanError: the old latents are not in it.
    """
    out, rows = hidden.clone(), len(old)
    part = tuple(slice(0, size) for size in old.shape[1:])
    for start in range(0, len(hidden), rows):
        value = hidden[(slice(start, start + rows), *part)]
        same = value == old.to(value.dtype) if value.shape == old.shape else torch.zeros(1, 1)
        # A frame of a video is the latents' or the condition's, as a whole.
        units = same.flatten(3).all(3) if same.ndim == 5 else same.flatten(1).all(1)
        if not bool(units.any()) or not torch.equal(
            same, units.view(*units.shape, *[1] * (same.ndim - units.ndim)) & same
        ):
            raise PlanError(
                f"An edit of the latents: what the model is given, {tuple(hidden.shape)}, does not hold the latents "
                f"{tuple(old.shape)} as they are, so the edit cannot reach it. Edit another site, such as block_in at layer 0."
            )
        out[(slice(start, start + rows), *part)] = torch.where(same, new.to(value.dtype), value)
    return out


def tokens(pipe: Any, dit: Any, latent: tuple[int, int, int, int]) -> Triple:
    """Return the (frame, y, x) token counts of latents (channel, frame, y, x)."""
    t, y, x = patch(pipe, dit)
    return latent[1] // t, latent[2] // y, latent[3] // x


__all__ = ["Arrangement", "arrange", "packing", "patch", "substitute", "tokens"]
