"""Wrong answers that can be enumerated: whole answers of the right kind, at the wrong place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dit_lens.tasks import canvas as cv
from dit_lens.tasks.objects import KINDS, circle
from dit_lens.tasks.sample import Sample
from dit_lens.tasks.scene import Answer


def wrong_answers(sample: Sample) -> list[Answer]:
    """Return every wrong answer of one kind, drawn as training draws a right one; their shares are equal, and come to 1.

    Of `tictac` a disc in another empty cell, of `odd` a ring around another object, of `circle` rings around the other kind. Of
    other tasks none: which wrong answers there are is not known.
    """
    make = _MAKERS.get(sample.task)
    videos = {} if make is None else make(sample)
    return [Answer(text, video, 1 / len(videos)) for text, video in videos.items()]


def _fades(sample: Sample, answers: Mapping[str, Any]) -> dict[str, Any]:
    """Draw the fading of the board to each of some answers that is not a right one, by its text."""
    known: Mapping[str, Any] = sample.scorer.keywords  # type: ignore[union-attr]
    draw = known["draw"]
    return {
        text: cv.fade(draw(None), draw(answer), sample.num_frames)
        for text, answer in answers.items()
        if text not in known["texts"]
    }


def _tictac(sample: Sample) -> dict[str, Any]:
    empty = sample.scorer.keywords["read"].keywords["empty"]  # type: ignore[union-attr]
    return _fades(sample, {f"{r}{c}": (r, c) for r, c in empty})


def _odd(sample: Sample) -> dict[str, Any]:
    looks = sample.scorer.keywords["draw"].keywords["looks"]  # type: ignore[union-attr]
    return _fades(sample, {f"{r}{c}": ((r, c),) for r, c in looks})


def _circle(sample: Sample) -> dict[str, Any]:
    other = next(kind for kind in KINDS if kind not in sample.prompt)
    (answer,) = circle(int(sample.id), kind=other, num_frames=sample.num_frames).answers
    return {answer.text: answer.video}


_MAKERS: dict[str, Callable[[Sample], dict[str, Any]]] = {"tictac": _tictac, "odd": _odd, "circle": _circle}

__all__ = ["wrong_answers"]
