"""Wan 2.1 and 2.2 through DiffSynth's `WanVideoPipeline`: one expert (`dit`), or two (`dit`, `dit2`)."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dit_lens.errors import PlanError
from dit_lens.families.base import Batching, Family, Seen, Site, Tokens
from dit_lens.families.diffsynth import (
    advance,
    facts,
    forward,
    interceptor,
    outputs,
    prepare,
    quiet,
    schedule,
)
from dit_lens.tasks.sample import Sample

SITES = {
    "video": {
        "block": Site("", long_name="residual stream after the block"),
        "block_in": Site("", "input", long_name="residual stream before the block"),
        "self_attn": Site("self_attn", long_name="self-attention output, before its gate"),
        "cross_attn": Site("cross_attn", long_name="cross-attention output"),
        "ffn": Site("ffn", long_name="feed-forward output, before its gate"),
        "q": Site("self_attn.q", long_name="self-attention queries, before norm and rotation"),
        "k": Site("self_attn.k", long_name="self-attention keys, before norm and rotation"),
        "v": Site("self_attn.v", long_name="self-attention values"),
    }
}
REFUSED = {
    "tea_cache_l1_thresh": "TeaCache skips whole passes, so blocks do not run at every step",
    "sliding_window_size": "sliding windows run the model several times a step, on other frames each time",
    "vace_video": "VACE adds hints between blocks",
    "vace_reference_image": "VACE prepends latent frames",
    "animate_pose_video": "Animate changes states between blocks",
    "input_audio": "speech-to-video runs another function",
    "longcat_video": "LongCat runs another function",
    "vap_video": "video-as-prompt runs blocks through another module",
}
"""Arguments that change what hooks see, with the reason why they are refused."""


def look(pipe: Any, keywords: dict[str, Any]) -> Seen:
    """Label one call of `model_fn` from its own keywords."""
    dit, latents, context = keywords["dit"], keywords["latents"], keywords["context"]
    expert = "dit" if pipe.dit2 is None else "low" if dit is pipe.dit2 else "high"
    rows: dict[str, slice]
    if keywords.get("cfg_merge"):
        half = context.shape[0] // 2
        rows = {"cond": slice(0, half), "uncond": slice(half, 2 * half)}
    elif "positive" in keywords:
        rows = {
            "cond" if keywords["positive"] else "uncond": slice(0, max(context.shape[0], latents.shape[0]))
        }
    else:
        raise PlanError(
            "A call of model_fn says neither positive=... nor cfg_merge=True: its branch is unknown."
        )
    _, _, *latent = latents.shape
    grid = token_grid(dit, (0, *latent))
    prefix = grid[1] * grid[2] if keywords.get("reference_latents") is not None else 0
    return Seen(expert, rows, {"video": Tokens(grid, prefix)}, float(keywords["timestep"].flatten()[0]))


def token_grid(dit: Any, latent: Sequence[int]) -> tuple[int, int, int]:
    """Return the (frame, y, x) token counts of latents (channel, frame, y, x)."""
    t, h, w = dit.patch_size
    return latent[1] // t, latent[2] // h, latent[3] // w


def latent_grid(pipe: Any, sample: Sample) -> tuple[int, int, int, int]:
    """Return the latents' (channel, frame, y, x), with the pipeline's own rounding of sizes."""
    height, width, frames = pipe.check_resize_height_width(
        sample.height, sample.width, sample.num_frames, verbose=0
    )
    factor = pipe.vae.upsampling_factor
    return pipe.vae.model.z_dim, (frames - 1) // 4 + 1, height // factor, width // factor


def arguments(
    sample: Sample, seed: int, steps: int, cfg_scale: float, extra: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the keywords of the pipeline's call; `extra` is the user's own and wins."""
    batch = not isinstance(sample.prompt, str)
    own = {
        "prompt": list(sample.prompt) if batch else sample.prompt,
        # One negative prompt a row, so that both branches of a prompt batch have the same rows.
        "negative_prompt": [sample.negative_prompt] * len(sample.prompt) if batch else sample.negative_prompt,
        "input_image": sample.image,
        "seed": seed,
        "height": sample.height,
        "width": sample.width,
        "num_frames": sample.num_frames,
        "num_inference_steps": steps,
        "cfg_scale": cfg_scale,
        "tiled": False,
    }
    return own | dict(extra)


