"""LTX-2, LTX-2.3 and LTX-2.5 through DiffSynth's `LTX2AudioVideoPipeline`: video and sound in one DiT.

Its blocks take and return two `TransformerArgs`, one a stream. A token is one latent position of the video, or one
moment of the sound: the sound's grid is (time, 1, 1), its latents are (time, mel band, 1).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dit_lens.errors import PlanError
from dit_lens.families.base import Batching, Family, Seen, Session, Site, Sizes, Stage, Tokens, flow_x0
from dit_lens.families.diffsynth import MARK, facts, prepare, quiet, schedule, set_attribute, told
from dit_lens.streams import together
from dit_lens.tasks.sample import Sample, as_frames

STAGE_2_STEPS = 3
DISTILLED_STEPS = 8
"""Both are lists of noise levels in DiffSynth's scheduler, whatever number of steps is asked for."""


def _sites(stream: str, prefix: str, across: tuple[str, str, str]) -> dict[str, Site]:
    """Return the sites of one stream; `across` is the name, module and description of what it reads of the other."""
    name, module, words = across
    return {
        "block": Site(
            "", item=(("video", "audio").index(stream), "x"), long_name="residual stream after the block"
        ),
        "block_in": Site("", "input", "residual stream before the block", (stream, "x")),
        "self_attn": Site(f"{prefix}attn1", long_name="self-attention output, before its gate"),
        "cross_attn": Site(f"{prefix}attn2", long_name="text cross-attention output, before its gate"),
        name: Site(module, long_name=words),
        "ffn": Site(f"{prefix}ff", long_name="feed-forward output, before its gate"),
        "q": Site(f"{prefix}attn1.to_q", long_name="self-attention queries, before norm and rotation"),
        "k": Site(f"{prefix}attn1.to_k", long_name="self-attention keys, before norm and rotation"),
        "v": Site(f"{prefix}attn1.to_v", long_name="self-attention values"),
    }


SITES = {
    "video": _sites(
        "video",
        "",
        ("from_audio", "audio_to_video_attn", "what the video reads of the sound, before its gate"),
    ),
    "audio": _sites(
        "audio",
        "audio_",
        ("from_video", "video_to_audio_attn", "what the sound reads of the video, before its gate"),
    ),
}


# ---- what a call says of itself


def look(keywords: Mapping[str, Any]) -> Seen:
    """Label one call of `model_fn` from its own keywords.

    Raises:
        PlanError: it carries neither or both of the prompts, by which DiffSynth tells the branches apart.
    """
    branches = [b for name, b in (("prompt", "cond"), ("negative_prompt", "uncond")) if name in keywords]
    if len(branches) != 1:
        raise PlanError(
            f"A call of model_fn has {len(branches)} of the keywords prompt and negative_prompt: its branch is unknown."
        )
    video, audio = keywords["video_latents"], keywords["audio_latents"]
    # Patches are single latent positions: the pipeline's patchifiers have patch_size 1.
    streams = {
        "video": Tokens(_grid(video), after=sum(_count(r) for r in _references(keywords))),
        "audio": Tokens((audio.shape[2], 1, 1)),
    }
    rows = {branches[0]: slice(0, max(video.shape[0], keywords["video_context"].shape[0]))}
    return Seen("dit", rows, streams, float(keywords["timestep"].flatten()[0]))


def _references(keywords: Mapping[str, Any]) -> list[Tensor]:
    """Return the latents that the model appends to the video's: images at later frames, videos in context."""
    context = keywords.get("in_context_video_latents")
    return [*(keywords.get("ref_frames_latents") or []), *([] if context is None else [context])]


def _grid(latents: Tensor) -> tuple[int, int, int]:
    _, _, frame, y, x = latents.shape
    return frame, y, x


def _count(latents: Tensor) -> int:
    frame, y, x = _grid(latents)
    return frame * y * x


# ---- what is wrapped during a run


