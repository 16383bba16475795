"""Flow matching on the organism's latents: noise levels, the condition, the loss, and Euler's steps."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dit_lens.models.organism.modules import LinearCodec

SHIFT = 5.0
"""Of the noise levels, in training as in the pipeline."""

Model = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Latents with their condition, noise levels, contexts, to the velocity."""


def shifted(u: Tensor, shift: float = SHIFT) -> Tensor:
    """Return noise levels from even ones (Esser et al. 2024, arXiv 2403.03206, equation 23)."""
    return shift * u / (1 + (shift - 1) * u)


def unshifted(level: float) -> float:
    """Return the even time of a noise level: what `shifted` makes it of."""
    return level / (SHIFT - (SHIFT - 1) * level)


def schedule(steps: int) -> Tensor:
    """Return the noise levels of a run, [step + 1], the last one 0; those of DiffSynth's scheduler for Wan."""
    return shifted(torch.linspace(1, 0, steps + 1))


def draw_levels(rows: int, low: float, high: float, device: torch.device) -> Tensor:
    """Draw noise levels between two, [row], evenly in time before the shift."""
    first, last = unshifted(low), unshifted(high)
    return shifted(first + (last - first) * torch.rand(rows, device=device))


def grey_latents(codec: LinearCodec) -> Tensor:
    """Return the latents of a grey patch of later frames, [channel]: what the pipeline fills the unknown frames with."""
    return codec.encode(torch.zeros(1, 3, 5, 8, 8, device=codec.first_basis.device))[0, :, 1, 0, 0]


def condition(latents: Tensor, grey: Tensor) -> Tensor:
    """Return what the pipeline's image unit makes: mask and encoded first frame, grey frames after it.

    Args:
        latents: [row, channel, frame, y, x], of which the first frame counts.
        grey: see `grey_latents`.
    """
    rows, _, *grid = latents.shape
    mask = torch.zeros(rows, 4, *grid, device=latents.device)
    mask[:, :, 0] = 1
    image = grey.view(1, -1, 1, 1, 1).expand_as(latents).clone()
    image[:, :, 0] = latents[:, :, 0]
    return torch.cat([mask, image], 1)


def channel_weights(codec: LinearCodec) -> Tensor:
    """Weigh latent channels by their standard deviation in pixels, mean 1, [channel, first frame or later].

    The weights do not depend on the data, so the optimum is the same; capacity goes where the picture is.
    """
    first, rest = codec.first_scale, codec.rest_scale
    return torch.stack([first / first.mean(), rest / rest.mean()], 1)


def error(velocity: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted squared error of velocities [row, channel, frame, y, x]."""
    by_frame = torch.cat([weights[:, :1], weights[:, 1:].expand(-1, target.shape[2] - 1)], 1)
    return ((velocity - target).square() * by_frame[None, :, :, None, None]).mean()


def noised(latents: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Return x_s = (1 - s) x_0 + s x_1, row by row."""
    s = sigma.view(-1, 1, 1, 1, 1)
    return (1 - s) * latents + s * noise


def guided(model: Model, scale: float, empty: Tensor) -> Model:
    """Return a model with classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598): v_0 + scale * (v - v_0).

    Args:
        model: the DiT.
        scale: 1 for none.
        empty: embedding of the empty prompt, [1, token, channel], with which it gives v_0.
    """
    if scale == 1:
        return model

    def velocity(x: Tensor, sigma: Tensor, context: Tensor) -> Tensor:
        without = model(x, sigma, empty.expand_as(context))
        return without + scale * (model(x, sigma, context) - without)

    return velocity


def trajectory(model: Model, noise: Tensor, given: Tensor, context: Tensor, steps: int) -> list[Tensor]:
    """Follow the flow from noise by Euler's steps.

    Args:
        model: the DiT.
        noise: [row, channel, frame, y, x].
        given: the condition, see `condition`.
        context: embedded prompts, [row, token, channel].
        steps: how many.

    Returns:
        The latents before each step, and after the last.
    """
    levels, x = schedule(steps), noise
    out = [x]
    for sigma, after in zip(levels[:-1].tolist(), levels[1:].tolist(), strict=True):
        velocity = model(torch.cat([x, given], 1), torch.full((len(x),), sigma, device=x.device), context)
        x = x + (after - sigma) * velocity.float()
        out.append(x)
    return out
