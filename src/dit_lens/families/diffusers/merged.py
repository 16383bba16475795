"""Which rows of a merged guidance batch are which branch: each pipeline's own code, read once."""

from __future__ import annotations

from typing import Any

from dit_lens.families.diffusers.pipeline import loop_of

UNCOND_FIRST = (
    *("CogVideoXPipeline", "CogVideoXImageToVideoPipeline", "LTXPipeline", "LTXImageToVideoPipeline"),
    *("MochiPipeline", "PixArtAlphaPipeline", "PixArtSigmaPipeline", "StableDiffusion3Pipeline"),
)
COND_FIRST = ("DiTPipeline",)


def known_order(pipe: Any) -> tuple[str, str] | None:
    """Return the branches of a merged batch, in the order of its rows; None where the pipeline is not listed."""
    name = loop_of(pipe)
    if name in UNCOND_FIRST:
        return "uncond", "cond"
    return ("cond", "uncond") if name in COND_FIRST else None
