"""Wan 2.1 and 2.2 through DiffSynth's `WanVideoPipeline`: one expert (`dit`), or two (`dit`, `dit2`).

Text-to-video, image-to-video with or without CLIP's image tokens (they stand in the cross-attention's context,
not among the video's tokens), TI2V with the first frame fused into the latents, and reference images, whose
tokens stand before the video's. What is not supported, `wan_limits` says.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dit_lens.errors import PlanError
from dit_lens.families.attention_sites import sites_of_attention, sites_of_image
from dit_lens.families.call import Forward
from dit_lens.families.diffsynth.common import (
    decoded,
    facts,
    interceptor,
    outputs,
    prepare,
    quiet,
    refuse_tiled,
    run_model,
    schedule,
)
from dit_lens.families.diffsynth.wan_limits import IMAGES, REFUSED
from dit_lens.families.family import Anatomy, Batching, Calling, Codec, Family, Flow, Prepared
from dit_lens.families.patching import refuse_compiled
from dit_lens.families.site import Site, Tokens
from dit_lens.families.words import text_tokens
from dit_lens.plan.text import TextToken
from dit_lens.tasks.sample import Sample

PLAIN = "AttentionModule"
"""The class of DiffSynth's attention without a mask, whose call is softmax(q k / sqrt(d)) v, by whatever kernel there is."""


def _attention(path: str, **words: Any) -> tuple[dict[str, Site], dict[str, Site]]:
    projections = (f"{path}.q", f"{path}.k", f"{path}.v")
    return sites_of_attention(
        f"{path}.attn", f"{path}.num_heads", projections, f"{path}.o", plain=PLAIN, **words
    )


ATTENTION, _ = _attention("self_attn")
CROSS_ATTENTION, CROSS_KEYS = _attention("cross_attn", cross=True, keys="text", words="cross-attention")

SITES: dict[str, dict[str, Site]] = {
    "video": {
        "block": Site("", long_name="residual stream after the block"),
        "block_in": Site("", "input", long_name="residual stream before the block"),
        "self_attn": Site("self_attn", long_name="self-attention output, before its gate"),
        "cross_attn": Site("cross_attn", long_name="cross-attention output"),
        "ffn": Site("ffn", long_name="feed-forward output, before its gate"),
        "ffn_in": Site("ffn", "input", long_name="feed-forward input, after modulation"),
        "q": Site("self_attn.q", long_name="self-attention queries, before norm and rotation"),
        "k": Site("self_attn.k", long_name="self-attention keys, before norm and rotation"),
        "v": Site("self_attn.v", long_name="self-attention values"),
        **ATTENTION,
        **CROSS_ATTENTION,
    },
    "text": CROSS_KEYS,
}
"""Where the values of Wan's blocks are."""


_PROJECTIONS = ("cross_attn.q", "cross_attn.k_img", "cross_attn.v_img")
IMAGE_ATTENTION, IMAGE_KEYS = sites_of_image("cross_attn", "cross_attn.num_heads", _PROJECTIONS, number=1)
IMAGE_SITES: dict[str, dict[str, Site]] = {
    "video": {**SITES["video"], **IMAGE_ATTENTION},
    "text": SITES["text"],
    "image": IMAGE_KEYS,
}
"""Those of a model whose cross-attention has an attention of its own to the tokens of an image (CLIP)."""


IMAGE_TOKENS = 257
"""Tokens of the context that an image-to-video model's cross-attention takes for an image's."""


def look(pipe: Any, keywords: dict[str, Any]) -> Forward:
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
    streams = {"video": Tokens(grid, prefix), **_context(dit, keywords)}
    return Forward(expert, rows, streams, float(keywords["timestep"].flatten()[0]))


