"""How an edit is applied to one value at one place."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from dit_lens.errors import PlanError
from dit_lens.plan.binding import Binding
from dit_lens.plan.places import Spot, positions
from dit_lens.plan.plan import Placed


def apply_to_heads(edit: Binding, spot: Spot, value: Tensor, *more: Tensor) -> Tensor:
    """Apply an edit to a value; where heads are places of their own, to each that it selects. See `apply_edit`."""
    if not edit.by_head:
        return apply_edit(edit.placed, spot, value, *more)
    heads = value.unflatten(-1, (edit.head_count, -1)).clone()
    for head in edit.heads:
        heads[..., head, :] = apply_edit(edit.placed, replace(spot, head=head), heads[..., head, :], *more)
    return heads.flatten(-2)


def apply_edit(edit: Placed, spot: Spot, value: Tensor, *more: Tensor) -> Tensor:
    """Apply an edit in its region of the value alone, and check what it returns.

    The function is handed a copy, which it may write into; what counts is what it returns.

    Raises:
        PlanError: it returned another shape, type or device.
    """
    channels = None
    if edit.place.channel is not None:
        channels = positions("channel", edit.place.channel, value.shape[-1])
        spot = replace(spot, channel=channels)
    new = edit.function(value.clone(), spot, *(other.clone() for other in more))
    same = isinstance(new, Tensor) and new.shape == value.shape and new.dtype == value.dtype
    if not same or new.device != value.device:
        got = (
            f"{new.dtype} {tuple(new.shape)} on {new.device}"
            if isinstance(new, Tensor)
            else type(new).__name__
        )
        raise PlanError(
            f"edit {edit.name} at {spot} returned {got}; the value is {value.dtype} {tuple(value.shape)} "
            f"[frame, y, x, channel] on {value.device}: return the same shape and type, on the same device."
        )
    if not edit.place.region:
        return new
    mask = torch.from_numpy(edit.inside(tuple(value.shape[-4:-1])))[..., None]  # type: ignore[arg-type]
    if channels is not None:
        chosen = torch.zeros(value.shape[-1], dtype=torch.bool)
        chosen[list(channels)] = True
        mask = mask & chosen
    return torch.where(mask.to(value.device), new, value)
