"""What an LTX-2 pipeline says of itself while it runs: its stages, its calls of the model, its steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from dit_lens.errors import PlanError
from dit_lens.families.call import Forward, Listener
from dit_lens.families.family import Anatomy
from dit_lens.families.patching import MARK, refuse_traced, set_attribute, undo_all
from dit_lens.families.site import Tokens


def look(keywords: Mapping[str, Any]) -> Forward:
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
        "video": Tokens(grid(video), after=sum(_count(r) for r in references(keywords))),
        "audio": Tokens((audio.shape[2], 1, 1)),
        "text": Tokens((1, 1, keywords["video_context"].shape[1])),
    }
    rows = {branches[0]: slice(0, max(video.shape[0], keywords["video_context"].shape[0]))}
    return Forward("dit", rows, streams, float(keywords["timestep"].flatten()[0]))


def references(keywords: Mapping[str, Any]) -> list[Tensor]:
    """Return the latents that the model appends to the video's: images at later frames, videos in context."""
    context = keywords.get("in_context_video_latents")
    return [*(keywords.get("ref_frames_latents") or []), *([] if context is None else [context])]


def grid(latents: Tensor) -> tuple[int, int, int]:
    """Return the (frame, y, x) counts of latents [row, channel, frame, y, x]."""
    _, _, frame, y, x = latents.shape
    return frame, y, x


def _count(latents: Tensor) -> int:
    frame, y, x = grid(latents)
    return frame * y * x


def intercept(pipe: Any, anatomy: Anatomy, listener: Listener) -> Callable[[], None]:
    """Wrap what runs a stage, the model and a step, on the pipeline itself; see `Family.intercept`."""
    denoise_stage, model_fn, take_step = pipe.denoise_stage, pipe.model_fn, pipe.step
    refuse_traced(pipe, model_fn)
    stage = 0

    def run_stage(shared: Any, posi: Any, nega: Any, units: Any, *rest: Any, **keywords: Any) -> Any:
        nonlocal stage
        stage = int(units is pipe.stage2_units)
        return denoise_stage(shared, posi, nega, units, *rest, **keywords)

    def call(**keywords: Any) -> Any:
        listener.enter(stage)
        latents_of_call = {"video": keywords["video_latents"], "audio": wide(keywords["audio_latents"])}

        def proceed(latents: Mapping[str, Tensor]) -> Any:
            new = {"video_latents": latents["video"], "audio_latents": narrow(latents["audio"])}
            return model_fn(**{**keywords, **new})

        def skip() -> Any:
            return torch.zeros_like(keywords["video_latents"]), torch.zeros_like(keywords["audio_latents"])

        return listener.call(look(keywords), latents_of_call, proceed, skip)

    def step(
        scheduler: Any, latents: Tensor, progress_id: int, noise_pred: Tensor, **keywords: Any
    ) -> Tensor:
        """Step one stream. The pipeline blends its mask into the velocity here, before the scheduler's own step."""
        stream = "video" if latents is keywords["video_latents"] else "audio"
        into, out_of = (wide, narrow) if stream == "audio" else (_same, _same)
        scheduler_step = scheduler.step

        def advance(velocity: Tensor, timestep: Any, sample: Tensor, **more: Any) -> Tensor:
            def proceed(velocity: Tensor, latents: Tensor) -> Tensor:
                return into(scheduler_step(out_of(velocity), timestep, out_of(latents), **more))

            return out_of(listener.advance(into(velocity), timestep, into(sample), proceed, stream))

        put_back = set_attribute(scheduler, "step", advance)
        try:
            # From the latents that the model saw: what the mask holds fast is computed from them.
            start = out_of(listener.start(into(latents), stream))
            return take_step(scheduler, start, progress_id, noise_pred, **keywords)
        finally:
            put_back()

    setattr(call, MARK, True)
    wrapped = {"denoise_stage": run_stage, "model_fn": call, "step": step}
    return undo_all([_keep(pipe), *(set_attribute(pipe, name, value) for name, value in wrapped.items())])


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
