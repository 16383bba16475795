"""What differs between diffusers' pipelines outside the model: arguments, sizes, outputs, what is refused."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from dit_lens.errors import PlanError
from dit_lens.families.diffusers.latents import packing, patch
from dit_lens.tasks.sample import Sample, as_frames

EXPERTS = {"high": "transformer", "low": "transformer_2"}
"""Expert to the pipeline's attribute."""
REFUSED = {
    "skip_guidance_layers": "skip-layer guidance runs the model a third time a step, without some of its blocks",
    "sigmas": "give steps=",
    "timesteps": "give steps=",
    "generator": "give seed=",
    "num_images_per_prompt": "give several prompts, or run several seeds",
    "num_videos_per_prompt": "give several prompts, or run several seeds",
}
"""Arguments that change what hooks see, or what a run is called, with the reason why they are refused."""


def parameters(pipe: Any) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of a pipeline's own call."""
    return inspect.signature(type(pipe).__call__).parameters


def loop_of(pipe: Any) -> str:
    """Return the name of the class whose denoising loop a pipeline runs: a subclass may inherit it."""
    return next(kind.__name__ for kind in type(pipe).__mro__ if "__call__" in vars(kind))


def transformers(pipe: Any) -> dict[str, Any]:
    """Return the transformers that a pipeline holds now, by attribute."""
    held = {path: getattr(pipe, path, None) for path in EXPERTS.values()}
    return {path: dit for path, dit in held.items() if dit is not None}


def scale_argument(pipe: Any) -> str | None:
    """Return the argument that is the scale of classifier-free guidance; None where a pipeline has none.

    Distilled models embed `guidance_scale`; where they have classifier-free guidance too, it is `true_cfg_scale`. A
    pipeline that takes no negative prompt, and no class that it could leave out, has no unconditional side.
    """
    known = parameters(pipe)
    if "true_cfg_scale" in known:
        return "true_cfg_scale"
    two_sided = {"negative_prompt", "negative_prompt_embeds", "class_labels"} & set(known)
    return "guidance_scale" if two_sided and "guidance_scale" in known else None


def value_of(pipe: Any, keywords: Mapping[str, Any], name: str | None) -> Any:
    """Return an argument of a pipeline's call: the keyword, or its default; None where there is no such argument."""
    if name is None:
        return None
    return keywords[name] if name in keywords else default(pipe, name, None)


def default(pipe: Any, name: str | None, fallback: Any) -> Any:
    """Return what a pipeline takes for an argument that its caller leaves out."""
    parameter = parameters(pipe).get(name) if name is not None else None
    if parameter is None or parameter.default in (None, inspect.Parameter.empty):
        return fallback
    return parameter.default


