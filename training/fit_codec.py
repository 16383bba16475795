"""Fit the organism's codec (principal components of 8x8 and 8x8x4 patches) and draw its word table.

Usage: python training/fit_codec.py [--scenes 1500] [--out checkpoints/frozen.safetensors]
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from einops import rearrange
from safetensors.torch import save_file
from tqdm import tqdm

from data import LARGE, SMALL, pixels
from dit_lens.models.organism import LATENT_CHANNELS, TEXT_CHANNELS
from dit_lens.models.organism.modules import SPACE, TIME, WORDS, LinearCodec


@dataclass
class Args:
    """Options of the fit."""

    scenes: int = 1500
    """Scenes to fit on, over all tasks."""
    out: Path = Path("checkpoints/frozen.safetensors")


def principal(patches: torch.Tensor, channels: int) -> dict[str, torch.Tensor]:
    """Return mean, basis and scale of patches [patch, pixel].

    A component with less than a thousandth of the first one's variance is not blown up to unit variance:
    it would be rounding noise.
    """
    mean = patches.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov((patches - mean).T.double()))
    values, vectors = values.flip(0)[:channels], vectors.flip(1)[:, :channels]
    signs = vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
    scale = values.clamp(min=float(values[0]) * 1e-3).sqrt()
    return {"mean": mean, "basis": (vectors * signs).T.float(), "scale": scale.float()}


def main(args: Args) -> None:
    """Fit, check the fit's size, save."""
    makers = {**SMALL, **LARGE}
    first, rest = [], []
    for i in tqdm(range(args.scenes), desc="scenes"):
        video = pixels(list(makers.values())[i % len(makers)][0](i))
        split = "1 c (f t) (y p) (x q) -> (f y x) (t p q c)"
        first.append(rearrange(video[:, :, :1], split, t=1, p=SPACE, q=SPACE))
        rest.append(rearrange(video[:, :, 1:], split, t=TIME, p=SPACE, q=SPACE))
    codec = LinearCodec(LATENT_CHANNELS)
    for name, patches in (("first", torch.cat(first)), ("rest", torch.cat(rest))):
        for part, value in principal(patches, LATENT_CHANNELS).items():
            getattr(codec, f"{name}_{part}").copy_(value)
    table = torch.randn(len(WORDS), TEXT_CHANNELS, generator=torch.Generator().manual_seed(0))
    state = {f"vae.{k}": v for k, v in codec.state_dict().items()} | {"text_encoder.table": table}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.half().contiguous() for k, v in state.items()}, args.out)


if __name__ == "__main__":
    main(tyro.cli(Args))
