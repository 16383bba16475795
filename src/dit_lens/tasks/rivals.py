"""The candidates for an answer: every right one, and where there is but one, the wrong ones that look alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dit_lens.errors import TaskError
from dit_lens.tasks import canvas as cv
from dit_lens.tasks.objects import NAMES, SIZES
from dit_lens.tasks.sample import Sample
from dit_lens.tasks.scene import Answer


def rival_answers(sample: Sample) -> list[Answer]:
    """Return the answers among which a sample leaves a choice, 2 or more.

    Of a task with several right answers they are these, with their shares. Of `tictac` they are a red disc in each empty cell, of
    `odd` a ring around each object, of `pattern` a disc of each size in the gap: one of them is right, and all have equal shares,
    as for somebody who knows what an answer looks like, and not which one is right.

    Raises:
        TaskError: the sample has one answer and no known rivals, or its answers are too many to be enumerated.
    """
    answers = sample.answers
    if len(answers) > 1:
        return answers
    known: Mapping[str, Any] = getattr(sample.scorer, "keywords", {})
    for kind, rivals in RIVALS.items():
        if sample.task.startswith(kind):
            return rivals(known)
    raise TaskError(
        f"Task {sample.task!r} has one right answer, and no wrong ones to weigh it against: use choose, loop, latin, queens, "
        f"{', '.join(RIVALS)}."
    )


def _tictac(known: Mapping[str, Any]) -> list[Answer]:
    cells: list[Any] = known["read"].keywords["empty"]
    return _faded(known["draw"], cells, [f"{r}{c}" for r, c in cells], known["num_frames"])


def _odd(known: Mapping[str, Any]) -> list[Answer]:
    cells = sorted(known["draw"].keywords["looks"])
    return _faded(known["draw"], [(c,) for c in cells], [f"{r}{c}" for r, c in cells], known["num_frames"])


def _pattern(known: Mapping[str, Any]) -> list[Answer]:
    asked, cell = known["legal"].keywords["asked"], known["read"].keywords["cell"]

    def draw(radius: float | None) -> cv.Canvas:
        out: cv.Canvas = asked.copy()
        if radius is not None:
            cv.disc(out, *cv.centre(cell), radius, cv.OBJECT)
        return out

    return _faded(draw, SIZES, NAMES[1:], known["num_frames"])


def _faded(
    draw: Callable[[Any], cv.Canvas], answers: Sequence[Any], texts: Sequence[str], num_frames: int
) -> list[Answer]:
    """Return answers that fade into the picture that `draw` makes of None."""
    videos = [cv.fade(draw(None), draw(answer), num_frames) for answer in answers]
    return [Answer(text, np.asarray(v), 1 / len(answers)) for text, v in zip(texts, videos, strict=True)]


RIVALS = {"tictac": _tictac, "odd": _odd, "pattern": _pattern}
"""By what a task's name begins with."""
