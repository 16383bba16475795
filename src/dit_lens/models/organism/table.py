"""The organisms: data. What all of them share, and what each is made of. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dit_lens.errors import PlanError

FOLDER = Path(__file__).parent
"""Where the files are that ship with the package."""
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
    "has_image_input": False,
    "require_clip_embedding": False,
}
"""Arguments of DiffSynth's `WanModel`, but for the number of layers."""
WEIGHTS = ("trained", "random")
SEED = 0
"""Of random weights."""
FIRST_TASKS = ("maze", "loop", "choose", "circle", "pattern", "occlude")
MOVERS = ("choose", "occlude", "roll")
"""What moves and is no puzzle."""
PUZZLES = ("maze", "arrows", "bounce", "latin", "tictac", "odd")


@dataclass(frozen=True)
class Organism:
    """What an organism is made of.

    Attributes:
        dits: the pipeline's attribute to the file of its weights (keys `dit.*`), experts in the order of use.
        frozen: the file of the codec (`vae.*`) and the word table (`text_encoder.*`); it knows as many words as this has.
        layers: blocks of a DiT.
        tasks: that it was trained on. Of the words of others it may know some, and answers none of them.
        steps: of a run, where the user names none.
        causal: whether a token sees those of its own and earlier latent frames only.
        loras: `load`'s LoRA options, with the pipeline's attribute that each goes into.
        known_loras: LoRAs that have a name: option to file, by that name.
        lora: the one of these that is a part of it; the user gives none.
    """

    dits: Mapping[str, str]
    frozen: str = "frozen.safetensors"
    layers: int = 16
    tasks: tuple[str, ...] = (*FIRST_TASKS, "arrows", "bounce", "latin", "tictac", "odd", "pick", "roll")
    steps: int = 20
    causal: bool = False
    loras: Mapping[str, str] = field(default_factory=dict)
    known_loras: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    lora: str | None = None

    @property
    def config(self) -> dict[str, Any]:
        """Arguments of DiffSynth's `WanModel`."""
        return {**CONFIG, "num_layers": self.layers}


BASE = Organism(
    {"dit": "base.safetensors"},
    tasks=MOVERS,
    loras={"lora": "dit"},
    known_loras={"puzzles": {"lora": "lora.safetensors"}},
)
ORGANISMS: dict[str, Organism] = {
    "organism-v1": Organism({"dit": "v1.safetensors"}, "v1.safetensors", layers=10, tasks=FIRST_TASKS),
    "organism-full": Organism({"dit": "full.safetensors"}),
    "organism-two-expert": Organism({"dit": "high.safetensors", "dit2": "low.safetensors"}),
    "organism-base": BASE,
    "organism-lora": replace(BASE, tasks=(*MOVERS, *PUZZLES), lora="puzzles"),
    "organism-few4": Organism({"dit": "few4.safetensors"}, steps=4),
    "organism-causal": Organism({"dit": "causal.safetensors"}, causal=True),
}
"""By the name that `load` takes."""
DEFAULT = "organism-full"
"""The one that is called "organism"."""
NAMES = ("organism", *ORGANISMS)


def whole_name(name: str) -> str:
    """Return the name under which an organism stands in the table."""
    return DEFAULT if name == "organism" else name


def with_weights(name: str, weights: str | Path) -> tuple[Organism, str]:
    """Return an organism, and what its weights are: one of `WEIGHTS`.

    Args:
        name: one of `NAMES`.
        weights: one of `WEIGHTS`; or a safetensors file, which then stands in the place of its DiT's own.

    Raises:
        PlanError: there are no such weights, or it does not take a file.
    """
    one = ORGANISMS[whole_name(name)]
    if isinstance(weights, str) and weights in WEIGHTS:
        return one, weights
    if not isinstance(weights, str | Path) or Path(weights).suffix != ".safetensors":
        raise PlanError(f"weights={weights!r}: {', '.join(WEIGHTS)}, or a .safetensors file.")
    if len(one.dits) > 1 or one.lora:
        raise PlanError(
            f"{whole_name(name)} takes no weights={str(weights)!r}: a file is for an organism with one DiT and no LoRA in it."
        )
    return replace(one, dits=dict.fromkeys(one.dits, str(Path(weights).absolute()))), "trained"