def arguments(
    pipe: Any, sample: Sample, seed: int, steps: int, cfg_scale: float, extra: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the keywords of the pipeline's call; `extra` is the user's own and wins.

    Raises:
        PlanError: the pipeline needs something that the sample does not have, or the other way round.
    """
    known, what = parameters(pipe), type(pipe).__name__
    for name, reason in REFUSED.items():
        value = extra.get(name)
        if value is not None and not (isinstance(value, int) and value == default(pipe, name, None)):
            raise PlanError(f"{name}={extra[name]!r} is not supported under tracing: {reason}.")
    batch = not isinstance(sample.prompt, str)
    prompt: Any = list(sample.prompt) if batch else sample.prompt
    negative: Any = [sample.negative_prompt] * len(prompt) if batch else sample.negative_prompt
    scale = scale_argument(pipe)
    if scale is None and cfg_scale > 1:
        raise PlanError(
            f"{what} has no classifier-free guidance, so cfg_scale={cfg_scale} cannot be done: leave it out. "
            "Its guidance_scale=, "
            "where it takes one, is embedded in the model: give that as a keyword of the run."
        )
    if scale == "true_cfg_scale" and cfg_scale <= 1:
        negative = None
    defaults = {
        "prompt": prompt,
        "negative_prompt": negative,
        "image": sample.image,
        "num_frames": sample.num_frames,
        "height": sample.height,
        "width": sample.width,
        "num_inference_steps": steps,
        **({} if scale is None else {scale: cfg_scale}),
        "generator": torch.Generator().manual_seed(seed),
        # Bins would run another size, and cut the picture to the one that was asked for.
        "use_resolution_binning": False,
        "output_type": "latent" if batch else "np",
    }
    out = {name: value for name, value in defaults.items() if name in known} | dict(extra)
    if sample.image is not None and "image" not in known:
        raise PlanError(f"{what} takes no image, and this sample has one: pass sample.with_(image=None).")
    for name, parameter in known.items():
        needed = parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        if name != "self" and needed and out.get(name) is None:
            raise PlanError(f"{what} needs {name}=...: give it with the sample, or as a keyword of the run.")
    return out


def branches(pipe: Any, keywords: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the guidance branches that the pipeline will run."""
    scale = value_of(pipe, keywords, scale_argument(pipe))
    return ("cond", "uncond") if scale is not None and scale > 1 else ("cond",)


def latent_grid(pipe: Any, sample: Sample) -> tuple[int, int, int, int]:
    """Return the latents' (channel, frame, y, x), with the pipeline's own rounding."""
    config = pipe.vae.config
    channels = getattr(config, "z_dim", None) or config.latent_channels
    space, time = scale_factors(pipe)
    frames = (sample.num_frames - 1) // time + 1 if "num_frames" in parameters(pipe) else 1
    if "height" not in parameters(pipe):  # class-conditional models have one size
        size = next(iter(transformers(pipe).values())).config.sample_size
        return channels, frames, size, size
    unit = (packing(pipe) or (1, 1, 1))[1]
    y, x = (unit * (size // (space * unit)) for size in (sample.height, sample.width))
    return channels, frames, y, x


def scale_factors(pipe: Any) -> tuple[int, int]:
    """Return how many pixels, and how many frames, one latent position stands for.

    Raises:
        PlanError: the pipeline does not say.
    """
    space = (
        "vae_scale_factor_spatial",
        "vae_spatial_compression_ratio",
        "vae_spatial_scale_factor",
        "vae_scale_factor",
    )
    time = ("vae_scale_factor_temporal", "vae_temporal_compression_ratio", "vae_temporal_scale_factor")
    spaces, times = ([int(getattr(pipe, n)) for n in names if hasattr(pipe, n)] for names in (space, time))
    if not spaces and hasattr(pipe.vae.config, "block_out_channels"):
        spaces = [2 ** (len(pipe.vae.config.block_out_channels) - 1)]
    if not spaces:
        raise PlanError(f"{type(pipe).__name__} does not say how far its codec compresses.")
    return spaces[0], times[0] if times else 1


def multiples(pipe: Any) -> tuple[int, int]:
    """Return of what frames (one more than a multiple) and sizes are multiples; (1, 1) where it does not say."""
    try:
        space, time = scale_factors(pipe)
    except PlanError:
        return 1, 1
    return time, space * patch(pipe, next(iter(transformers(pipe).values())))[1]


def decoded(keywords: Mapping[str, Any]) -> bool:
    """Say whether the pipeline decodes to pixels; see `Codec.decoded`."""
    return keywords.get("output_type", "pil") in ("np", "pil")


def outputs(output: Any, keywords: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return the decoded frames, where the pipeline was asked for them."""
    if not decoded(keywords):
        return {}
    frames = (
        output[0] if isinstance(output, tuple) else getattr(output, "frames", getattr(output, "images", None))
    )
    if frames is None or (len(frames) != 1 and isinstance(frames, np.ndarray) and frames.ndim == 5):
        return {}
    if isinstance(frames, np.ndarray):
        return {"video": as_pixels(frames[0] if frames.ndim == 5 else frames)}
    return {"video": as_frames(frames[0] if isinstance(frames[0], list) else frames)}


def as_pixels(frames: np.ndarray) -> np.ndarray:
    """Return frames in [0, 1] as uint8, rounded as diffusers rounds for images."""
    return (frames * 255).round().astype(np.uint8)


def quiet(pipe: Any, keywords: dict[str, Any]) -> Callable[[], None]:
    """Keep the progress bar away; returns what undoes it."""
    before = getattr(pipe, "_progress_bar_config", None)
    pipe.set_progress_bar_config(**{**(before or {}), "disable": True})

    def restore() -> None:
        if before is None:
            del pipe._progress_bar_config
        else:
            pipe._progress_bar_config = before

    return restore


def facts(pipe: Any) -> dict[str, Any]:
    """Return what of a pipeline changes results, beside its components and arguments."""
    import diffusers
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry

    return {
        "device": str(pipe._execution_device),
        "pipeline": f"{type(pipe).__name__}, diffusers {diffusers.__version__}",
        "attention": str(_AttentionBackendRegistry.get_active_backend()[0]),
    }


def root(pipe: Any) -> nn.Module:
    """Return one module that holds the pipeline's modules under the pipeline's names, for nnsight."""
    whole = nn.Module()
    for name, part in pipe.components.items():
        if isinstance(part, nn.Module):
            whole.add_module(name, part)
    return whole