def intercept(pipe: Any, family: Family, session: Session) -> Callable[[], None]:
    """Wrap what runs a stage, the model and a step, on the pipeline itself; see `Family.intercept`."""
    denoise_stage, model_fn, take_step = pipe.denoise_stage, pipe.model_fn, pipe.step
    if hasattr(model_fn, MARK):
        raise PlanError(f"This {type(pipe).__name__} is being traced already: end that trace first.")
    stage = 0

    def run_stage(shared: Any, posi: Any, nega: Any, units: Any, *rest: Any, **keywords: Any) -> Any:
        nonlocal stage
        stage = int(units is pipe.stage2_units)
        return denoise_stage(shared, posi, nega, units, *rest, **keywords)

    def call(**keywords: Any) -> Any:
        session.enter(stage)
        given = {"video": keywords["video_latents"], "audio": wide(keywords["audio_latents"])}

        def proceed(latents: Mapping[str, Tensor]) -> Any:
            new = {"video_latents": latents["video"], "audio_latents": narrow(latents["audio"])}
            return model_fn(**{**keywords, **new})

        def skip() -> Any:
            return torch.zeros_like(keywords["video_latents"]), torch.zeros_like(keywords["audio_latents"])

        return session.call(look(keywords), given, proceed, skip)

    def step(
        scheduler: Any, latents: Tensor, progress_id: int, noise_pred: Tensor, **keywords: Any
    ) -> Tensor:
        """Step one stream. The pipeline blends its mask into the velocity here, before the scheduler's own step."""
        stream = "video" if latents is keywords["video_latents"] else "audio"
        into, out_of = (wide, narrow) if stream == "audio" else (_same, _same)
        own = scheduler.step

        def advance(velocity: Tensor, timestep: Any, sample: Tensor, **more: Any) -> Tensor:
            def proceed(velocity: Tensor, latents: Tensor) -> Tensor:
                return into(own(out_of(velocity), timestep, out_of(latents), **more))

            return out_of(session.advance(into(velocity), timestep, into(sample), proceed, stream))

        put_back = set_attribute(scheduler, "step", advance)
        try:
            # From the latents that the model saw: what the mask holds fast is computed from them.
            start = out_of(session.start(into(latents), stream))
            return take_step(scheduler, start, progress_id, noise_pred, **keywords)
        finally:
            put_back()

    setattr(call, MARK, True)
    wrapped = {"denoise_stage": run_stage, "model_fn": call, "step": step}
    undo = [_keep(pipe), *(set_attribute(pipe, name, value) for name, value in wrapped.items())]

    def restore() -> None:
        for put_back in reversed(undo):
            put_back()

    return restore


def _keep(pipe: Any) -> Callable[[], None]:
    """Return what puts back what a run of DiffSynth's leaves behind, and the next run would start from.

    A second stage, and LTX-2.5's distilled runs, leave a scheduler of theirs; a second stage also its LoRA.
    """
    scheduler = pipe.scheduler
    loras = [
        (held, list(held))
        for module in pipe.modules()
        for held in (getattr(module, "lora_A_weights", None), getattr(module, "lora_B_weights", None))
        if isinstance(held, list)
    ]

    def put_back() -> None:
        pipe.scheduler = scheduler
        for held, weights in loras:
            held[:] = weights

    return put_back


def wide(audio: Tensor) -> Tensor:
    """Arrange sound latents [row, channel, time, mel] as [row, channel, frame, y, x]: bands along y, x of one."""
    return audio.unsqueeze(-1)


def narrow(audio: Tensor) -> Tensor:
    """Undo `wide`."""
    return audio.squeeze(-1)


def _same(latents: Tensor) -> Tensor:
    return latents


# ---- what a run is asked for