def branches(keywords: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the guidance branches that the pipeline will run."""
    guided = keywords["cfg_scale"] != 1.0 or keywords.get("cfg_merge")
    return ("cond", "uncond") if guided else ("cond",)


def refuse(pipe: Any, keywords: Mapping[str, Any]) -> None:
    """Refuse what changes what hooks see.

    Raises:
        PlanError: it names the argument and the reason.
    """
    for name, reason in REFUSED.items():
        if keywords.get(name) is not None:
            raise PlanError(
                f"{name}={keywords[name]!r} is not supported under tracing: {reason}. Leave it out."
            )
    if keywords.get("cfg_merge") and keywords["cfg_scale"] == 1.0:
        raise PlanError(
            "cfg_merge=True with cfg_scale=1 leaves two merged branches unguided: drop cfg_merge."
        )
    if getattr(pipe, "use_unified_sequence_parallel", False):
        raise PlanError(
            "Sequence parallelism splits the tokens over processes: make the pipeline without use_usp."
        )
    for name, dit in (("dit", pipe.dit), ("dit2", pipe.dit2)):
        compiled = (
            [n for n, m in dit.named_modules() if "_orig_mod" in n or hasattr(m, "_orig_mod")] if dit else []
        )
        if compiled:
            raise PlanError(
                f"{name}.{compiled[0]} is compiled: hooks would break its graph. Trace an uncompiled model."
            )


@torch.no_grad()
def decode(pipe: Any, latents: Tensor) -> Any:
    """Decode latents [row, channel, frame, y, x] to frames [row, time, height, width, rgb] of uint8."""
    pipe.load_models_to_device(["vae"])
    videos = []
    for row in latents.to(device=pipe.device, dtype=pipe.torch_dtype):
        # The same calls as the pipeline's own last lines, so the last step decodes to its video.
        frames = pipe.vae_output_to_video(pipe.vae.decode(row[None], device=pipe.device, tiled=False))
        videos.append(np.stack([np.asarray(f) for f in frames]))
    pipe.load_models_to_device([])
    return np.stack(videos)


@torch.no_grad()
def readout(dit: Any, state: Tensor, keywords: Mapping[str, Any]) -> Tensor:
    """Return the velocity that the network gives if it ends after a block.

    Args:
        dit: the expert that ran.
        state: output of the block, [row, token, channel], prefix tokens removed.
        keywords: `latents` and `timestep` of the call.
    """
    from diffsynth.models.wan_video_dit import sinusoidal_embedding_1d

    timestep = keywords["timestep"].reshape(-1).to(keywords["latents"])
    t = dit.time_embedding(sinusoidal_embedding_1d(dit.freq_dim, timestep))
    _, *latent = keywords["latents"].shape
    return dit.unpatchify(dit.head(state, t), token_grid(dit, latent))


def expert_of(pipe: Any, timestep: float, keywords: Mapping[str, Any]) -> str:
    """Return the name of the DiT that the pipeline's own loop takes at a timestep."""
    if pipe.dit2 is None:
        return "dit"
    boundary = inspect.signature(type(pipe).__call__).parameters["switch_DiT_boundary"].default
    return "low" if timestep < 1000 * keywords.get("switch_DiT_boundary", boundary) else "high"


def load_expert(pipe: Any, expert: str) -> None:
    """Put the models of a step on the device."""
    pipe.load_models_to_device(pipe.in_iteration_models_2 if expert == "low" else pipe.in_iteration_models)


def settle(latents: Tensor, keywords: Mapping[str, Any]) -> Tensor:
    """Put the clean first frame back, as the pipeline does for models that carry it in the latents (TI2V)."""
    first = keywords.get("first_frame_latents")
    if first is not None:
        latents[:, :, 0:1] = first
    return latents


WAN = Family(
    name="wan",
    experts={"high": "dit", "low": "dit2"},
    blocks=("blocks",),
    sites=SITES,
    intercept=interceptor(look),
    arguments=arguments,
    branches=branches,
    refuse=refuse,
    latent_grid=latent_grid,
    token_grid=token_grid,
    channels=lambda dit: int(dit.dim),
    decode=decode,
    outputs=outputs,
    readout=readout,
    schedule=schedule,
    facts=facts,
    quiet=quiet,
    default_steps=50,
    default_cfg=5.0,
    silent=("progress_bar_cmd",),
    batching=Batching(prepare(branches), expert_of, load_expert, forward, advance, settle),
)
