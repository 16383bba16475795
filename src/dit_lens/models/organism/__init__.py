"""The model organisms: miniatures of Wan 2.2-I2V that are really trained, run by DiffSynth's own classes.

`table.py` lists them. Each is a `WanVideoPipeline` with one small `WanModel` or two, a linear codec and a word table, from
the files beside this one. How they were made: `training/`; what they can do: `docs/organism.md`.
"""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

from dit_lens.models.organism.table import (
    CONFIG,
    DEFAULT,
    FOLDER,
    LATENT_CHANNELS,
    NAMES,
    ORGANISMS,
    TEXT_CHANNELS,
    WEIGHTS,
    whole_name,
    with_weights,
)

TASKS = ORGANISMS[DEFAULT].tasks
"""Tasks that the default organism was trained on."""


def pipeline(
    weights: str | Path | None = "trained",
    device: str = "cpu",
    dtype: Any = None,
    *,
    name: str = "organism",
    folder: Path = FOLDER,
) -> Any:
    """Make an organism's pipeline, without the LoRA that it may have.

    Args:
        weights: "trained"; "random", with DiTs drawn from a fixed seed and codec and words as trained; a safetensors file
            (keys `dit.*`) for the DiT, such as `training/train.py` writes; None leaves everything untrained and reads no file.
        device: where to run.
        dtype: a torch dtype or its name. Default: float32 (bfloat16 is very slow on CPUs).
        name: one of `NAMES`.
        folder: of the files. Default: that of the package.

    Returns:
        DiffSynth's `WanVideoPipeline`.

    Raises:
        ModelError: a file is missing, not whole, or does not fit.
        PlanError: there is no such dtype, or no such weights, or it takes none of a file.
    """
    one, kind = (ORGANISMS[whole_name(name)], None) if weights is None else with_weights(name, weights)
    with contextlib.redirect_stdout(io.StringIO()):  # diffsynth talks while it is imported
        import torch

        from dit_lens.models import loading
        from dit_lens.models.organism import building

    dtype = torch.float32 if dtype is None else loading.number_type(dtype)
    return building.build(whole_name(name), one, kind, Path(folder), device, dtype)


__all__ = [
    "CONFIG",
    "DEFAULT",
    "FOLDER",
    "LATENT_CHANNELS",
    "NAMES",
    "ORGANISMS",
    "TASKS",
    "TEXT_CHANNELS",
    "WEIGHTS",
    "pipeline",
]
