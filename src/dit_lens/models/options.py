"""Options of the command line that say which model: one place for all scripts. No torch."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dit_lens.lens import Lens


@dataclass
class ModelOptions:
    """Which model, with which LoRA, and where it runs; see `dit_lens.models.load`."""

    model: str = "organism"
    """Which model: organism, wan2.2, ltx2.3, ... (docs/models.md), diffusers:REPOSITORY, or FILE.py:FUNCTION."""
    model_root: Path | None = None
    """Folder of repositories, as the hubs name them; DiffSynth downloads where none is given."""
    lora: str | None = None
    """LoRA file, for a model with one DiT; or "vbvr", for wan2.2, wan2.1 and ltx2.3."""
    high_noise_lora: Path | None = None
    """LoRA file for the high-noise DiT of a model with two."""
    low_noise_lora: Path | None = None
    """LoRA file for the low-noise DiT."""
    lora_alpha: float = 1.0
    """Factor of the LoRAs."""
    device: str | None = None
    """Where to run; cuda where there is one, unless given."""
    dtype: str | None = None
    """float32, float16 or bfloat16; the model's own unless given."""
    vram_limit: float | None = None
    """GiB of the device's memory to use; more stays in the host's."""

    def load(self) -> Lens:
        """Load the model."""
        from dit_lens.models import load

        given = {f.name: getattr(self, f.name) for f in fields(ModelOptions) if f.name != "model"}
        return load(self.model, **given)
