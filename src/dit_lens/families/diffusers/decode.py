"""Latents to frames, by a pipeline's own codec and its own normalisation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dit_lens.errors import PlanError
from dit_lens.families.diffusers.pipeline import as_pixels, loop_of


@torch.no_grad()
def decode(pipe: Any, latents: Tensor) -> np.ndarray:
    """Decode latents [row, channel, frame, y, x] to frames [row, time, height, width, rgb] of uint8.

    Raises:
        PlanError: the codec's normalisation is not known.
    """
    refuse_unknown(pipe)
    videos = []
    for row in latents.to(device=pipe._execution_device, dtype=pipe.vae.dtype):
        frames = CODECS[type(pipe.vae).__name__](pipe, row[None])
        frames = (frames[0] / 2 + 0.5).clamp(0, 1)  # [rgb, time, height, width]
        videos.append(as_pixels(frames.permute(1, 2, 3, 0).float().cpu().numpy()))
    return np.stack(videos)


def refuse_unknown(pipe: Any) -> None:
    """Refuse a codec that the library cannot decode by; see `Codec.check`.

    Raises:
        PlanError: it names the codec.
    """
    kind, config = type(pipe.vae).__name__, pipe.vae.config
    if kind not in CODECS:
        raise PlanError(
            f"{type(pipe).__name__}: how latents are scaled for {kind} is not known; known are {', '.join(CODECS)}. "
            'Decode with the pipeline itself; or run with output_type="latent".'
        )
    if getattr(config, "timestep_conditioning", False):
        raise PlanError("This LTX codec adds noise before it decodes: decode with the pipeline itself.")
    if kind == "AutoencoderKLCogVideoX" and pipe.transformer.config.patch_size_t is not None:
        raise PlanError("CogVideoX 1.5 pads its latents by frames that only the pipeline knows of.")


def _decoded(pipe: Any, latents: Tensor, *more: Any) -> Tensor:
    out: Tensor = pipe.vae.decode(latents, *more, return_dict=False)[0]
    return out


def _column(values: Any, like: Tensor) -> Tensor:
    return torch.as_tensor(values).view(1, -1, 1, 1, 1).to(like)


def _wan(pipe: Any, z: Tensor) -> Tensor:
    config = pipe.vae.config
    # Divided by the inverse, as the pipeline does: the last bit differs otherwise.
    return _decoded(pipe, z / (1.0 / _column(config.latents_std, z)) + _column(config.latents_mean, z))


def _ltx(pipe: Any, z: Tensor) -> Tensor:
    vae = pipe.vae
    return _decoded(
        pipe, pipe._denormalize_latents(z, vae.latents_mean, vae.latents_std, vae.config.scaling_factor), None
    )


def _cogvideox(pipe: Any, z: Tensor) -> Tensor:
    out: Tensor = pipe.decode_latents(z.transpose(1, 2))
    return out


def _mochi(pipe: Any, z: Tensor) -> Tensor:
    config = pipe.vae.config
    if getattr(config, "latents_mean", None) is None or getattr(config, "latents_std", None) is None:
        return _scaled(pipe, z)
    mean, std = _column(config.latents_mean, z), _column(config.latents_std, z)
    return _decoded(pipe, z * std / config.scaling_factor + mean)


def _scaled(pipe: Any, z: Tensor) -> Tensor:
    return _decoded(pipe, z / pipe.vae.config.scaling_factor)


def _hunyuan(pipe: Any, z: Tensor) -> Tensor:
    video = _scaled(pipe, z)
    kind = getattr(pipe.transformer.config, "image_condition_type", None)
    # The image's own latent frame becomes four frames, which the pipeline cuts off.
    cut = kind == "latent_concat" and loop_of(pipe) == "HunyuanVideoImageToVideoPipeline"
    return video[:, :, 4:] if cut else video


def _image(pipe: Any, z: Tensor) -> Tensor:
    config = pipe.vae.config
    z = z.squeeze(2)
    if loop_of(pipe) == "DiTPipeline":
        return _decoded(pipe, 1 / config.scaling_factor * z).unsqueeze(2)
    shifted = hasattr(config, "shift_factor") and loop_of(pipe).startswith(("Flux", "StableDiffusion3"))
    return _decoded(pipe, z / config.scaling_factor + (config.shift_factor if shifted else 0)).unsqueeze(2)


CODECS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "AutoencoderKL": _image,
    "AutoencoderKLCogVideoX": _cogvideox,
    "AutoencoderKLHunyuanVideo": _hunyuan,
    "AutoencoderKLLTXVideo": _ltx,
    "AutoencoderKLMochi": _mochi,
    "AutoencoderKLWan": _wan,
}
"""Codec to how a pipeline scales latents for it, and decodes them to [row, rgb, time, height, width] in [-1, 1]."""
