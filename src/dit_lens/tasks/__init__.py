"""Tasks: what a model is asked, with exact scorers. Each is a pure generator `task(seed, ...) -> Sample`."""

from __future__ import annotations

from collections.abc import Callable

from dit_lens.errors import TaskError
from dit_lens.tasks.apart import apart
from dit_lens.tasks.arrows import arrows
from dit_lens.tasks.back import back
from dit_lens.tasks.bounce import bounce
from dit_lens.tasks.choose import choose
from dit_lens.tasks.latin import latin
from dit_lens.tasks.maze import loop, maze
from dit_lens.tasks.objects import circle, occlude, pattern
from dit_lens.tasks.odd import odd
from dit_lens.tasks.pick import pick
from dit_lens.tasks.queens import queens
from dit_lens.tasks.roll import roll
from dit_lens.tasks.sample import Frames, Sample, Score, as_frames
from dit_lens.tasks.scene import Answer, Masks, Scene
from dit_lens.tasks.tictac import tictac
from dit_lens.tasks.vbvr import vbvr

TASKS: dict[str, Callable[..., Sample]] = {
    "maze": maze,
    "loop": loop,
    "choose": choose,
    "circle": circle,
    "pattern": pattern,
    "occlude": occlude,
    "arrows": arrows,
    "bounce": bounce,
    "latin": latin,
    "tictac": tictac,
    "odd": odd,
    "pick": pick,
    "roll": roll,
    "back": back,
    "queens": queens,
    "apart": apart,
}


def make(task: str, seed: int, **options: object) -> Sample:
    """Make a sample of a task by name.

    Raises:
        TaskError: there is no such task.
    """
    if not isinstance(task, str) or task not in TASKS:
        raise TaskError(f"No task is called {task!r}; there are: {', '.join(TASKS)}.")
    return TASKS[task](seed, **options)


__all__ = [
    "TASKS",
    "Answer",
    "Frames",
    "Masks",
    "Sample",
    "Scene",
    "Score",
    "apart",
    "arrows",
    "as_frames",
    "back",
    "bounce",
    "choose",
    "circle",
    "latin",
    "loop",
    "make",
    "maze",
    "occlude",
    "odd",
    "pattern",
    "pick",
    "queens",
    "roll",
    "tictac",
    "vbvr",
]
