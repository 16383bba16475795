"""Samples in which an agent walks the one path that its board tells, and every frame of the walk is judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dit_lens.errors import TaskError
from dit_lens.plan.places import whole_number
from dit_lens.tasks import conduct, trail
from dit_lens.tasks.canvas import Canvas, Cell
from dit_lens.tasks.sample import Sample, Score, of_truth
from dit_lens.tasks.scene import Answer, Scene

Things = Mapping[str, Callable[..., None]]
"""Name to `f(canvas)`, which draws all things of that kind; `f(canvas, colour=...)` in another colour than theirs."""


def walk_sample(
    task: str,
    name: str,
    prompt: str,
    size: int,
    path: list[Cell],
    things: Things,
    layout: Any,
    num_frames: int,
) -> Sample:
    """Make the sample of a walk.

    Args:
        task: name of the task.
        name: of the sample.
        prompt: what is asked.
        size: cells along each side.
        path: that the board tells.
        things: that stand on the board.
        layout: all that makes the board, as plain values.
        num_frames: frames of the video.
    """
    truth = trail.walk(board(size, things), path, num_frames)
    drawn: Things = {**things, "walls": partial(trail.paint_walls, size=size)}
    scene = Scene(
        layout,
        partial(trail.walk_masks, size, path, num_frames, drawn),
        partial(_answers, truth=truth, path=path),
    )
    scorer = partial(score_walk, size=size, things=things, path=path, num_frames=num_frames)
    return of_truth(task, name, prompt, truth, scorer, scene)


def whole(value: Any, name: str) -> int:
    """Return an option as an int.

    Raises:
        TaskError: it is no whole number.
    """
    number = whole_number(value)
    if number is None:
        raise TaskError(f"{name}={value!r}: give a whole number.")
    return number


def board(size: int, things: Things) -> Canvas:
    """Draw a board with its things, and without the agent."""
    out = trail.board(size, [], [])
    for paint in things.values():
        paint(out)
    return out


def _answers(truth: NDArray[np.uint8], path: list[Cell]) -> list[Answer]:
    return [Answer(trail.spell(trail.path_edges(path), path[0]), truth, 1.0)]


def score_walk(
    video: NDArray[np.uint8], size: int, things: Things, path: list[Cell], num_frames: int
) -> Score:
    """Judge all frames: one agent walks the path in its time, its trail behind it, and the board stays as it is (`conduct`).

    Graded: the share of the path that the trail follows from the start without a mistake, times the share of frames in
    which everything is legal. A video of another number of frames is not solved.
    """
    edges = trail.read_trail(video[-1], size)
    right = 0
    while right < len(path) - 1 and trail.edge(path[right], path[right + 1]) in edges:
        right += 1
    frames = conduct.judge(video, board(size, things), path, num_frames)
    solved = frames.whole and edges == trail.path_edges(path)
    graded = right / (len(path) - 1) * frames.share
    return Score(solved, 1.0 if solved else min(graded, 0.99), trail.spell(edges, path[0]), frames.frames)
