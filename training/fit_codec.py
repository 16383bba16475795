"""Fit the organism's codec (principal components of 8x8 and 8x8x4 patches) and draw its word table.

Usage: python training/fit_codec.py [--scenes 1500] [--out FILE]
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from einops import rearrange
from safetensors.torch import save_file
from tqdm import tqdm

from dit_lens.models.organism import LATENT_CHANNELS, TEXT_CHANNELS
from dit_lens.models.organism.modules import SPACE, TIME, WORDS, LinearCodec
from mixes import MIXES


@dataclass
class Args:
    """Options of the fit."""

    scenes: int = 2000
    """Scenes to fit on, over all groups."""
    patches: int = 500
    """Patches of each scene."""
    out: Path = Path("src/dit_lens/models/organism/frozen.safetensors")


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
    rng, groups = np.random.default_rng(0), [group for mix in MIXES.values() for group in mix]
    # What moves fast is hardest to say: the short videos of large boards count as much as all others.
    groups += [group for group in groups if group.side == 6 and group.frames == 13] * (len(groups) - 2)
    first, rest = [], []
    for i in tqdm(range(args.scenes), desc="scenes"):
        truth = groups[i % len(groups)].draw(rng).truth
        assert truth is not None
        video = torch.from_numpy(truth).float() / 127.5 - 1
        split = "(f t) (y p) (x q) c -> (f y x) (t p q c)"
        for patches, part, time in ((first, video[:1], 1), (rest, video[1:], TIME)):
            cut = rearrange(part, split, t=time, p=SPACE, q=SPACE)
            patches.append(cut[torch.from_numpy(rng.permutation(len(cut))[: args.patches])])
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
