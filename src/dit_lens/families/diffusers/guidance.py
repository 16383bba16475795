"""What each pipeline makes of its branches' velocities: classifier-free guidance, as its own loop does it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from dit_lens.errors import PlanError
from dit_lens.families.diffusers.latents import packing
from dit_lens.families.diffusers.pipeline import loop_of, scale_argument, value_of

if TYPE_CHECKING:
    from torch import Tensor

Formula = Callable[[Any, Mapping[str, Any], "Tensor", "Tensor", float], "Tensor"]
"""(pipe, keywords of the pipeline's call, conditional velocity, unconditional one, timestep) to the guided velocity.

Velocities are [row, channel, frame, y, x].
"""


def guide(
    pipe: Any, keywords: Mapping[str, Any], velocities: Mapping[str, Tensor], timestep: float
) -> Tensor:
    """Return the velocity that a pipeline hands to its scheduler.

    Args:
        pipe: the pipeline.
        keywords: of its call.
        velocities: branch to its velocity, [row, channel, frame, y, x].
        timestep: of the scheduler, at this step.

    Raises:
        PlanError: how this pipeline guides is not known.
    """
    if len(velocities) == 1:
        return next(iter(velocities.values()))
    if set(velocities) != {"cond", "uncond"}:
        raise PlanError(
            f"{type(pipe).__name__} has the branches {sorted(velocities)}: how it puts them together is not "
            "known here; use lens.run."
        )
    return formula(pipe)(pipe, keywords, velocities["cond"], velocities["uncond"], timestep)


def formula(pipe: Any) -> Formula:
    """Return a pipeline's formula of guidance.

    Raises:
        PlanError: it is not known.
    """
    name = loop_of(pipe)
    if name in FORMULAS:
        return FORMULAS[name]
    raise PlanError(
        f"{type(pipe).__name__}: how it puts its guidance branches together is not known here, so a batch cannot do it: use "
        "lens.run, or cfg_scale=1, or add it to dit_lens.families.diffusers.guidance."
    )


def scale_at(pipe: Any, keywords: Mapping[str, Any], timestep: float) -> float:
    """Return the guidance scale of a step: pipelines with two transformers may have one for each."""
    scale = float(value_of(pipe, keywords, scale_argument(pipe)))
    second = keywords.get("guidance_scale_2")
    boundary = pipe.config.get("boundary_ratio")
    if second is None or boundary is None:
        return scale
    high = timestep >= boundary * pipe.scheduler.config.num_train_timesteps
    return scale if high else float(second)


def _plain(pipe: Any, keywords: Mapping[str, Any], cond: Tensor, uncond: Tensor, timestep: float) -> Tensor:
    return uncond + scale_at(pipe, keywords, timestep) * (cond - uncond)


def _in_float(
    pipe: Any, keywords: Mapping[str, Any], cond: Tensor, uncond: Tensor, timestep: float
) -> Tensor:
    return _plain(pipe, keywords, cond.float(), uncond.float(), timestep)


def _dynamic(pipe: Any, keywords: Mapping[str, Any], cond: Tensor, uncond: Tensor, timestep: float) -> Tensor:
    """Guide as CogVideoX: the scale may follow a cosine of the timestep (`use_dynamic_cfg`)."""
    scale = scale_at(pipe, keywords, timestep)
    if keywords.get("use_dynamic_cfg"):
        steps = value_of(pipe, keywords, "num_inference_steps")
        # The pipeline's own formula, which takes the timestep where a step's index may be meant.
        scale = 1 + scale * (1 - math.cos(math.pi * ((steps - timestep) / steps) ** 5.0)) / 2
    return uncond.float() + scale * (cond.float() - uncond.float())


def _rescaled(
    pipe: Any, keywords: Mapping[str, Any], cond: Tensor, uncond: Tensor, timestep: float
) -> Tensor:
    """Guide as LTX: `guidance_rescale` takes the standard deviation back to the conditional one's.

    Lin et al., Common Diffusion Noise Schedules and Sample Steps are Flawed, section 3.4 (arXiv 2305.08891).
    """
    guided = _in_float(pipe, keywords, cond, uncond, timestep)
    share = float(keywords.get("guidance_rescale") or 0.0)
    if share == 0:
        return guided
    dims = tuple(range(1, guided.ndim))
    rescaled = guided * (cond.float().std(dims, keepdim=True) / guided.std(dims, keepdim=True))
    return share * rescaled + (1 - share) * guided


def _norm_of_tokens(
    pipe: Any, keywords: Mapping[str, Any], cond: Tensor, uncond: Tensor, timestep: float
) -> Tensor:
    """Guide as Qwen-Image: every token's vector gets the norm of the conditional one."""
    guided = _plain(pipe, keywords, cond, uncond, timestep)
    _, height, width = packing(pipe) or (1, 1, 1)

    def norms(velocity: Tensor) -> Tensor:
        tokens = velocity.unflatten(4, (-1, width)).unflatten(3, (-1, height))  # [row, c, f, y, py, x, px]
        norm = torch.linalg.vector_norm(tokens, dim=(1, 4, 6), keepdim=True)
        return norm.expand(-1, 1, -1, -1, height, -1, width).flatten(5, 6).flatten(3, 4)

    return guided * (norms(cond) / norms(guided))


FORMULAS: dict[str, Formula] = {
    **dict.fromkeys(
        (
            *("WanPipeline", "WanImageToVideoPipeline", "WanVACEPipeline", "WanVideoToVideoPipeline"),
            *("LucyEditPipeline", "SkyReelsV2Pipeline", "SkyReelsV2ImageToVideoPipeline"),
            *(
                "HunyuanVideoPipeline",
                "HunyuanVideoImageToVideoPipeline",
                "HunyuanSkyreelsImageToVideoPipeline",
            ),
            *("FluxPipeline", "FluxControlNetPipeline", "FluxKontextPipeline", "FluxImg2ImgPipeline"),
            *(
                "StableDiffusion3Pipeline",
                "StableDiffusion3Img2ImgPipeline",
                "StableDiffusion3ControlNetPipeline",
            ),
            *("CogView4Pipeline", "PixArtAlphaPipeline", "PixArtSigmaPipeline", "DiTPipeline"),
            *("Kandinsky5T2VPipeline", "Kandinsky5T2IPipeline"),
        ),
        _plain,
    ),
    "MochiPipeline": _in_float,
    **dict.fromkeys(("LTXPipeline", "LTXImageToVideoPipeline"), _rescaled),
    **dict.fromkeys(("CogVideoXPipeline", "CogVideoXImageToVideoPipeline"), _dynamic),
    **dict.fromkeys(
        (
            "QwenImagePipeline",
            "QwenImageEditPipeline",
            "QwenImageEditPlusPipeline",
            "QwenImageControlNetPipeline",
        ),
        _norm_of_tokens,
    ),
}
"""Pipeline to what stands after the calls of its model, read off its code."""

__all__ = ["FORMULAS", "formula", "guide", "scale_at"]
