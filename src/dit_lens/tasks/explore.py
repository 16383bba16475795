"""What a half-made video still leaves open: several answers held at once, trail off the right path."""

from __future__ import annotations

from typing import Any

import numpy as np

from dit_lens.errors import TaskError
from dit_lens.tasks.sample import Frames, Sample
from dit_lens.tasks.trail import Edge, edge, follow, neighbours, trail_strength

SHOWN = 0.15
"""Share of a full trail from which on an answer counts as shown; a right video shows one, by construction."""


def _options(sample: Sample, *names: str) -> dict[str, Any]:
    """Return what a task's scorer knows, where it knows one of these."""
    known: dict[str, Any] = getattr(sample.scorer, "keywords", {})
    if not any(name in known for name in names):
        raise TaskError(f"Task {sample.task!r} has no {' or '.join(names)}: use maze, loop or choose.")
    return known


def laid(sample: Sample, frames: Frames, size: int) -> dict[Edge, float]:
    """Read the trail on every edge, less what the scene itself shows there: a wall reads as a fifth of a trail."""
    scene = trail_strength(np.asarray(sample.image), size) if sample.image is not None else {}
    return {e: max(s - scene.get(e, 0.0), 0.0) for e, s in trail_strength(frames[-1], size).items()}


def candidates(sample: Sample, frames: Frames, shown: float = SHOWN) -> int:
    """Count the answers that the last frame shows at all: goals reached, or routes by the part that is theirs alone.

    Args:
        sample: of `choose`, `loop` or `maze`.
        frames: [time, height, width, rgb].
        shown: share of a full trail that counts.

    Raises:
        TaskError: the task has neither goals nor routes.
    """
    known = _options(sample, "routes", "goals")
    strength = laid(sample, frames, known["size"])
    if "goals" in known:
        return sum(max(s for e, s in strength.items() if goal in e) > shown for goal in known["goals"])
    routes: list[frozenset[Edge]] = known["routes"]
    others = [frozenset[Edge]().union(*(o for o in routes if o is not route)) for route in routes]
    distinct_parts = [route - rest for route, rest in zip(routes, others, strict=True)]
    return sum(float(np.mean([strength[e] for e in part])) > shown for part in distinct_parts)


def leaning(sample: Sample, frames: Frames) -> str:
    """Return the goal that most trail leads to in the last frame (`goal 0`), however little; empty where there is none.

    It asks no more of a video than a probe of a state is asked: which of the goals, not whether the answer is whole.

    Raises:
        TaskError: the task has no goals.
    """
    known = _options(sample, "goals")
    strength = laid(sample, frames, known["size"])
    most = [max(s for e, s in strength.items() if goal in e) for goal in known["goals"]]
    return f"goal {int(np.argmax(most))}" if max(most) > 0 else ""


def off_path(sample: Sample, frames: Frames) -> float:
    """Return the mass of trail in the last frame that lies off the right path, in edges between cells.

    Where several routes are right, off all of them. Walls count: a trail through one is off the path.

    Raises:
        TaskError: the task has no routes.
    """
    known = _options(sample, "routes")
    right = frozenset[Edge]().union(*known["routes"])
    return float(sum(s for e, s in laid(sample, frames, known["size"]).items() if e not in right))


def on_path(sample: Sample, frames: Frames) -> float:
    """Return the share of the right path that the last frame shows, 0 to 1; of the nearest where there are several.

    Raises:
        TaskError: the task has no routes.
    """
    known = _options(sample, "routes")
    strength = laid(sample, frames, known["size"])
    return max(float(np.mean([strength[e] for e in route])) for route in known["routes"])


def path_length(sample: Sample) -> int | None:
    """Return the number of cells on the right path, the first and the last among them; None where a task has none.

    Where several routes are right, those of the shortest.
    """
    known: dict[str, Any] = getattr(sample.scorer, "keywords", {})
    if "routes" in known:
        return min(len(route) for route in known["routes"]) + 1
    return len(known["path"]) if "path" in known else None


def branchings(sample: Sample) -> int | None:
    """Return at how many cells of the right path, the goal aside, another way leads off; None where there is no maze of one path.

    At the start a way leads off where it has two openings, elsewhere where it has three.
    """
    known: dict[str, Any] = getattr(sample.scorer, "keywords", {})
    if len(known.get("routes", ())) != 1:
        return None
    path = follow(known["routes"][0], known["start"])
    assert path is not None
    openings = [
        sum(edge(cell, near) not in known["walls"] for near in neighbours(cell, known["size"]))
        for cell in path[:-1]
    ]
    return sum(count > (1 if n == 0 else 2) for n, count in enumerate(openings))
