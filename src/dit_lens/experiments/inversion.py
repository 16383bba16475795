"""From latents back to the noise that they come from, and forward again.

A sampler of Euler's steps goes x_{i+1} = x_i + (sigma_{i+1} - sigma_i) v(x_i, sigma_i), from i = 0 to sigma = 0. Its step
is inverted by x_i = x_{i+1} + (sigma_i - sigma_{i+1}) v(x_i, sigma_i), in which x_i stands on both sides. The plain step
takes v(x_{i+1}, sigma_i) for it: the velocity of the noisier level, which is always one of the schedule's own, at the
latents of the less noisy one; it is exact to first order in the step. Each refinement puts the x_i that came of it in the
place of x_{i+1} (a fixed-point iteration, arXiv 2309.04907 for diffusion models); where it settles, the step is inverted.

It need not settle. The last step, down to sigma = 0, forgets the noise wherever x0 no longer depends on it: then many kinds
of noise lead to these latents, or none does. So an inversion is believed by its round trip alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from dit_lens.engine.stepped import Stepped
from dit_lens.errors import PlanError

if TYPE_CHECKING:
    from dit_lens.lens import Lens


class Steps(Protocol):
    """What takes latents step by step: a `Batch`, or a flow that is known in closed form."""

    @property
    def noise(self) -> Tensor:
        """What step 0 starts from, [row, channel, frame, y, x]."""
        ...

    @property
    def sigmas(self) -> Sequence[float]:
        """Noise level of each step."""
        ...

    def step(self, step: int, latents: Tensor, /) -> Stepped:
        """Take one denoising step."""
        ...


def require_flow(lens: Lens) -> None:
    """Refuse a model whose velocity is not that of flow matching, or whose codec does not encode.

    Raises:
        PlanError: it says what is missing.
    """
    if not lens.family.flow.is_flow(lens.pipe):
        name = type(lens.pipe.scheduler).__name__
        raise PlanError(f"{name} takes no velocity of flow matching: use a pipeline of flow matching.")
    if lens.family.codec.encode is None:
        raise PlanError(f"Family {lens.family.name} does not say how to encode frames to latents.")
    if len(lens.family.anatomy.latents) > 1:
        streams = ", ".join(lens.family.anatomy.latents)
        raise PlanError(
            f"Family {lens.family.name} denoises {streams} together, and a video's sound is not encoded."
        )


@torch.no_grad()
def invert(steps: Steps, latents: Tensor, refine: int = 3, given: int = 0) -> Tensor:
    """Go from clean latents back to the noise that the sampler makes them of.

    Args:
        steps: the model on as many rows.
        latents: at noise level 0, [row, channel, frame, y, x].
        refine: refinements of each step; a step costs one forward more than that.
        given: latent frames that the model is given, from the first on. They are not inverted: at each level they are what
            lies between these latents and `steps.noise`.

    Returns:
        What step 0 starts from, float32, [row, channel, frame, y, x].

    Raises:
        PlanError: `refine` or `given` is out of range, or the latents have another shape than the noise.
    """
    noise, levels = steps.noise.float(), [*steps.sigmas, 0.0]
    _check(noise, latents, given)
    if refine < 0:
        raise PlanError(f"refine={refine}: give 0 or more.")
    x = clean = latents.to(noise)
    for step in range(len(levels) - 2, -1, -1):
        after, sigma = x, levels[step]
        between = (1 - sigma) * clean + sigma * noise
        for _ in range(1 + refine):
            x = _held(x, between, given)
            x = after + (sigma - levels[step + 1]) * velocity(steps, step, x)
        x = _held(x, between, given)
    return x


@torch.no_grad()
def generate(steps: Steps, noise: Tensor) -> Tensor:
    """Follow the sampler from noise to the last latents, [row, channel, frame, y, x]."""
    x = noise.to(steps.noise)
    for step in range(len(steps.sigmas)):
        x = steps.step(step, x).latents
    return x


def velocity(steps: Steps, step: int, latents: Tensor) -> Tensor:
    """Return the velocity at a step's level of given latents, both in float32, [row, channel, frame, y, x].

    Raises:
        PlanError: it is NaN or Inf.
    """
    out = steps.step(step, latents.to(steps.noise)).velocity.float()
    if not bool(torch.isfinite(out).all()):
        raise PlanError(f"The velocity at step {step} (sigma {steps.sigmas[step]:.3f}) is NaN or Inf.")
    return out


@torch.no_grad()
def velocity_loss(steps: Steps, latents: Tensor, at: Sequence[int], given: int = 0) -> Tensor:
    """Compute how badly a model predicts the way to clean latents: the loss of flow matching (arXiv 2210.02747).

    The mean over latent values of (v(x, sigma) - (eps - z))², with x = (1 - sigma) z + sigma eps; eps is `steps.noise`, the
    same at all levels. As v = (x - x0) / sigma, it is the mean of (z - x0)² / sigma².

    Args:
        steps: the model on as many rows.
        latents: z, [row, channel, frame, y, x].
        at: steps whose noise levels are taken.
        given: latent frames, from the first on, that the model is given, and that do not count.

    Returns:
        [step, row], float32; dimensionless, as latents are.

    Raises:
        PlanError: `given` is out of range, the latents have another shape than the noise, or a velocity is NaN or Inf.
    """
    noise = steps.noise.float()
    _check(noise, latents, given)
    clean, losses = latents.to(noise), []
    for step in at:
        sigma = steps.sigmas[step]
        off = velocity(steps, step, (1 - sigma) * clean + sigma * noise) - (noise - clean)
        losses.append(off[:, :, given:].square().mean((1, 2, 3, 4)))
    return torch.stack(losses)


def _held(x: Tensor, between: Tensor, given: int) -> Tensor:
    return torch.cat([between[:, :, :given], x[:, :, given:]], 2)


def _check(noise: Tensor, latents: Tensor, given: int) -> None:
    if latents.shape != noise.shape:
        raise PlanError(
            f"The latents are {tuple(latents.shape)}, the noise {tuple(noise.shape)} [row, channel, frame, y, x]: ask for a "
            "number of frames and a size that the model makes (--num-frames)."
        )
    if not 0 <= given < noise.shape[2]:
        raise PlanError(f"given={given}: of {noise.shape[2]} latent frames one at least is not given.")


__all__ = ["Steps", "generate", "invert", "require_flow", "velocity", "velocity_loss"]
