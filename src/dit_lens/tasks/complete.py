"""Complete answers, read with a margin: what a video has settled on, right or wrong; a blend of two answers is none of them.

A scorer cuts at one threshold, so that an even blend of two answers is read as some answer, and another one at the next step.
Here all that an answer uses stands at over `USED` of its full strength and all else below `UNUSED`, so a blend of two is read as
one only where its share is over `USED`. A part of an answer (a way that stops short of the goal) is no complete one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dit_lens.errors import TaskError
from dit_lens.tasks import canvas as cv
from dit_lens.tasks import rings
from dit_lens.tasks.canvas import Cell
from dit_lens.tasks.explore import laid
from dit_lens.tasks.latin import COLOURS, LETTERS
from dit_lens.tasks.latin import SIDE as SQUARE
from dit_lens.tasks.queens import QUEEN
from dit_lens.tasks.queens import SIDE as BOARD
from dit_lens.tasks.sample import Frames, Sample
from dit_lens.tasks.tictac import DISCS
from dit_lens.tasks.trail import Edge, follow, spell

USED = 0.6
"""Share of its full strength over which each part of an answer stands (science of revision: committed means read with margin)."""
UNUSED = 0.4
"""Share below which everything else stands."""
AT_GOAL = 0.6
"""What the organism's codec leaves of a trail beside the goal of a maze, at least 0.53: there this much counts as full."""
RING = 0.57
"""What it leaves of a full ring, as `canvas.ring_strength` reads it (0.55 to 0.60)."""

NEVER_WRONG = {
    "choose": "every trail to one goal is right",
    "back": "it is told what it shows, and asks for no answer",
    "roll": "it is told what it shows, and asks for no answer",
    "occlude": "it is told what it shows, and asks for no answer",
    "circle": "a part of the rings is no other answer than all of them",
    "pick": "a part of the rings is no other answer than all of them",
    "bounce": "a part of the right way may end at the edge, as a whole one does",
    "apart": "two ways are read as one trail where they meet",
    "pattern": "a disc of one size is a part of one of the next",
}
"""Tasks whose complete answers cannot be told to be right or wrong, and why."""


def complete_answer(sample: Sample, frames: Frames) -> str:
    """Return the complete answer that the last frame shows with a margin, as `Answer.text` says it; "" where there is none.

    Complete is: of `maze` and `loop` one path from the agent's start to the goal, through walls or not; of `arrows` one path from
    the start to a cell without an arrow; of `latin` a colour in every cell; of `queens` one in each row and each column; of
    `tictac` one new disc; of `odd` one ring. It is right where it is one of `sample.answers`.

    Args:
        sample: of one of these tasks.
        frames: [time, height, width, rgb].

    Raises:
        TaskError: the task has no complete answers that can be wrong; the message says why.
    """
    return _reader(sample)(sample.scorer.keywords, sample, frames)  # type: ignore[union-attr]


def require_complete(sample: Sample) -> None:
    """Refuse a sample whose complete answers are not read, or cannot be wrong.

    Raises:
        TaskError: it names the task, the reason, and the tasks to take.
    """
    _reader(sample)


def _reader(sample: Sample) -> Callable[[Mapping[str, Any], Sample, Frames], str]:
    kind = "".join(re.findall(r"^[a-z]+", sample.task))
    if kind not in READERS or not hasattr(sample.scorer, "keywords"):
        reason = NEVER_WRONG.get(kind, "no reader knows it")
        raise TaskError(
            f"Task {sample.task!r} has no complete answers that can be wrong: {reason}. Use {', '.join(READERS)}."
        )
    return READERS[kind]


def _maze(known: Mapping[str, Any], sample: Sample, frames: Frames) -> str:
    strength = laid(sample, frames, known["size"])
    full = {edge: s / AT_GOAL if known["goal"] in edge else s for edge, s in strength.items()}
    return _way(full, known["start"], {known["goal"]})


def _arrows(known: Mapping[str, Any], sample: Sample, frames: Frames) -> str:
    size, told = known["size"], known["things"]["arrows"].keywords["told"]
    bare = {cell for cell in np.ndindex(size, size) if cell not in told}
    return _way(laid(sample, frames, size), known["path"][0], bare)


def _way(strength: Mapping[Edge, float], start: Cell, ends: set[Any]) -> str:
    """Read one path from a cell to one of some ends, of the share of a full trail on each edge."""
    if any(UNUSED <= s <= USED for s in strength.values()):
        return ""
    edges = frozenset(edge for edge, s in strength.items() if s > USED)
    path = follow(edges, start)
    return spell(edges, start) if path is not None and path[-1] in ends else ""


def _latin(known: Mapping[str, Any], sample: Sample, frames: Frames) -> str:
    letters = {name: letter for letter, name in LETTERS.items()}
    seen = [colour_of(frames[-1], cell, COLOURS) for cell in np.ndindex(SQUARE, SQUARE)]
    return "".join(letters[name] for name in seen if name) if all(seen) else ""


def _queens(known: Mapping[str, Any], sample: Sample, frames: Frames) -> str:
    seen = {cell: colour_of(frames[-1], cell, QUEEN) for cell in known["read"].keywords["free"]}
    placed = sorted(cell for cell, name in seen.items() if name)
    each = list(range(BOARD))
    whole = [r for r, _ in placed] == each == sorted(c for _, c in placed)
    return " ".join(f"{r}{c}" for r, c in placed) if whole and None not in seen.values() else ""


def _tictac(known: Mapping[str, Any], sample: Sample, frames: Frames) -> str:
    seen = {cell: colour_of(frames[-1], cell, DISCS) for cell in known["read"].keywords["empty"]}
    new = [f"{r}{c}" + ("" if name == "red" else f" {name}") for (r, c), name in seen.items() if name]
    return new[0] if len(new) == 1 and None not in seen.values() else ""


def _odd(known: Mapping[str, Any], sample: Sample, frames: Frames) -> str:
    strength = cv.ring_strength(frames[-1], rings.SIDE) / RING
    ringed = np.argwhere(strength > USED).tolist()
    unclear = bool(((strength >= UNUSED) & (strength <= USED)).any())
    return f"{ringed[0][0]}{ringed[0][1]}" if len(ringed) == 1 and not unclear else ""


READERS: dict[str, Callable[[Mapping[str, Any], Sample, Frames], str]] = {
    "maze": _maze,
    "loop": _maze,
    "arrows": _arrows,
    "latin": _latin,
    "queens": _queens,
    "tictac": _tictac,
    "odd": _odd,
}
"""By the letters that a task's name begins with."""


def colour_of(frame: NDArray[np.uint8], cell: Cell, colours: Mapping[str, tuple[float, ...]]) -> str | None:
    """Name the colour of a cell, "" for the floor; None where it is not clear.

    It is clear where the mean of the cell's middle is off from the colour by less than `UNUSED` of the way to any other, the
    floor among them: a blend with another colour counts only where its share is over `USED`.
    """
    palette = {"": cv.FLOOR, **colours}
    middle = np.array(
        [cv.patch((frame[..., i] / 255).astype(np.float32), *cv.centre(cell), 3) for i in range(3)]
    )
    off = {name: float(np.linalg.norm(middle - colour)) for name, colour in palette.items()}
    name = min(off, key=lambda n: off[n])
    ways = [
        float(np.linalg.norm(np.subtract(palette[name], c))) for other, c in palette.items() if other != name
    ]
    return name if off[name] < UNUSED * min(ways) else None