def arguments(
    sample: Sample, seed: int, steps: int, cfg_scale: float, extra: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the keywords of the pipeline's call; `extra` is the user's own and wins.

    Raises:
        PlanError: the sample is a prompt batch, which this pipeline does not take.
    """
    if not isinstance(sample.prompt, str):
        raise PlanError(f"{sample.task}/{sample.id}: LTX-2 takes one prompt a run; give each as a sample.")
    image = {} if sample.image is None else {"input_images": [sample.image], "input_images_indexes": [0]}
    own = {
        "prompt": sample.prompt,
        "negative_prompt": sample.negative_prompt,
        "seed": seed,
        "height": sample.height,
        "width": sample.width,
        "num_frames": sample.num_frames,
        "frame_rate": 24,
        "num_inference_steps": steps,
        "cfg_scale": cfg_scale,
        "tiled": False,
        **image,
    }
    return own | dict(extra)


def branches(keywords: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the guidance branches that the first stage runs."""
    return ("cond", "uncond") if keywords["cfg_scale"] != 1.0 else ("cond",)


def later(keywords: Mapping[str, Any]) -> tuple[Stage, ...]:
    """Return the stages after the first: where there is a second, it has noise levels of its own and no guidance."""
    return (Stage(STAGE_2_STEPS, ("cond",)),) if keywords.get("use_two_stage_pipeline") else ()


def refuse(pipe: Any, keywords: Mapping[str, Any]) -> None:
    """Refuse what changes what hooks see, or what the pipeline does otherwise than it is told.

    Raises:
        PlanError: it names the argument and the reason.
    """
    if keywords.get("audio_only"):
        raise PlanError(
            "audio_only=True makes no video, whose grid a run stands on. Leave it out; ask for few frames."
        )
    if keywords.get("auto_duration"):
        raise PlanError("auto_duration=True overrides the sample's number of frames. Leave it out.")
    images = keywords.get("input_images") or []
    if keywords.get("in_context_videos") and any(keywords.get("input_images_indexes", [0])[: len(images)]):
        raise PlanError(
            "in_context_videos with images after frame 0: DiffSynth appends the videos once more at every call, so that a "
            "result depends on how often the model ran. Give one of the two."
        )
    if keywords.get("use_distilled_pipeline"):
        if keywords["num_inference_steps"] != DISTILLED_STEPS or keywords["cfg_scale"] != 1.0:
            raise PlanError(
                f"use_distilled_pipeline=True has {DISTILLED_STEPS} steps and no guidance: pass steps={DISTILLED_STEPS}, "
                "cfg_scale=1."
            )
    elif keywords.get("use_two_stage_pipeline") and not getattr(pipe.dit, "vram_management_enabled", False):
        raise PlanError(
            "use_two_stage_pipeline=True merges the second stage's LoRA into the weights for good, so that the next run has "
            "another model: load with VRAM management, or call pipe.enable_lora_hot_loading(pipe.dit) first."
        )
    compiled = [n for n, m in pipe.dit.named_modules() if getattr(m, "_compiled_call_impl", None) is not None]
    if compiled:
        raise PlanError(
            f"dit.{compiled[0]} is compiled: hooks would break its graph. Trace an uncompiled model."
        )


# ---- grids, noise levels, results


def latent_grid(pipe: Any, sample: Sample) -> tuple[int, int, int, int]:
    """Return the video latents' (channel, frame, y, x), with the pipeline's own rounding of sizes."""
    keywords = {
        "height": sample.height,
        "width": sample.width,
        "num_frames": sample.num_frames,
        "frame_rate": 24,
    }
    return sizes(pipe, keywords)["video"].latent


def sizes(pipe: Any, keywords: Mapping[str, Any], stage: int = 0) -> dict[str, Sizes]:
    """Return the sizes of a stage, by the pipeline's own shape classes and rounding."""
    from diffsynth.models.ltx2_common import AudioLatentShape, VideoLatentShape, VideoPixelShape

    height, width = keywords["height"], keywords["width"]
    two = bool(keywords.get("use_two_stage_pipeline"))
    factor = keywords.get("stage2_spatial_upsample_factor", 2) if two else 1
    height, width, frames = pipe.check_resize_height_width(
        height // factor, width // factor, keywords["num_frames"], verbose=0
    )
    large = factor if stage else 1
    pixels = VideoPixelShape(1, frames, int(height * large), int(width * large), keywords["frame_rate"])
    _, *video = VideoLatentShape.from_pixel_shape(pixels)
    _, channel, time, mel = AudioLatentShape.from_video_pixel_shape(pixels)
    dit = pipe.dit
    return {
        "video": Sizes(tuple(video), tuple(video[1:]), int(dit.inner_dim)),
        "audio": Sizes((channel, time, mel, 1), (time, 1, 1), int(dit.audio_inner_dim)),
    }


def x0(scheduler: Any, latents: Tensor, velocity: Tensor, step: int) -> Tensor:
    """Return x0 as the scheduler's own last step has it; the ancestral one computes in float32."""
    if getattr(scheduler, "generator", None) is None:
        return flow_x0(scheduler, latents, velocity, step)
    return flow_x0(scheduler, latents.float(), velocity.float(), step).to(latents.dtype)


@torch.no_grad()
def decode(pipe: Any, latents: Tensor) -> Any:
    """Decode latents [row, channel, frame, y, x] to frames [row, time, height, width, rgb] of uint8."""
    pipe.load_models_to_device(["video_vae_decoder"])
    videos = []
    for row in latents.to(device=pipe.device, dtype=pipe.torch_dtype):
        # The same calls as the pipeline's own last lines, so the last step decodes to its video.
        videos.append(
            as_frames(pipe.vae_output_to_video(pipe.video_vae_decoder.decode(row[None], tiled=False)))
        )
    pipe.load_models_to_device([])
    return np.stack(videos)


@torch.no_grad()
def decode_audio(pipe: Any, latents: Tensor) -> Any:
    """Decode sound latents [row, channel, frame, y, x] to waveforms [row, speaker, audio_time] of float32."""
    pipe.load_models_to_device(["audio_vae_decoder", "audio_vocoder"])
    sounds = []
    for row in narrow(latents).to(device=pipe.device, dtype=pipe.torch_dtype):
        waveform = pipe.audio_vocoder(pipe.audio_vae_decoder(row[None]))
        sounds.append(pipe.output_audio_format_check(waveform).numpy())
    pipe.load_models_to_device([])
    return np.stack(sounds)


def outputs(output: Any, keywords: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return the frames [time, height, width, rgb] and the waveform [speaker, audio_time]."""
    video, audio = output
    return {"video": as_frames(video), "audio": audio.numpy()}


def rates(pipe: Any, keywords: Mapping[str, Any]) -> dict[str, float]:
    """Return how many frames, and how many samples of sound, make a second."""
    return {"video": float(keywords["frame_rate"]), "audio": float(pipe.audio_vocoder.output_sampling_rate)}


@torch.no_grad()
def readout(dit: Any, state: Tensor, keywords: Mapping[str, Any]) -> Tensor:
    """Return the video's velocity that the network gives if it ends after a block.

    Args:
        dit: the DiT.
        state: output of the block, [row, token, channel], reference tokens removed.
        keywords: `latents` and `timestep` of the call, and `denoise_mask_video` where it has one.
    """
    frame, y, x = _grid(keywords["latents"])
    timesteps = (keywords["timestep"].float() / 1000).repeat(1, frame * y * x, 1)
    if keywords.get("denoise_mask_video") is not None:  # what is held fast is told that it is clean
        timesteps = keywords["denoise_mask_video"].flatten(2).transpose(1, 2) * timesteps
    scaled = (timesteps * dit.timestep_scale_multiplier).flatten()
    _, embedded = dit.adaln_single(scaled, hidden_dtype=state.dtype)
    embedded = embedded.view(timesteps.shape[0], -1, embedded.shape[-1])
    velocity: Tensor = dit._process_output(dit.scale_shift_table, dit.norm_out, dit.proj_out, state, embedded)
    return velocity.transpose(1, 2).unflatten(2, (frame, y, x))


# ---- batches: a row at a time, since DiffSynth's model function takes one


def _blank(keywords: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    return keywords["video_latents"], keywords["audio_latents"]


def prepared(pipe: Any, keywords: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return, by branch, the keywords that the model gets at the first step; see `Batching.prepare`.

    Raises:
        PlanError: reference tokens, which single runs take.
    """
    calls = prepare(branches, _blank)(pipe, keywords)
    for call in calls.values():
        if _references(call):
            raise PlanError(
                "Images after frame 0 and videos in context do not go into batches: use lens.run."
            )
        latents = {"video": call.pop("video_latents"), "audio": wide(call.pop("audio_latents"))}
        call["latents"] = together(latents)
    return calls


def run_model(
    pipe: Any, dit: Any, keywords: Mapping[str, Any], latents: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Run one branch of a batch; returns the velocities by stream."""
    own = {"video_latents": latents["video"], "audio_latents": narrow(latents["audio"])}
    own |= {"dit": dit, "timestep": told(pipe, keywords["timestep"])}
    video, audio = pipe.model_fn(**{**keywords, **own})
    return {"video": video, "audio": wide(audio)}


def blend(
    scheduler: Any, timestep: Any, velocity: Tensor, latents: Tensor, keywords: Mapping[str, Any], stream: str
) -> Tensor:
    """Blend in, by the mask, the velocity that leads to what is given, as `pipe.step` does."""
    if keywords.get(f"denoise_mask_{stream}") is None:
        return velocity
    mask, clean = keywords[f"denoise_mask_{stream}"], keywords[f"input_latents_{stream}"]
    if stream == "audio":
        mask, clean = wide(mask), wide(clean)
    held = scheduler.return_to_timestep(timestep, latents, clean)
    return held * (1 - mask) + velocity * mask


def ltx_facts(pipe: Any) -> dict[str, Any]:
    """Return what of the pipeline changes results, beside its weights and arguments."""
    lora = getattr(pipe, "stage2_lora_config", None)
    stage_2 = None if lora is None else [_lora(lora), pipe.stage2_lora_strength]
    return facts(pipe) | {
        "attention": _attention(),
        "stage2_lora": stage_2,
    }


def _lora(config: Any) -> Any:
    """Return what tells one LoRA from another: the content of its tensors, or of its file."""
    if config.state_dict is not None:
        digest = hashlib.sha256()
        for name, value in sorted(config.state_dict.items()):
            digest.update(name.encode() + value.detach().float().cpu().numpy().tobytes())
        return digest.hexdigest()
    if config.path is None:
        return [config.model_id, config.origin_file_pattern]
    with open(config.path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _attention() -> str:
    """Return the attention function that DiffSynth picks for this model, from what is installed."""
    from diffsynth.core.attention.attention import ATTENTION_IMPLEMENTATION

    return str(ATTENTION_IMPLEMENTATION)


LTX2 = Family(
    name="ltx2",
    experts={"dit": "dit"},
    blocks=("transformer_blocks",),
    sites=SITES,
    intercept=intercept,
    arguments=arguments,
    branches=branches,
    refuse=refuse,
    latent_grid=latent_grid,
    token_grid=lambda dit, latent: latent[1:],
    channels=lambda dit: int(dit.inner_dim),
    decode=decode,
    outputs=outputs,
    readout=readout,
    schedule=schedule,
    facts=ltx_facts,
    quiet=quiet,
    default_steps=30,
    default_cfg=3.0,
    silent=("progress_bar_cmd",),
    x0=x0,
    latents=("video", "audio"),
    decode_audio=decode_audio,
    more_sizes=sizes,
    rates=rates,
    later=later,
    batching=Batching(
        prepared,
        run_model,
        load=lambda pipe, expert: pipe.load_models_to_device(pipe.in_iteration_models),
        blend=blend,
        most=1,
    ),
)
