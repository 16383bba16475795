"""Samples in which something fades into open cells of a board, while the rest of it stays as it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dit_lens.tasks import canvas as cv
from dit_lens.tasks.blur import CHANGED, blur, difference, even_change, largest
from dit_lens.tasks.canvas import CELL, Canvas
from dit_lens.tasks.judged import Judged
from dit_lens.tasks.sample import Sample, Score, of_truth
from dit_lens.tasks.scene import Answer, Scene

FADED = 0.2
"""How much of what fades into a cell there is in any cell more than at its time, or less, at most; 1 is all of it."""
PIXELS = 6.0
"""Pixels' worth of a wrong colour in a cell, at most, where that is more: the grain of a model's picture has as much."""
BACK = 0.1
"""How much of it may go again where it should come."""


def fade_sample(
    task: str,
    name: str,
    prompt: str,
    draw: Callable[[Any], Canvas],
    answers: Sequence[Any],
    texts: Sequence[str],
    shown: int,
    opened: Callable[[], NDArray[np.bool_]],
    read: Callable[[NDArray[np.uint8]], tuple[str, float]],
    layout: Any,
    num_frames: int,
) -> Sample:
    """Make the sample of a board with open cells.

    Args:
        task: name of the task.
        name: of the sample.
        prompt: what is asked.
        draw: an answer, or None for the board as it is asked, to a picture.
        answers: every right answer.
        texts: how `read` says each of them.
        shown: number of the answer that the right video shows.
        opened: gives the pixels into which something may fade, [height, width].
        read: the last frame to the answer in it, and how near it is to a right one, in [0, 1].
        layout: all that makes the board, as plain values.
        num_frames: frames of the video.
    """
    truth = cv.fade(draw(None), draw(answers[shown]), num_frames)
    scene = Scene(
        layout,
        partial(_masks, truth=truth, opened=opened),
        partial(_answers, draw=draw, answers=answers, texts=texts, num_frames=num_frames),
    )
    scorer = partial(
        score_fade, draw=draw, answers=answers, texts=tuple(texts), read=read, num_frames=num_frames
    )
    return of_truth(task, name, prompt, truth, scorer, scene)


def _masks(truth: NDArray[np.uint8], opened: Callable[[], NDArray[np.bool_]]) -> dict[str, NDArray[np.bool_]]:
    inside = opened()
    new = np.abs(truth.astype(float) - truth[0]).mean(-1) > 255 / 20
    drawn = (truth[0] != cv.to_frames([cv.blank(1)])[0, 0, 0]).any(-1)
    every = len(truth)
    return {
        "answer": new & inside,
        "open": np.repeat(inside[None], every, 0),
        "given": np.repeat(drawn[None], every, 0),
    }


def _answers(
    draw: Callable[[Any], Canvas], answers: Sequence[Any], texts: Sequence[str], num_frames: int
) -> list[Answer]:
    return [
        Answer(text, cv.fade(draw(None), draw(answer), num_frames), 1 / len(answers))
        for answer, text in zip(answers, texts, strict=True)
    ]


def score_fade(
    video: NDArray[np.uint8],
    draw: Callable[[Any], Canvas],
    answers: Sequence[Any],
    texts: tuple[str, ...],
    read: Callable[[NDArray[np.uint8]], tuple[str, float]],
    num_frames: int,
) -> Score:
    """Judge all frames: the last one shows a right answer, and every frame is what the fading of that answer is then.

    Graded: how near the last frame is to a right answer, times the share of frames that show the fading to it; where it is
    wrong, to what it shows. A video of another number of frames is not solved.
    """
    text, near = read(video[-1])
    right = draw(answers[texts.index(text)]) if text in texts else None
    frames = Judged.of(legal_frames(video, draw(None), right), num_frames)
    solved = right is not None and frames.whole
    return Score(solved, 1.0 if solved else min(near * frames.share, 0.99), text, frames.frames)


def legal_frames(
    video: NDArray[np.uint8], asked: Canvas, answered: Canvas | None = None
) -> NDArray[np.bool_]:
    """Say of every frame whether it shows the fading from one picture to another as it is at that time, [time].

    It does where, beside the right picture or what a codec makes of it, no small square has changed (`blur.difference`), and each
    cell has in sum over its pixels as much of what fades in and no other colour; and nothing that came in a legal frame goes
    again.

    Args:
        video: [time, height, width, rgb].
        asked: the picture that it begins with.
        answered: that it ends with. Default: what its last frame shows.
    """
    frames = video.astype(np.float32) / 255
    right = cv.fade(asked, frames[-1] if answered is None else answered, len(video)).astype(np.float32) / 255
    things = _sums(right[-1] - asked)
    size = np.linalg.norm(things, axis=-1)
    new = size > max(0.3 * size.max(), 1e-6)
    towards = (things[new] / size[new, None] ** 2).T
    room = max(FADED * float(size[new].min(initial=np.inf)), PIXELS) if new.any() else PIXELS
    # Where nothing fades in, it shows by how much a whole frame is too bright or too dark.
    still = largest(right[-1] - asked) < 1 / 255
    changes = np.stack([even_change(frame - asked, still) for frame in frames])
    seen = _sums(frames - changes[:, None, None] - asked)
    legal = np.zeros(len(video), bool)
    for pictures in (blur(right), right):
        off = seen - _sums(pictures - asked)
        alike = [difference(f, p).max() <= CHANGED for f, p in zip(video, pictures, strict=True)]
        clean = np.linalg.norm(off, axis=-1).max(-1) <= room
        legal |= alike & clean & (np.abs(off @ towards) <= FADED).all((1, 2))
    return legal & _never_goes(seen @ towards, legal, things @ towards)


def _never_goes(
    shares: NDArray[np.float32], legal: NDArray[np.bool_], due: NDArray[np.float32]
) -> NDArray[np.bool_]:
    """Say of every frame whether all that came in legal frames before it is still there.

    Args:
        shares: how much there is of each thing, [time, cell, thing].
        legal: which frames are so otherwise, [time].
        due: how much should come, [cell, thing].
    """
    out, most = np.zeros_like(legal), np.full_like(due, -np.inf)
    for t, share in enumerate(shares):
        out[t] = ((share >= most - BACK) | (due < 0.5)).all()
        most = np.maximum(most, share) if legal[t] and out[t] else most
    return out


def _sums(pictures: NDArray[Any]) -> NDArray[np.float32]:
    """Return the colours of pictures [..., height, width, rgb] in sum over each cell, [..., cell, rgb]."""
    height, width = (n // CELL for n in pictures.shape[-3:-1])
    cells = pictures.reshape(*pictures.shape[:-3], height, CELL, width, CELL, 3).sum((-4, -2))
    return cells.reshape(*pictures.shape[:-3], height * width, 3)
