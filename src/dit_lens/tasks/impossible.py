"""Two videos of one scene, one of which breaks a rule: what a model should be surprised by, and nulls that break none.

A video is a sample: its `truth` is the video, its `image` the first frame that it is asked with, and its `scene` tells the
right answers to that, where they are known.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from dit_lens.errors import TaskError
from dit_lens.tasks import TASKS, make, trail
from dit_lens.tasks import canvas as cv
from dit_lens.tasks.canvas import CELL, Cell
from dit_lens.tasks.maze import route_sample
from dit_lens.tasks.rolls import SIDE, SMALL, Roll
from dit_lens.tasks.sample import Frames, Sample
from dit_lens.tasks.scene import Answer, Scene

Videos = tuple[Sample, Sample]
"""A right video, and the other one that it is compared with."""
TURNS_BACK = ("occlude", "roll")
"""Tasks whose right video is one of another scene when time runs backwards."""


@dataclass(frozen=True)
class Contrast:
    """What two videos are, and how they are made.

    Attributes:
        other: what the other video shows.
        make: a sample to its two videos.
        tasks: that have it.
        nulls: those of them in which the other video breaks no rule.
    """

    other: str
    make: Callable[[Sample], Videos]
    tasks: tuple[str, ...]
    nulls: tuple[str, ...] = ()


def comparisons_of(task: str) -> list[str]:
    """Return the names of all comparisons that a task has, the one that its rule is tested by first."""
    return [name for name, comparison in COMPARISONS.items() if task in comparison.tasks]


def videos_of(sample: Sample, comparison: str) -> Videos:
    """Return the two videos of a comparison.

    Args:
        sample: of a task that has it.
        comparison: a name in `COMPARISONS`.

    Raises:
        TaskError: the task does not have it, or the scene does not allow for it.
    """
    if comparison not in comparisons_of(sample.task):
        raise TaskError(
            f"Task {sample.task!r} has no comparison {comparison!r}; it has: "
            f"{', '.join(comparisons_of(sample.task)) or 'none'}."
        )
    return COMPARISONS[comparison].make(sample)


def through_wall(sample: Sample) -> Videos:
    """Return the right walk, and one that leaves it through a wall, for as few moves as it can: as long, to the same goal."""
    board, _, astray, _ = _astray(sample)
    drawn = trail.board(board["size"], board["walls"], [board["goal"]])
    return sample, sample.with_(truth=trail.walk(drawn, astray, sample.num_frames))


def where_open(sample: Sample) -> Videos:
    """Return the same two walks where those walls are away: both are right, and differ by as many pixels.

    The board with the opening is what both are asked with. Mazes of training have one way to the goal; here there are two,
    and more where the openings make others, so that a denoiser that knows these two alone does not know all.
    """
    board, path, astray, crossed = _astray(sample)
    open_board = route_sample(
        sample.task,
        zlib.crc32(sample.id.encode()),
        board["size"],
        board["walls"] - crossed,
        [path, astray],
        sample.num_frames,
    ).with_(prompt=sample.prompt, image=None, size=sample.size, id=sample.id)
    right, other = (
        _asked_with(open_board, answer.video, sample.image is not None) for answer in open_board.answers
    )
    return right, other


def _astray(sample: Sample) -> tuple[dict[str, Any], list[Cell], list[Cell], frozenset[trail.Edge]]:
    """Return a board, its right walk, one that goes astray through walls for a few moves, and these walls."""
    board = getattr(sample.scorer, "keywords", {})
    path = trail.follow(trail.read_trail(_truth(sample)[-1], board["size"]), board["start"])
    if path is None:
        raise TaskError(f"{sample.task}/{sample.id}: the right video shows no single walk from the start.")
    for moves in range(2, len(path)):
        walks = _walks_beside(path, moves, board["size"])
        through = [(w, crossed) for w in walks if (crossed := trail.path_edges(w) & board["walls"])]
        if through:
            walk, crossed = through[_rng(sample, "walk").integers(len(through))]
            return board, path, walk, frozenset(crossed)
    raise TaskError(
        f"{sample.task}/{sample.id}: no walk through a wall is as long as the right one: take another --scene."
    )


def _walks_beside(path: Sequence[Cell], moves: int, size: int) -> Iterator[list[Cell]]:
    """Yield walks that leave a path for so many moves, are as long, and enter no cell twice."""
    for n in range(len(path) - moves):
        ways = [[*path[: n + 1]]]
        for _ in range(moves - 1):
            ways = [
                [*way, cell]
                for way in ways
                for cell in trail.neighbours(way[-1], size)
                if cell not in way and cell not in path
            ]
        after = path[n + moves :]
        yield from ([*way, *after] for way in ways if after[0] in trail.neighbours(way[-1], size))


def other_colour(sample: Sample) -> Videos:
    """Return the right roll, and one whose ball has another colour once it has been hidden."""
    roll = _roll(sample)
    colours = [name for name in cv.BALLS if name != roll.colour]
    colour = colours[_rng(sample, "colour").integers(len(colours))]
    return sample, _hidden_change(sample, replace(roll, colour=colour))


def other_lane(sample: Sample) -> Videos:
    """Return the right roll, and one whose ball comes out on another lane."""
    roll = _roll(sample)
    way: Any = roll.way
    ways = [partial(way.func, **{**way.keywords, "lane": lane}) for lane in range(SIDE * CELL)]
    ways = [other for other in ways if _fits(other(0.0)[1], roll)]
    if not ways:
        raise TaskError(
            f"{sample.task}/{sample.id}: there is no room for another lane: take another --scene."
        )
    other = ways[_rng(sample, "lane").integers(len(ways))]
    return sample, _hidden_change(sample, replace(roll, way=other))


def _fits(y: float, roll: Roll) -> bool:
    """Say whether a ball has room on a lane that neither its own lane nor a ball that stands there takes."""
    inside = roll.radius + 1 <= y <= SIDE * CELL - roll.radius - 1
    beside = roll.other is None or abs(y - roll.other[2]) >= roll.radius + SMALL + 2
    return inside and beside and abs(y - roll.way(0.0)[1]) >= 2 * roll.radius


def _hidden_change(sample: Sample, other: Roll) -> Sample:
    """Return the right video that goes on as another roll from where nothing of either is seen."""
    truth, changed = _truth(sample), other.video(sample.num_frames)
    hidden = np.flatnonzero((truth == changed).all((1, 2, 3)))
    if not len(hidden):
        raise TaskError(
            f"{sample.task}/{sample.id}: no frame hides the ball; ask for more frames (--num-frames)."
        )
    return sample.with_(truth=_spliced(truth, changed, hidden[len(hidden) // 2]))


def _roll(sample: Sample) -> Roll:
    known = getattr(sample.scorer, "keywords", {})
    roll: Roll = known["roll"] if "roll" in known else known["legal"].keywords["roll"]
    return roll


def other_answer(sample: Sample) -> Videos:
    """Return the right video, and another right answer. Which of them is the right video is drawn evenly: a null."""
    others = [answer.video for answer in sample.answers if not np.array_equal(answer.video, _truth(sample))]
    return sample, sample.with_(truth=others[_rng(sample, "answer").integers(len(others))])


def other_ending(sample: Sample) -> Videos:
    """Return the right video, and one whose second half is another scene's."""
    truth, first = _truth(sample), cv.EVAL_SEED + zlib.crc32(sample.id.encode()) % cv.EVAL_SEED
    for seed in range(first, first + 100):
        other = _truth(make(sample.task, seed, num_frames=sample.num_frames))
        if other.shape == truth.shape and not np.array_equal(other[-1], truth[-1]):
            return sample, sample.with_(truth=_spliced(truth, other, len(truth) // 2))
    raise TaskError(f"{sample.task}/{sample.id}: no scene of 100 has the same size and another ending.")


def backwards(sample: Sample) -> Videos:
    """Return the right video, and the same backwards, asked with the frame that it then begins with."""
    truth = _truth(sample)
    if np.array_equal(truth, truth[::-1]):
        raise TaskError(f"{sample.task}/{sample.id}: backwards it is the same video: leave 'reversed' out.")
    turned = np.ascontiguousarray(truth[::-1])
    answers = partial(_only, turned) if sample.task in TURNS_BACK else None
    scene = Scene(None, dict, answers)
    turned_sample = sample.with_(scene=scene, scorer=None, size=sample.size)
    return sample, _asked_with(turned_sample, turned, sample.image is not None)


def _only(video: Frames) -> list[Answer]:
    return [Answer("backwards", video, 1.0)]


def _asked_with(sample: Sample, video: Frames, by_image: bool) -> Sample:
    """Return a video as a sample whose question is its first frame, where it is asked with a picture."""
    return sample.with_(image=Image.fromarray(video[0]) if by_image else None, truth=video)


def _spliced(first: Frames, then: Frames, last: int) -> Frames:
    """Return the frames of one video up to `last`, and those of another after it."""
    return np.concatenate([first[: last + 1], then[last + 1 :]])


def _rng(sample: Sample, name: str) -> np.random.Generator:
    return cv.rng_for(f"impossible-{name}", zlib.crc32(sample.id.encode()))


def _truth(sample: Sample) -> Frames:
    if sample.truth is None:
        raise TaskError(f"Sample {sample.task}/{sample.id} has no right video.")
    return sample.truth


COMPARISONS: dict[str, Contrast] = {
    "wall": Contrast("the agent goes through a wall", through_wall, ("maze",)),
    "colour": Contrast("the ball comes out in another colour", other_colour, ("occlude", "roll", "back")),
    "lane": Contrast("the ball comes out on another lane", other_lane, ("occlude", "roll")),
    "open": Contrast("the same walk, where that wall is away", where_open, ("maze",), ("maze",)),
    "answers": Contrast(
        "another right answer of the scene", other_answer, ("loop", "choose"), ("loop", "choose")
    ),
    "ending": Contrast("the second half is another scene's", other_ending, tuple(TASKS)),
    "reversed": Contrast(
        "time runs backwards", backwards, tuple(t for t in TASKS if t != "back"), TURNS_BACK
    ),
}
"""By name; those that break a task's own rule first."""

__all__ = ["COMPARISONS", "Contrast", "comparisons_of", "videos_of"]
