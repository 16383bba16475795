"""What a run of LTX-2 is asked for: arguments, stages, sizes, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dit_lens.errors import PlanError
from dit_lens.families.call import Sizes, Stage
from dit_lens.families.patching import refuse_compiled
from dit_lens.tasks.sample import Sample

STAGE_2_STEPS = 3
DISTILLED_STEPS = 8
"""Both are lists of noise levels in DiffSynth's scheduler, whatever number of steps is asked for."""


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
    defaults = {
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
    return defaults | dict(extra)


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
    refuse_compiled("dit", pipe.dit)


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
