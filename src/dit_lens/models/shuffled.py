"""A model without what it learned: the numbers of its weights in a random order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dit_lens.errors import ModelError

if TYPE_CHECKING:
    from dit_lens.lens import Lens


def shuffle_weights(lens: Lens, seed: int = 0) -> Lens:
    """Put the numbers of every weight of the DiTs in a random order, in place: their sizes stay, and what was learned goes.

    The order is drawn where the weights are, so it is another one on another device.

    Args:
        lens: its DiTs are changed.
        seed: of the order.

    Returns:
        The same lens.

    Raises:
        ModelError: weights are not in one place: DiffSynth or accelerate moves them about (`offload`, `vram_limit`).
    """
    draws: dict[torch.device, torch.Generator] = {}
    for expert, dit in lens.dits.items():
        for name, weight in dit.named_parameters():
            if weight.is_meta:
                raise ModelError(f"{expert}.{name} is not in memory: load the model without offload.")
            device = weight.device
            draw = draws.setdefault(device, torch.Generator(device).manual_seed(seed))
            order = torch.randperm(weight.numel(), generator=draw, device=device)
            weight.data.copy_(weight.data.flatten()[order].view_as(weight))
    return lens


__all__ = ["shuffle_weights"]