def _context(dit: Any, keywords: Mapping[str, Any]) -> dict[str, Tokens]:
    """Return how the prompt's tokens stand among the keys of the cross-attention.

    Where the model takes an image, the first `IMAGE_TOKENS` of the context have an attention of their own, and what a second
    image adds stands before the prompt.
    """
    image = keywords.get("clip_feature") if dit.require_clip_embedding else None
    beside = 0 if image is None else image.shape[1]
    streams = {}
    if dit.has_image_input:
        streams["image"] = Tokens((1, 1, IMAGE_TOKENS))
        beside -= IMAGE_TOKENS
    return {"text": Tokens((1, 1, keywords["context"].shape[1]), beside), **streams}


def words(pipe: Any, keywords: Mapping[str, Any]) -> dict[str, tuple[TextToken, ...]]:
    """Return the tokens of each branch's prompt, as the encoder is given them, padding too."""
    tokenizer, prompts = pipe.tokenizer, {"cond": keywords["prompt"], "uncond": keywords["negative_prompt"]}
    inner = getattr(tokenizer, "tokenizer", tokenizer)
    if not hasattr(inner, "convert_ids_to_tokens") or not isinstance(keywords["prompt"], str):
        return {}
    out = {}
    for branch in branches(keywords):
        ids, mask = tokenizer(prompts[branch], return_mask=True, add_special_tokens=True)
        out[branch] = text_tokens(inner, ids[0].tolist(), mask[0].tolist())
    return out


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
    assert sample.size is not None  # a sample settles it
    height, width = sample.size
    defaults = {
        "prompt": list(sample.prompt) if batch else sample.prompt,
        # One negative prompt a row, so that both branches of a prompt batch have the same rows.
        "negative_prompt": [sample.negative_prompt] * len(sample.prompt) if batch else sample.negative_prompt,
        "input_image": sample.image,
        "seed": seed,
        "height": height,
        "width": width,
        "num_frames": sample.num_frames,
        "num_inference_steps": steps,
        "cfg_scale": cfg_scale,
        # The pipeline's own defaults, spelt out so that the manifest has them.
        "sigma_shift": 5.0,
        "switch_DiT_boundary": 0.875,
        "tiled": False,
    }
    return defaults | dict(extra)


