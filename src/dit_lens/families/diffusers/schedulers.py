"""Noise levels, x0 and its inverse for diffusers' schedulers: flow matching, and variance preserving.

    flow:                x_s = (1 - s) x_0 + s x_1,     x0 = x_s - s v
    variance preserving: x_s = a x_0 + s noise,         a^2 + s^2 = 1
        epsilon          x0 = (x_s - s eps) / a
        v_prediction     x0 = a x_s - s v
        sample           the model gives x0 itself

`velocity` is what the scheduler is given, whichever of these it is.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from dit_lens.errors import PlanError
from dit_lens.families.family import Schedule

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

PRESERVING = {
    "CogVideoXDDIMScheduler": "",
    "CogVideoXDPMScheduler": "x0 of the step before, and draws noise",
    "DDIMScheduler": "",
    "DDPMScheduler": "a generator of noise",
    "DPMSolverMultistepScheduler": "the model's outputs of earlier steps",
    "UniPCMultistepScheduler": "the model's outputs of earlier steps",
}
"""Variance-preserving schedulers that were checked, and what each keeps from step to step."""
FLOW = {
    "FlowMatchEulerDiscreteScheduler": "",
    "DPMSolverMultistepScheduler": "the model's outputs of earlier steps",
    "UniPCMultistepScheduler": "the model's outputs of earlier steps",
}
"""Flow-matching schedulers that were checked, and what each keeps from step to step."""


def is_flow(scheduler: Any) -> bool:
    """Say whether a scheduler's paths are straight.

    Raises:
        PlanError: it is not among those whose formulas are known.
    """
    name, kind = type(scheduler).__name__, getattr(scheduler.config, "prediction_type", "flow_prediction")
    flow = name.startswith("FlowMatch") or kind == "flow_prediction"
    known = FLOW if flow else PRESERVING
    if name not in known:
        raise PlanError(
            f"{name}: its noise levels and its x0 are not known here; known are {', '.join(sorted({*FLOW, *PRESERVING}))}. "
            "Set pipe.scheduler to one of these, e.g. UniPCMultistepScheduler.from_config(pipe.scheduler.config)."
        )
    if flow and name != "FlowMatchEulerDiscreteScheduler" and not scheduler.config.use_flow_sigmas:
        raise PlanError(f"{name} predicts flows on sigmas that are not: set use_flow_sigmas=True.")
    return flow


def schedule(scheduler: Any) -> Schedule:
    """Return the noise levels of a scheduler, once its steps are set.

    Raises:
        PlanError: its formulas are not known, or its noise levels are not in [0, 1].
    """
    flow, name = is_flow(scheduler), type(scheduler).__name__
    timesteps = [float(t) for t in scheduler.timesteps]
    state = (FLOW if flow else PRESERVING)[name]
    if getattr(scheduler.config, "stochastic_sampling", False):
        state = "a generator of noise"
    sigmas = [float(_levels(scheduler, n, flow)[1]) for n in range(len(timesteps))]
    beyond = [sigma for sigma in sigmas if not -1e-4 <= sigma <= 1 + 1e-4]
    if beyond:
        raise PlanError(
            f"{name} has the noise levels {beyond}, which are not in [0, 1]: its latents are scaled otherwise than x_s = "
            "(1 - s) x_0 + s x_1, so x0 and places by sigma are not known. Set a scheduler whose sigmas are at most 1."
        )
    return Schedule(sigmas, timesteps, state)


def draws_noise(scheduler: Any) -> bool:
    """Say whether a scheduler draws noise at its steps."""
    config = scheduler.config
    return (
        type(scheduler).__name__ in ("CogVideoXDPMScheduler", "DDPMScheduler")
        or bool(getattr(config, "stochastic_sampling", False))
        or str(getattr(config, "algorithm_type", "")).startswith("sde")
    )


class Noise:
    """What a scheduler finds in torch's global generators: the noise of the run's seed, whatever else is drawn from them.

    Between the steps they are as everyone else leaves them, so that a record may draw and the run stays the same.

    Args:
        seed: of the run.
        device: where the scheduler draws, if not on the CPU.
    """

    def __init__(self, seed: int, device: Any) -> None:
        device = torch.device(device)
        self.cuda = [device] if device.type == "cuda" else []
        self.states = [torch.Generator(d).manual_seed(seed).get_state() for d in ("cpu", *self.cuda)]

    def drawing(self, function: Callable[..., T]) -> Callable[..., T]:
        """Return a function that draws from here, and leaves the global generators as they were."""

        @wraps(function)
        def drawn(*args: Any) -> T:
            with torch.random.fork_rng(devices=self.cuda):
                torch.set_rng_state(self.states[0])
                for device, state in zip(self.cuda, self.states[1:], strict=True):
                    torch.cuda.set_rng_state(state, device)
                result = function(*args)
                self.states = [torch.get_rng_state(), *map(torch.cuda.get_rng_state, self.cuda)]
            return result

        return drawn


def is_plain_flow(scheduler: Any) -> bool:
    """Say whether x0 = x_s - sigma v by a scheduler's own sigmas."""
    return is_flow(scheduler) and not getattr(scheduler.config, "invert_sigmas", False)


def x0(scheduler: Any, latents: Tensor, velocity: Tensor, step: int) -> Tensor:
    """Return the clean latents that the scheduler itself takes a step's output to stand for."""
    flow = is_flow(scheduler)
    if flow:
        # As the scheduler's own last step: in float32, then in the type of what it was given.
        out = latents.float() + _to_end(scheduler, step) * velocity
        return out.to(velocity.dtype)
    a, s = _levels(scheduler, step, flow)
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        out = (latents - s * velocity) / a
    elif kind == "v_prediction":
        out = a * latents - s * velocity
    else:
        out = velocity
    if type(scheduler).__name__.startswith("CogVideoX"):
        return out  # these have the settings below, and do not use them
    if getattr(scheduler.config, "thresholding", False):
        out = scheduler._threshold_sample(out)
    elif getattr(scheduler.config, "clip_sample", False):
        bound = scheduler.config.clip_sample_range
        out = out.clamp(-bound, bound)
    return out


def velocity(scheduler: Any, latents: Tensor, x0: Tensor, step: int) -> Tensor:
    """Return what the scheduler has to be given so that it takes x0 as the clean latents."""
    flow = is_flow(scheduler)
    if flow:
        return (x0 - latents) / _to_end(scheduler, step)
    a, s = _levels(scheduler, step, flow)
    kind = scheduler.config.prediction_type
    if kind == "sample":
        return x0
    return (latents - a * x0) / s if kind == "epsilon" else (a * latents - x0) / s


def _to_end(scheduler: Any, step: int) -> Tensor:
    """Return the way that is left, in the scheduler's own sigmas: Mochi's run from 0 (noise) to 1 (data)."""
    end = 1.0 if getattr(scheduler.config, "invert_sigmas", False) else 0.0
    left: Tensor = end - scheduler.sigmas[step]
    return left


def _levels(scheduler: Any, step: int, flow: bool) -> tuple[Tensor, Tensor]:
    """Return the shares of data and of noise in x_s."""
    if flow:
        s = _to_end(scheduler, step).abs()
        return 1 - s, s
    if hasattr(scheduler, "_sigma_to_alpha_sigma_t"):
        a, s = scheduler._sigma_to_alpha_sigma_t(scheduler.sigmas[step])
        return a, s
    share = scheduler.alphas_cumprod[int(scheduler.timesteps[step])]
    return share**0.5, (1 - share) ** 0.5


__all__ = ["Noise", "draws_noise", "is_flow", "schedule", "velocity", "x0"]
