"""What is asked of the token at a cell of a board: whether the answer takes the cell."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dit_lens.errors import TaskError
from dit_lens.experiments.probes import objects
from dit_lens.tasks.canvas import Cell
from dit_lens.tasks.sample import Sample
from dit_lens.tasks.trail import MOVES


@dataclass(frozen=True)
class TokenQuestion:
    """A question with a yes or no for several cells of a scene.

    Attributes:
        about: what is asked, in words.
        cells: (sample) to the cells that are asked about.
        taken: (sample, answer as a scorer reads it) to the cells for which it is yes; None where the answer does not say.
        most: cells of a scene, at most.
    """

    about: str
    cells: Callable[[Sample], list[Cell]]
    taken: Callable[[Sample, str], set[Cell] | None]
    most: int


def question_of(task: str) -> TokenQuestion:
    """Return the question of a task.

    Raises:
        TaskError: it has none.
    """
    if task not in TOKEN_QUESTIONS:
        raise TaskError(
            f"--task {task}: no question is asked of its tokens; take one of {', '.join(TOKEN_QUESTIONS)}."
        )
    return TOKEN_QUESTIONS[task]


def _board(sample: Sample) -> list[Cell]:
    """Return the cells of a maze but those of agent and goal, which every answer takes."""
    known = sample.scorer.keywords  # type: ignore[union-attr]
    return [
        cell
        for cell in np.ndindex(known["size"], known["size"])
        if cell not in (known["start"], known["goal"])
    ]


def _walked(sample: Sample, answer: str) -> set[Cell] | None:
    """Return the cells on a trail: of moves such as 'RRD' from the start, or of edges such as 'edges 00R 01D'."""
    walked: set[Cell] = set()
    steps = re.findall(r"(\d+),(\d+)([UDLR])|(\d)(\d)([UDLR])", answer) if answer.startswith("edges") else []
    r, c = sample.scorer.keywords["start"]  # type: ignore[union-attr]
    for move in answer if not steps else ():
        if move not in MOVES:
            return None
        r, c = r + MOVES[move][0], c + MOVES[move][1]
        walked.add((r, c))
    for parts in steps:
        row, column, move = (part for part in parts if part)
        down, right = MOVES[move]
        walked |= {(int(row), int(column)), (int(row) + down, int(column) + right)}
    return walked & {*_board(sample)} if walked else None


def _goals(sample: Sample) -> list[Cell]:
    return list(sample.scorer.keywords["goals"])  # type: ignore[union-attr]


def _goal(sample: Sample, answer: str) -> set[Cell] | None:
    return {_goals(sample)[int(answer.split()[1])]} if answer.startswith("goal ") else None


def _looks(sample: Sample) -> list[Cell]:
    return sorted(sample.scorer.keywords["draw"].keywords["looks"])  # type: ignore[union-attr]


def _ringed(sample: Sample, answer: str) -> set[Cell] | None:
    return {(int(r), int(c)) for r, c in re.findall(r"\b(\d)(\d)\b", answer)} or None


def _open(sample: Sample) -> list[Cell]:
    given = sample.scorer.keywords["read"].keywords["given"]  # type: ignore[union-attr]
    return [cell for cell in np.ndindex(4, 4) if cell not in given]


def _red(sample: Sample, answer: str) -> set[Cell] | None:
    if len(answer) != 16 or "?" in answer:
        return None
    return {divmod(n, 4) for n, letter in enumerate(answer) if letter == "r"} & {*_open(sample)}


TOKEN_QUESTIONS = {
    "maze": TokenQuestion("Is the cell on the path?", _board, _walked, 34),
    "loop": TokenQuestion("Is the cell on the route that is taken?", _board, _walked, 14),
    "choose": TokenQuestion("Is the goal gone to?", _goals, _goal, 4),
    "circle": TokenQuestion("Does the object get a ring?", objects, _ringed, 4),
    "odd": TokenQuestion("Does the object get a ring?", _looks, _ringed, 16),
    "pick": TokenQuestion("Does the object get a ring?", _looks, _ringed, 9),
    "latin": TokenQuestion("Is the open cell filled with red?", _open, _red, 8),
}
"""By task. In maze and loop the cells of agent and goal are not asked about: they are on every path."""

__all__ = ["TOKEN_QUESTIONS", "TokenQuestion", "question_of"]
