"""`choose`: an agent and several identical goals on an open board; it may go to any one of them."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from dit_lens.errors import TaskError
from dit_lens.tasks import canvas as cv
from dit_lens.tasks import conduct, layouts, trail
from dit_lens.tasks.arguments import whole_numbers
from dit_lens.tasks.canvas import Cell
from dit_lens.tasks.judged import Judged
from dit_lens.tasks.sample import Sample, Score, of_truth
from dit_lens.tasks.scene import Answer, Scene


@whole_numbers
def choose(seed: int, goals: int | None = None, size: int = 4, num_frames: int = cv.NUM_FRAMES) -> Sample:
    """Make an open board with an agent and identical goals; the answer is a trail to exactly one.

    Args:
        seed: below 1,000,000 for training, from there on for evaluation.
        goals: how many goals, 2 to 4. Default: random.
        size: cells along each side, 4 to 12.
        num_frames: frames of the video.

    Raises:
        TaskError: there is no such board.
    """
    if not 4 <= size <= 12 or goals not in (None, 2, 3, 4):
        raise TaskError(f"choose(size={size}, goals={goals}): size is 4 to 12, goals 2 to 4.")
    start, ends = layouts.draw(f"choose{size}", seed, partial(_layout, size=size, goals=goals), _key)
    paths = [_corner(start, end) for end in ends]
    path = paths[cv.rng_for("choose-path", seed).integers(len(paths))]
    truth = trail.walk(trail.board(size, [], ends), path, num_frames)
    scene = Scene(
        _key((start, ends)),
        partial(trail.scene_masks, size, [], ends, path, num_frames),
        partial(_answers, size=size, goals=ends, paths=paths, num_frames=num_frames),
    )
    scorer = partial(score_choice, size=size, start=start, goals=ends, num_frames=num_frames)
    return of_truth("choose", str(seed), "go to one goal", truth, scorer, scene)


def _layout(rng: np.random.Generator, size: int, goals: int | None) -> tuple[Cell, list[Cell]]:
    """Draw an agent and goals, each of which it can reach without stepping on another; none is next door."""
    count = goals or int(rng.integers(2, 5))
    while True:
        start, *ends = cv.random_cells(rng, size, count + 1)
        paths = [_corner(start, end) for end in ends]
        if all(len(p) >= 3 and not set(p[:-1]) & set(ends) for p in paths):
            return start, ends


def _key(layout: tuple[Cell, list[Cell]]) -> tuple[Cell, list[Cell]]:
    start, ends = layout
    return start, sorted(ends)


def _answers(size: int, goals: list[Cell], paths: list[list[Cell]], num_frames: int) -> list[Answer]:
    board = trail.board(size, [], goals)
    return [
        Answer(f"goal {n}", trail.walk(board, path, num_frames), 1 / len(goals))
        for n, path in enumerate(paths)
    ]


def _corner(start: Cell, end: Cell) -> list[Cell]:
    """Return the path that goes along the row first, then along the column."""
    (r, c), (r1, c1) = start, end
    across = [(r, i) for i in range(c, c1, 1 if c1 > c else -1)]
    down = [(i, c1) for i in range(r, r1, 1 if r1 > r else -1)]
    return [*across, *down, end]


def score_choice(
    video: NDArray[np.uint8], size: int, start: Cell, goals: list[Cell], num_frames: int
) -> Score:
    """Judge all frames: the agent walks one path along cells to one goal and touches no other, in its time (`conduct`).

    The graded score is a third each for: the trail is one path from the start; it touches exactly one goal; the agent ends
    there; all times the share of frames that are legal on a walk along that path, or where it is none, along the right one.
    The answer is the goal ('goal 0', ...), or what the trail looks like where it is not one path to one goal.
    """
    edges = trail.read_trail(video[-1], size)
    touched = [i for i, g in enumerate(goals) if any(g in e for e in edges)]
    path = trail.follow(edges, start) if edges else None
    one = len(touched) == 1
    on_goal = one and trail.read_agent(video[-1], size) == goals[touched[0]]
    answered = on_goal and path is not None and path[-1] == goals[touched[0]]
    frames = Judged(False, 0.0, False)
    if walked := path or (_corner(start, goals[touched[0]]) if one else None):
        frames = conduct.judge(video, trail.board(size, [], goals), walked, num_frames)
    answer = f"goal {touched[0]}" if answered else f"goals {touched} by {trail.spell(edges, start)}"
    graded = (int(path is not None) + int(one) + int(on_goal)) / 3 * frames.share
    solved = answered and frames.whole
    return Score(solved, 1.0 if solved else min(graded, 0.99), answer, frames.frames)
