"""Batches of LTX-2: a row at a time, since DiffSynth's model function takes one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dit_lens.errors import PlanError
from dit_lens.families.diffsynth.common import prepare, refuse_tiled, told
from dit_lens.families.diffsynth.ltx2.asked import branches
from dit_lens.families.diffsynth.ltx2.calls import look, narrow, references, wide
from dit_lens.families.family import Batching, Prepared
from dit_lens.families.latents import together


def _blank(keywords: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    return keywords["video_latents"], keywords["audio_latents"]


def prepared(pipe: Any, keywords: Mapping[str, Any]) -> dict[str, Prepared]:
    """Return, by branch, the keywords that the model gets at the first step; see `Batching.prepare`.

    Raises:
        PlanError: reference tokens, which single runs take.
    """
    refuse_tiled(keywords)
    calls = prepare(branches, lambda pipe, inputs: look(inputs), _blank)(pipe, keywords)
    for call in (prepared.keywords for prepared in calls.values()):
        if references(call):
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
    of_step = {"video_latents": latents["video"], "audio_latents": narrow(latents["audio"])}
    of_step |= {"dit": dit, "timestep": told(pipe, keywords["timestep"])}
    video, audio = pipe.model_fn(**{**keywords, **of_step})
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


BATCHING = Batching(
    prepared,
    run_model,
    load=lambda pipe, expert: pipe.load_models_to_device(pipe.in_iteration_models),
    blend=blend,
    most=1,
)
