"""Where the agent is in every frame of a video: the plan that it shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dit_lens.errors import TaskError
from dit_lens.tasks import conduct, trail, walks
from dit_lens.tasks.canvas import CELL, Canvas, Cell
from dit_lens.tasks.sample import Frames, Sample


def agent_cells(sample: Sample, frames: Frames) -> list[Cell | None]:
    """Return the cell that the middle of the agent is in, frame by frame; None where no single agent is seen.

    Args:
        sample: of `maze`, `loop`, `choose`, `arrows` or `bounce`.
        frames: [time, height, width, rgb].

    Raises:
        TaskError: the task has no one agent that walks.
    """
    board = _board(sample)
    seen = [conduct.see(frame, board) for frame in frames]
    return [(int(one.at[1] // CELL), int(one.at[0] // CELL)) if one.is_one else None for one in seen]


def require_agent(sample: Sample) -> None:
    """Refuse a sample without one agent that walks.

    Raises:
        TaskError: it names the tasks to take.
    """
    _board(sample)


def _board(sample: Sample) -> Canvas:
    """Return the board of a walk, without its agent."""
    known: Mapping[str, Any] = getattr(sample.scorer, "keywords", {})
    if "routes" in known:
        return trail.board(known["size"], known["walls"], [known["goal"]])
    if "goals" in known:
        return trail.board(known["size"], [], known["goals"])
    if "things" in known and "path" in known:
        return walks.board(known["size"], known["things"])
    raise TaskError(
        f"Task {sample.task!r} has no one agent that walks: use maze, loop, choose, arrows or bounce."
    )
