"""What a run of LTX-2 makes: x0, frames, sound, what is read out of a block; and what else changes it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dit_lens.families.diffsynth.common import facts
from dit_lens.families.diffsynth.ltx2.calls import grid, narrow
from dit_lens.families.family import flow_x0
from dit_lens.tasks.sample import as_frames


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
    frame, y, x = grid(keywords["latents"])
    timesteps = (keywords["timestep"].float() / 1000).repeat(1, frame * y * x, 1)
    if keywords.get("denoise_mask_video") is not None:  # what is held fast is told that it is clean
        timesteps = keywords["denoise_mask_video"].flatten(2).transpose(1, 2) * timesteps
    scaled = (timesteps * dit.timestep_scale_multiplier).flatten()
    _, embedded = dit.adaln_single(scaled, hidden_dtype=state.dtype)
    embedded = embedded.view(timesteps.shape[0], -1, embedded.shape[-1])
    velocity: Tensor = dit._process_output(dit.scale_shift_table, dit.norm_out, dit.proj_out, state, embedded)
    return velocity.transpose(1, 2).unflatten(2, (frame, y, x))


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
