"""Options of the command line that say which model: one place for all scripts. No torch."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import tyro

if TYPE_CHECKING:
    from dit_lens.lens import Lens

T = TypeVar("T")

Unset = Annotated[T | None, tyro.conf.arg(help_behavior_hint="")]
"""An option that may be left out. Its help says the default, so the parser adds no "(default: None)"."""


@dataclass
class ModelOptions:
    """Which model, with which LoRA, and where it runs; see `dit_lens.models.load`."""

    model: str = "organism"
    """The model: organism, organism-full, wan2.2, ltx2.3, ... (docs/models.md), diffusers:REPOSITORY, or FILE.py:FUNCTION."""
    model_root: Unset[Path] = None
    """Folder of repositories, as the hubs name them. Default: DiffSynth downloads what it needs."""
    lora: Unset[str] = None
    """LoRA file, for a model with one DiT; or "vbvr", for wan2.2, wan2.1 and ltx2.3; or "puzzles", for organism-base.
    Default: none."""
    high_noise_lora: Unset[Path] = None
    """LoRA file for the high-noise DiT of a model with two. Default: none."""
    low_noise_lora: Unset[Path] = None
    """LoRA file for the low-noise DiT of a model with two. Default: none."""
    lora_alpha: float = 1.0
    """Factor of the LoRAs."""
    weights: str = "trained"
    """trained; shuffled (the numbers of each weight in a random order, a control); or, for an organism, random (DiTs drawn from a
    fixed seed, a control) or a file of its DiT (docs/organism.md)."""
    device: Unset[str] = None
    """Where the model runs, such as cpu or cuda:1. Default: cuda where there is one, else cpu."""
    dtype: Unset[str] = None
    """Number type of the weights: float32, float16 or bfloat16. Default: the model's own."""
    vram_limit: Unset[float] = None
    """GiB of the device's memory that the weights may take; the rest stays in the host's. Default: no limit."""

    def load(self) -> Lens:
        """Load the model."""
        from dit_lens.models import load

        options = {f.name: getattr(self, f.name) for f in fields(ModelOptions) if f.name != "model"}
        return load(self.model, **options)
