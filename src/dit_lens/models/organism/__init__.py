"""The model organism: a miniature of Wan 2.2-I2V that is really trained, run by DiffSynth's own classes.

`pipeline()` makes a `WanVideoPipeline` with a small `WanModel`, a linear codec and a word table, all from the
`organism.safetensors` beside this file. How it was made: `training/`; what it can do: `docs/organism.md`.
"""

from __future__ import annotations

import contextlib
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

from dit_lens.errors import DitLensError
from dit_lens.families.diffsynth.wan import WAN

WEIGHTS = Path(__file__).with_name("organism.safetensors")
TASKS = ("maze", "loop", "choose", "circle", "pattern", "occlude")
"""Tasks that it was trained on. Of the words of others it knows some, and answers none of them."""
KNOWN_WORDS = 19
"""Of `modules.WORDS`, those that the shipped weights were trained with."""
TEXT_CHANNELS = 32
LATENT_CHANNELS = 48
CONFIG: dict[str, Any] = {
    "dim": 128,
    "in_dim": 2 * LATENT_CHANNELS + 4,
    "ffn_dim": 384,
    "out_dim": LATENT_CHANNELS,
    "text_dim": TEXT_CHANNELS,
    "freq_dim": 128,
    "eps": 1e-6,
    "patch_size": (1, 2, 2),
    "num_heads": 4,
    "num_layers": 10,
    "has_image_input": False,
    "require_clip_embedding": False,
}

FAMILY = replace(WAN, call=replace(WAN.call, default_steps=20, default_cfg=1.0))
"""Wan, with the organism's own sampling defaults; guidance is measured in docs/organism.md."""


def pipeline(weights: Path | str | None = WEIGHTS, device: str = "cpu", dtype: Any = None) -> Any:
    """Make the organism's pipeline.

    Args:
        weights: a file made by `training/train.py`; None leaves everything untrained.
        device: where to run.
        dtype: a torch dtype or its name. Default: float32 (bfloat16 is very slow on CPUs).

    Returns:
        DiffSynth's `WanVideoPipeline`.

    Raises:
        DitLensError: the file of weights is missing.
        PlanError: there is no such dtype.
    """
    import torch

    with contextlib.redirect_stdout(io.StringIO()):  # diffsynth talks while it is imported
        from diffsynth.models.wan_video_dit import WanModel
        from diffsynth.pipelines.wan_video import WanVideoPipeline

    from dit_lens.models import loading
    from dit_lens.models.organism.modules import LinearCodec, TextEncoder, Tokenizer

    dtype = torch.float32 if dtype is None else loading.number_type(dtype)
    pipe = WanVideoPipeline(device=device, torch_dtype=dtype)
    pipe.tokenizer = Tokenizer(KNOWN_WORDS)
    pipe.text_encoder = TextEncoder(TEXT_CHANNELS, KNOWN_WORDS)
    pipe.vae = LinearCodec(LATENT_CHANNELS)
    pipe.dit = WanModel(**CONFIG)
    if weights is not None:
        _load(pipe, Path(weights))
    pipe.eval().requires_grad_(False)
    return pipe.to(device=device, dtype=dtype)


def _load(pipe: Any, path: Path) -> None:
    from safetensors.torch import load_file

    if not path.exists():
        raise DitLensError(f"No organism weights at {path}: make them with `python training/train.py`.")
    state = load_file(path)
    for name in ("dit", "vae", "text_encoder"):
        part = {k.removeprefix(name + "."): v.float() for k, v in state.items() if k.startswith(name + ".")}
        getattr(pipe, name).load_state_dict(part)