def branches(keywords: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the guidance branches that the pipeline will run."""
    guided = keywords["cfg_scale"] != 1.0 or keywords.get("cfg_merge")
    return ("cond", "uncond") if guided else ("cond",)


def refuse(pipe: Any, keywords: Mapping[str, Any]) -> None:
    """Refuse what changes what hooks see, and what the pipeline would get wrong in silence.

    Raises:
        PlanError: it names the argument or the model, and the reason.
    """
    known = inspect.signature(type(pipe).__call__).parameters
    for name in keywords:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"it takes {', '.join(list(known)[1:])}."
            raise PlanError(f"{type(pipe).__name__} takes no argument {name!r}: {hint}")
    for name, reason in REFUSED.items():
        if keywords.get(name) is not None:
            raise PlanError(
                f"{name}={keywords[name]!r} is not supported under tracing: {reason}. Leave it out."
            )
    if keywords.get("cfg_merge") and keywords["cfg_scale"] == 1.0:
        raise PlanError(
            "cfg_merge=True with cfg_scale=1 leaves two merged branches unguided: drop cfg_merge."
        )
    if not isinstance(keywords["prompt"], str) and keywords.get("input_image") is not None:
        raise PlanError(
            "Several prompts with an image: DiffSynth repeats the latents for each prompt, and not the image. Run one prompt "
            "after the other, or lens.batch([(sample.with_(prompt=prompt), seed) for prompt in ...])."
        )
    if keywords.get("cfg_merge") or not isinstance(keywords["prompt"], str):
        refuse_rows(keywords)
    if getattr(pipe, "use_unified_sequence_parallel", False):
        raise PlanError(
            "Sequence parallelism splits the tokens over processes: make the pipeline without use_usp."
        )
    if getattr(pipe, "vap", None) is not None:
        raise PlanError(f"vap is loaded: {REFUSED['vap_video']}. Make the pipeline without it.")
    for name in ("dit", "dit2"):
        if (dit := getattr(pipe, name)) is not None:
            _refuse_dit(name, dit)
    _need_image(pipe, keywords)


def refuse_rows(keywords: Mapping[str, Any]) -> None:
    """Refuse what the model takes one row of at a time.

    Raises:
        PlanError: it names the argument.
    """
    if keywords.get("camera_control_direction") is not None:
        raise PlanError(
            "camera_control_direction: DiffSynth keeps the first row of a batch and drops the others. Use lens.run with one "
            "prompt, without cfg_merge."
        )


def _refuse_dit(name: str, dit: Any) -> None:
    """Refuse a model that is not run as WanModel is."""
    kind = type(dit).__name__
    if kind != "WanModel":
        raise PlanError(
            f"{name} is a {kind}, which the pipeline runs by another function; wan knows WanModel."
        )
    if dit.wantodance_enable_global or dit.wantodance_enable_music_inject:
        raise PlanError(f"{name} is a WanToDance model: {REFUSED['wantodance_keyframes']}.")
    refuse_compiled(name, dit)


def _need_image(pipe: Any, keywords: Mapping[str, Any]) -> None:
    """Refuse an image-to-video model without its image, or without the encoder that reads it."""
    dit = pipe.dit
    if dit is None:
        return
    images = [name for name in IMAGES if keywords.get(name) is not None]
    if dit.require_vae_embedding and dit.in_dim != pipe.vae.model.z_dim and not images:
        raise PlanError(
            f"This model takes {dit.in_dim} channels, {pipe.vae.model.z_dim} of latents and the rest of an image: give a "
            f"sample with an image, or {' or '.join(IMAGES[1:])}."
        )
    clip = pipe.image_encoder is not None or "control_video" in images
    if dit.has_image_input and dit.require_clip_embedding and not clip:
        raise PlanError(
            "This model's cross-attention takes its first 257 context tokens for an image's, and the pipeline has no image "
            "encoder that makes them: the prompt would be read as an image. Load the CLIP image encoder."
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
def encode(pipe: Any, frames: Any) -> Tensor:
    """Encode frames [time, height, width, rgb] of uint8 to latents [1, channel, frame, y, x]."""
    pipe.load_models_to_device(["vae"])
    video = pipe.preprocess_video([Image.fromarray(frame) for frame in frames])
    latents: Tensor = pipe.vae.encode(video, device=pipe.device, tiled=False)
    pipe.load_models_to_device([])
    return latents


@torch.no_grad()
def readout(dit: Any, state: Tensor, keywords: Mapping[str, Any]) -> Tensor:
    """Return the velocity that the network gives if it ends after a block.

    Args:
        dit: the expert that ran.
        state: output of the block, [row, token, channel], prefix tokens removed.
        keywords: of the call: `latents` and `timestep`; and `fuse_vae_embedding_in_latents`, where it had it.
    """
    _, _, *latent = keywords["latents"].shape
    grid = token_grid(dit, (0, *latent))
    return dit.unpatchify(dit.head(state, _time(dit, grid, keywords)), grid)


def _time(dit: Any, grid: tuple[int, int, int], keywords: Mapping[str, Any]) -> Tensor:
    """Return the time embedding of a call, [row, channel]; [row, token, channel] where tokens have their own."""
    from diffsynth.models.wan_video_dit import sinusoidal_embedding_1d

    timestep = keywords["timestep"]
    if not (dit.seperated_timestep and keywords.get("fuse_vae_embedding_in_latents")):
        return dit.time_embedding(sinusoidal_embedding_1d(dit.freq_dim, timestep))
    # TI2V: the first frame is clean, so its tokens are told timestep 0.
    latents = keywords["latents"]
    ones = torch.ones(grid[0], grid[1] * grid[2], dtype=latents.dtype, device=latents.device)
    ones[0] = 0
    return dit.time_embedding(sinusoidal_embedding_1d(dit.freq_dim, (ones * timestep).flatten())[None])


def prepared(pipe: Any, keywords: Mapping[str, Any]) -> dict[str, Prepared]:
    """Return what the model gets at the first step, by branch, where it takes several rows."""
    refuse_rows(keywords)
    refuse_tiled(keywords)
    if keywords.get("cfg_merge"):
        raise PlanError("cfg_merge=True in a batch: it runs the branches one after the other; leave it out.")
    return prepare(branches, look)(pipe, keywords)


def expert_of(pipe: Any, timestep: float, keywords: Mapping[str, Any]) -> str:
    """Return the name of the DiT that the pipeline's own loop takes at a timestep."""
    if pipe.dit2 is None:
        return "dit"
    return "low" if timestep < 1000 * keywords["switch_DiT_boundary"] else "high"


def load_expert(pipe: Any, expert: str) -> None:
    """Put the models of a step on the device."""
    pipe.load_models_to_device(pipe.in_iteration_models_2 if expert == "low" else pipe.in_iteration_models)


def hold(velocity: Tensor, keywords: Mapping[str, Any]) -> Tensor:
    """Give the clean first frame a velocity of 0, where it is given in the latents (TI2V).

    The pipeline puts that frame back after every step, whatever the model says of it: it does not move, and x0 has it
    as it is. Nothing of what the pipeline makes changes.
    """
    if keywords.get("fuse_vae_embedding_in_latents"):
        velocity = velocity.clone()
        velocity[:, :, :1] = 0
    return velocity


def wan_facts(pipe: Any) -> dict[str, Any]:
    """Return what of the pipeline changes results, beside its weights and arguments."""
    return facts(pipe) | {"attention": _attention_backend()}


def _attention_backend() -> str:
    """Return the attention function that DiffSynth picks for this model, from what is installed."""
    from diffsynth.models import wan_video_dit as module

    for name in ("FLASH_ATTN_3", "FLASH_ATTN_2", "SAGE_ATTN"):
        if getattr(module, f"{name}_AVAILABLE"):
            return name.lower()
    return "torch_sdpa"


def settle(latents: Tensor, keywords: Mapping[str, Any]) -> Tensor:
    """Put the clean first frame back, as the pipeline does for models that carry it in the latents (TI2V)."""
    first = keywords.get("first_frame_latents")
    if first is not None:
        latents[:, :, 0:1] = first
    return latents


def wan_for(pipe: Any) -> Family:
    """Return the family of a pipeline: one whose model takes an image has that image's attention, too."""
    if not getattr(pipe.dit, "has_image_input", False):
        return WAN
    return replace(WAN, anatomy=replace(WAN.anatomy, sites=IMAGE_SITES))


WAN = Family(
    name="wan",
    anatomy=Anatomy(
        experts={"high": "dit", "low": "dit2"},
        blocks=("blocks",),
        sites=SITES,
        latent_grid=latent_grid,
        token_grid=token_grid,
        channels=lambda dit: int(dit.dim),
        multiples=(4, 16),
    ),
    call=Calling(
        arguments=arguments,
        branches=branches,
        refuse=refuse,
        intercept=interceptor(look, hold),
        quiet=quiet,
        default_steps=50,
        default_cfg=5.0,
        facts=wan_facts,
        words=words,
    ),
    flow=Flow(schedule=schedule, readout=readout),
    codec=Codec(decode=decode, outputs=outputs, encode=encode, decoded=decoded),
    batching=Batching(
        prepare=prepared,
        model=run_model,
        expert=expert_of,
        load=load_expert,
        settle=settle,
        blend=lambda scheduler, timestep, velocity, latents, keywords, stream: hold(velocity, keywords),
    ),
)

__all__ = ["IMAGE_SITES", "REFUSED", "SITES", "WAN", "look", "wan_for"]
