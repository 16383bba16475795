"""What is asked in an evaluation, and how a video is judged. No torch, so that processes start fast."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from dit_lens import tasks
from dit_lens.tasks.canvas import EVAL_SEED
from dit_lens.tasks.sample import Sample

LONG = {"num_frames": 25}

SETS: dict[str, Callable[[int], Sample]] = {
    **{f"arrows{depth}": partial(tasks.arrows, depth=depth) for depth in (2, 4, 8, 12, 16, 20)},
    **{f"bounce{depth}": partial(tasks.bounce, depth=depth) for depth in (2, 4, 6)},
    "maze, 25 frames": partial(tasks.maze, **LONG),
    "maze": tasks.maze,
    "latin": tasks.latin,
    "tictac": tasks.tictac,
    "odd": tasks.odd,
    "pick": tasks.pick,
    "roll": tasks.roll,
    "maze4": partial(tasks.maze, size=4),
    "loop": tasks.loop,
    "choose": tasks.choose,
    "circle": tasks.circle,
    "pattern": tasks.pattern,
    "occlude": tasks.occlude,
    "arrows28 (longer, 8x8)": partial(tasks.arrows, depth=28),
    "arrows8, 8x8 (larger)": partial(tasks.arrows, depth=8, size=8),
    "maze8 (larger)": partial(tasks.maze, size=8, **LONG),
    "pick-new (new pairs)": partial(tasks.pick, held_out=True),
    "back (task held out)": tasks.back,
    "queens (task held out)": tasks.queens,
    "apart (task held out)": tasks.apart,
}
"""By name. Those with a bracket are out of domain, and say how."""


class Verdict(NamedTuple):
    """What a scorer said of one video.

    Attributes:
        solved: whether it is right in all that is judged, every frame of it where the task says so.
        answered: whether the answer that was read is a right one, however it is drawn.
        score: how near it is, in [0, 1].
    """

    solved: bool
    answered: bool
    score: float


def scene(name: str, number: int) -> Sample:
    """Return a scene of a set, by its number; training never sees its seed."""
    return SETS[name](EVAL_SEED + number)


def question(name: str, number: int) -> tuple[np.ndarray, str, int]:
    """Return the first frame [height, width, rgb], the prompt and the number of frames of a scene."""
    sample = scene(name, number)
    assert sample.truth is not None and isinstance(sample.prompt, str)
    return sample.truth[0], sample.prompt, sample.num_frames


def judge(name: str, number: int, file: str, row: int) -> Verdict:
    """Judge a video of a scene.

    Args:
        name: of the set.
        number: of the scene.
        file: of videos, [row, time, height, width, rgb].
        row: which of them.
    """
    sample = scene(name, number)
    score = sample.score(np.load(file, mmap_mode="r")[row])
    return Verdict(score.solved, score.solved or score.answer in _right(sample), score.score)


def _right(sample: Sample) -> set[str]:
    """Return the right answers of a sample, as its scorer reads them."""
    if sample.answers is not None:
        return {answer.text for answer in sample.answers}
    assert sample.truth is not None
    return {sample.score(sample.truth).answer}
