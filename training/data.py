"""Training scenes, drawn fresh and encoded once, each used for a few batches."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from dit_lens import tasks
from dit_lens.models.organism.modules import LinearCodec, TextEncoder, Tokenizer
from dit_lens.tasks.canvas import EVAL_SEED
from dit_lens.tasks.sample import Sample

Maker = Callable[[int], Sample]

SMALL: dict[str, tuple[Maker, float]] = {
    "maze4": (lambda seed: tasks.maze(seed, size=4), 0.16),
    "loop": (tasks.loop, 0.17),
    "choose": (tasks.choose, 0.22),
    "pattern": (tasks.pattern, 0.20),
    "circle": (tasks.circle, 0.05),
    "occlude": (tasks.occlude, 0.20),
}
"""Boards of 4x4 cells: the maker of each task and its share (what was hard for the first weights has more)."""
LARGE: dict[str, tuple[Maker, float]] = {"maze": (tasks.maze, 1.0)}
"""Boards of 6x6 cells."""


def pixels(sample: Sample) -> Tensor:
    """Return the right video of a sample as [1, rgb, time, height, width] in [-1, 1]."""
    assert sample.truth is not None
    return torch.from_numpy(sample.truth).permute(3, 0, 1, 2)[None].float() / 127.5 - 1


class Scenes:
    """A buffer of encoded scenes of one board size, each drawn once and used a few times.

    Args:
        makers: name to (maker, share).
        codec: the codec, on CPU.
        text: the word table.
        size: scenes held.
        reuse: how often a scene is used.
        seed: of this process.
    """

    def __init__(
        self,
        makers: dict[str, tuple[Maker, float]],
        codec: LinearCodec,
        text: TextEncoder,
        size: int,
        reuse: int,
        seed: int,
    ) -> None:
        self.makers, self.codec, self.reuse = makers, codec, reuse
        self.rng = np.random.default_rng(seed)
        self.names = list(makers)
        self.shares = np.array([share for _, share in makers.values()])
        self.words: dict[str, Tensor] = {}
        self.text, self.tokenizer = text, Tokenizer()
        self.items = [self._draw() for _ in range(size)]
        self.at = 0
        self.debt = 0.0

    def _draw(self) -> tuple[Tensor, str]:
        make = self.makers[str(self.rng.choice(self.names, p=self.shares / self.shares.sum()))][0]
        sample = make(int(self.rng.integers(EVAL_SEED)))
        assert isinstance(sample.prompt, str)
        return self.codec.encode(pixels(sample))[0].half(), sample.prompt

    def embed(self, prompt: str) -> Tensor:
        """Return the embedding [token, channel] of a prompt."""
        if prompt not in self.words:
            self.words[prompt] = self.text(*self.tokenizer(prompt))[0]
        return self.words[prompt]

    def batch(self, n: int, dropout: float = 0.1) -> tuple[Tensor, Tensor]:
        """Return latents [n, channel, frame, y, x], contexts [n, token, channel]; some prompts emptied."""
        self.debt += n / self.reuse
        while self.debt >= 1:
            self.items[self.at] = self._draw()
            self.at = (self.at + 1) % len(self.items)
            self.debt -= 1
        picked = [self.items[i] for i in self.rng.integers(len(self.items), size=n)]
        prompts = ["" if self.rng.random() < dropout else p for _, p in picked]
        return torch.stack([z for z, _ in picked]).float(), torch.stack([self.embed(p) for p in prompts])
