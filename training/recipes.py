"""The organisms: what each is trained on, from what it starts, and for how long. No torch."""

from __future__ import annotations

from dataclasses import dataclass

BOUNDARY = 0.875
"""Noise level at which the second expert takes over, as in Wan 2.2 I2V."""


@dataclass(frozen=True)
class Recipe:
    """How one file of weights is made.

    Attributes:
        about: what it is for.
        mix: what is drawn; see `mixes.MIXES`.
        start: whose averaged weights it starts from. None for random ones.
        share: of the time, where several are trained.
        learning_rate: at its height.
        levels: noise levels that it learns.
        causal: a token sees its own and earlier latent frames alone.
        teacher: whose runs of 20 steps it learns to make in `steps`. None where it learns from the videos.
        steps: of a run. Default: 20.
        rank: of the matrices that are learned in place of the weights. 0 for all weights.
    """

    about: str
    mix: str = "all"
    start: str | None = None
    share: float = 1.0
    learning_rate: float = 2e-3
    levels: tuple[float, float] = (0.0, 1.0)
    causal: bool = False
    teacher: str | None = None
    steps: int = 20
    rank: int = 0

    @property
    def is_whole(self) -> bool:
        """Say whether the weights can answer by themselves: no expert of two, no matrices beside others."""
        return self.levels == (0.0, 1.0) and not self.rank


RECIPES = {
    "full": Recipe("everything: the organism that the others are compared with", share=43.8),
    "causal": Recipe(
        "full, with attention over past frames only", start="full", causal=True, share=11, learning_rate=1e-3
    ),
    "few4": Recipe(
        "full, distilled to four steps",
        start="full",
        teacher="full",
        steps=4,
        share=7.5,
        learning_rate=7e-4,
    ),
    "high": Recipe(
        "full, at high noise levels alone",
        start="full",
        levels=(BOUNDARY, 1.0),
        share=2,
        learning_rate=7e-4,
    ),
    "low": Recipe(
        "full, at low noise levels alone", start="full", levels=(0.0, BOUNDARY), share=2, learning_rate=7e-4
    ),
    "base": Recipe("what moves and is no puzzle", mix="movers", share=4.5),
    "lora": Recipe("puzzles, on base", mix="puzzles", start="base", rank=16, share=5),
}
"""By the name of the file, in an order in which each finds what it starts from."""
