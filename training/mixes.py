"""What is drawn for training: boards by size and length of the video, and the share of each task. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from dit_lens import tasks
from dit_lens.tasks.canvas import CELL, EVAL_SEED
from dit_lens.tasks.sample import Sample

Maker = Callable[[int, np.random.Generator, int], Sample]
"""A seed, random numbers for what the seed does not say (such as a depth), and a number of frames, to a sample."""


def _plain(make: Callable[..., Sample], **options: int) -> Maker:
    return lambda seed, _, frames: make(seed, num_frames=frames, **options)


def _between(make: Callable[..., Sample], option: str, low: int, high: int) -> Maker:
    """Return a maker that draws an option evenly from low to high."""
    return lambda seed, rng, frames: make(
        seed, num_frames=frames, **{option: int(rng.integers(low, high + 1))}
    )


MAKERS: dict[str, Maker] = {
    "arrows": _between(tasks.arrows, "depth", 2, 20),
    "bounce": _between(tasks.bounce, "depth", 1, 6),
    "maze": _between(tasks.maze, "least", 4, 14),
    "maze4": _plain(tasks.maze, size=4),
    "loop": _plain(tasks.loop),
    "choose": _plain(tasks.choose),
    "choose6": _plain(tasks.choose, size=6),
    "circle": _plain(tasks.circle),
    "pattern": _plain(tasks.pattern),
    "occlude": _plain(tasks.occlude),
    "roll": _plain(tasks.roll),
    "latin": _between(tasks.latin, "open_cells", 6, 10),
    "tictac": _plain(tasks.tictac),
    "odd": _plain(tasks.odd),
    "pick": _plain(tasks.pick),
}
"""Every task that is trained on. `apart`, `back` and `queens` are not: no model has seen them."""


@dataclass(frozen=True)
class Group:
    """Boards of one size and length, which fit into one batch.

    Attributes:
        side: cells along each side.
        frames: of the video.
        time: share of the time of training that goes to them.
        shares: share of the scenes, by task.
    """

    side: int
    frames: int
    time: float
    shares: Mapping[str, float]

    @property
    def name(self) -> str:
        """Return what logs call it."""
        return f"{self.side}x{self.side}, {self.frames} frames"

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Return (time, height, width, rgb) of a video."""
        return self.frames, self.side * CELL, self.side * CELL, 3

    @property
    def tokens(self) -> int:
        """Return the tokens of a video: one for each latent frame and cell."""
        return (1 + (self.frames - 1) // 4) * self.side**2

    def draw(self, rng: np.random.Generator, held_out: bool = False) -> Sample:
        """Draw a task by the shares, and a scene of it.

        Args:
            rng: says which.
            held_out: draw from the seeds, and so from the layouts, that training never sees.
        """
        shares = np.array(list(self.shares.values()))
        name = str(rng.choice(list(self.shares), p=shares / shares.sum()))
        return MAKERS[name](int(rng.integers(EVAL_SEED)) + EVAL_SEED * held_out, rng, self.frames)


WALKS = {"arrows": 0.45, "bounce": 0.2, "maze": 0.35}
BOARDS = {"latin": 0.3, "tictac": 0.18, "odd": 0.13, "pick": 0.14, "roll": 0.1, "loop": 0.08, "choose": 0.07}
FIRST = {"maze4": 0.15, "loop": 0.2, "choose": 0.2, "circle": 0.1, "pattern": 0.2, "occlude": 0.15}
"""The tasks of the first organism."""

MIXES: dict[str, tuple[Group, ...]] = {
    "all": (
        Group(6, 25, 0.5, WALKS),
        Group(4, 25, 0.25, BOARDS),
        Group(6, 13, 0.08, {"maze": 0.7, "arrows": 0.3}),
        Group(4, 13, 0.12, FIRST),
        Group(6, 37, 0.05, WALKS),
    ),
    "movers": (
        Group(6, 25, 0.5, {"choose6": 1.0}),
        Group(4, 25, 0.3, {"roll": 0.6, "choose": 0.4}),
        Group(4, 13, 0.2, {"occlude": 0.5, "choose": 0.5}),
    ),
    "puzzles": (
        Group(6, 25, 0.7, WALKS),
        Group(4, 25, 0.3, {"latin": 0.4, "tictac": 0.3, "odd": 0.3}),
    ),
}
"""By name: everything; what moves and is no puzzle; puzzles alone."""
