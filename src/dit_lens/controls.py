"""What a finding has to beat: an edit of equal norm in a random direction, and a model without what it learned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace as replace_fields
from typing import Any

import torch
from torch import Tensor

from dit_lens.edits import generator_at
from dit_lens.errors import PlanError
from dit_lens.models.shuffled import shuffle_weights
from dit_lens.plan.functions import options
from dit_lens.plan.places import Spot


@options
def placebo(h: Tensor, at: Spot, *x0: Tensor, edit: Callable[..., Any], seed: int = 0) -> Tensor:
    """Change every token by as much as an edit does, in a random direction.

    The change of a token, its vector over the channels of the place, keeps its Euclidean norm, as far as the type of h has
    digits; its direction is uniform on the sphere in these channels, drawn from the place and the seeds, one for all branches of
    guidance. What the edit leaves as it is stays as it is, bit for bit. How far the latents then move is not matched: measure it
    beside an effect.

    Args:
        h: what the edit takes: [frame, y, x, channel], or [seed, frame, y, x, channel] of an edit over seeds.
        at: the place.
        x0: of the step before, where the edit takes it.
        edit: the edit whose place it takes. It is computed as well, on a copy of h.
        seed: of the directions, beside that of the run.

    Raises:
        PlanError: the edit returns another shape, NaN or Inf.
    """
    edited = edit(h.clone(), at, *x0)
    if edited.shape != h.shape:
        raise PlanError(
            f"placebo at {at}: {edit!r} returned {tuple(edited.shape)}, where the value is {tuple(h.shape)}."
        )
    exact = torch.promote_types(h.dtype, torch.float32)
    # Of a place with some channels alone, an edit acts on these: so does its placebo.
    acts = torch.ones(h.shape[-1], dtype=torch.bool, device=h.device)
    if at.channel is not None:
        acts = torch.zeros_like(acts).index_fill(0, torch.tensor(at.channel, device=h.device), True)
        edited = torch.where(acts, edited, h)
    size = (edited.to(exact) - h.to(exact)).norm(dim=-1, keepdim=True)
    if not bool(size.isfinite().all()):
        raise PlanError(
            f"placebo at {at}: {edit!r} moves {int((~size.isfinite()).sum())} of {size.numel()} tokens by NaN or Inf; mend the "
            "edit, or what it is given."
        )
    # One direction for all branches of guidance: what is alike on them cancels in their difference, as it does of the edit.
    place = replace_fields(at, branch=None)
    drawn = torch.randn(h.shape, generator=generator_at(place, "placebo", seed)).to(h.device, exact) * acts
    moved = h.to(exact) + size * drawn / drawn.norm(dim=-1, keepdim=True)
    return torch.where((size > 0) & acts, moved.to(h.dtype), h)


placebo.function.like = "edit"  # type: ignore[attr-defined]


__all__ = ["placebo", "shuffle_weights"]
