"""Which rows of a merged guidance batch are which branch: each pipeline's own code, read once."""

from __future__ import annotations

from typing import Any

from dit_lens.errors import PlanError

UNCOND_FIRST = (
    *("CogVideoXPipeline", "CogVideoXImageToVideoPipeline", "LTXPipeline", "LTXImageToVideoPipeline"),
    *("MochiPipeline", "PixArtAlphaPipeline", "PixArtSigmaPipeline", "StableDiffusion3Pipeline"),
)
COND_FIRST = ("DiTPipeline",)


def merged_order(pipe: Any) -> tuple[str, str]:
    """Return the branches of a merged batch, in the order of its rows.

    Raises:
        PlanError: this pipeline's order is not known.
    """
    names = [kind.__name__ for kind in type(pipe).__mro__]
    if any(name in names for name in UNCOND_FIRST):
        return "uncond", "cond"
    if any(name in names for name in COND_FIRST):
        return "cond", "uncond"
    raise PlanError(
        f"{names[0]} merges the guidance branches into one batch, in an order that is not known here: run it with "
        f"cfg_scale=1, or add it to dit_lens.families.diffusers.merged ({', '.join((*UNCOND_FIRST, *COND_FIRST))} are there)."
    )
