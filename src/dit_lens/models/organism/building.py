"""From files to an organism's pipeline, of DiffSynth's own classes: this imports torch and diffsynth."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffsynth.models.wan_video_dit import WanModel
from diffsynth.pipelines.wan_video import WanVideoPipeline
from safetensors import safe_open

from dit_lens.errors import ModelError
from dit_lens.models import files
from dit_lens.models.organism.causal import make_causal
from dit_lens.models.organism.modules import WORDS, LinearCodec, TextEncoder, Tokenizer
from dit_lens.models.organism.shipped import checked
from dit_lens.models.organism.table import LATENT_CHANNELS, SEED, TEXT_CHANNELS, Organism


def build(
    name: str, one: Organism, weights: str | None, folder: Path, device: str, dtype: torch.dtype
) -> Any:
    """Make a pipeline; `organism.pipeline` says of what."""
    words = len(WORDS) if weights is None else known_words(folder / one.frozen)
    pipe = WanVideoPipeline(device=device, torch_dtype=dtype)
    pipe.tokenizer = Tokenizer(words)
    pipe.text_encoder = TextEncoder(TEXT_CHANNELS, words)
    pipe.vae = LinearCodec(LATENT_CHANNELS)
    with _drawing(SEED if weights == "random" else None):
        for attribute in one.dits:
            setattr(pipe, attribute, make_dit(one))
    sources = {} if weights is None else {"vae": one.frozen, "text_encoder": one.frozen}
    sources |= one.dits if weights == "trained" else {}
    for attribute, file in sources.items():
        part = "dit" if attribute in one.dits else attribute
        _fill(f"{attribute} of {name}", getattr(pipe, attribute), folder / file, part + ".")
    pipe.eval().requires_grad_(False)
    return pipe.to(device=device, dtype=dtype)


def make_dit(one: Organism) -> WanModel:
    """Make an organism's DiT, untrained."""
    dit = WanModel(**one.config)
    if one.causal:
        make_causal(dit)
    return dit


@contextmanager
def _drawing(seed: int | None) -> Iterator[None]:
    """Draw in the block from a seed, and leave torch's own generator as it was. Nothing changes where there is none."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def known_words(file: Path) -> int:
    """Return how many words a file's table has: the first ones of `WORDS`.

    Raises:
        ModelError: the file is missing or not whole, has no table, or more words than there are.
    """
    shape = files.header(checked(file)).get("text_encoder.table", {}).get("shape", [])
    if not shape or not 0 < shape[0] <= len(WORDS):
        raise ModelError(
            f"{file}: text_encoder.table should be [words, {TEXT_CHANNELS}], with at most {len(WORDS)} words; it is "
            f"{shape or 'not there'}."
        )
    return int(shape[0])


def _fill(what: str, module: torch.nn.Module, path: Path, prefix: str) -> None:
    """Load into a module those tensors of a file whose names begin with `prefix`."""
    with safe_open(checked(path), "pt") as file:
        state = {k.removeprefix(prefix): file.get_tensor(k) for k in file.keys() if k.startswith(prefix)}  # noqa: SIM118
    held = {k: tuple(v.shape) for k, v in state.items()}
    wanted = {k: tuple(v.shape) for k, v in module.state_dict().items()}
    wrong = [k for k in sorted(held | wanted) if held.get(k) != wanted.get(k)]
    if wrong:
        raise ModelError(
            f"{path} does not fit {what}: {prefix}{wrong[0]} is {held.get(wrong[0], 'not there')} in the file and "
            f"{wanted.get(wrong[0], 'not there')} in the model; {len(wrong)} tensors differ in all."
        )
    numbers = {k: v for k, v in state.items() if not (v.is_floating_point() and v.isfinite().all())}
    if numbers:
        raise ModelError(f"{path}: {prefix}{min(numbers)} holds something other than finite real numbers.")
    module.load_state_dict(state)
