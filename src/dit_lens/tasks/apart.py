"""`apart`: two agents, each with its own goal, whose ways share no cell. What the one may do hangs on what the other does."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dit_lens.errors import TaskError
from dit_lens.tasks import canvas as cv
from dit_lens.tasks import conduct, detours, layouts, trail
from dit_lens.tasks.arguments import whole_numbers
from dit_lens.tasks.canvas import CELL, Canvas, Cell
from dit_lens.tasks.detours import Pair
from dit_lens.tasks.sample import Sample, Score, of_truth
from dit_lens.tasks.scene import Answer, Scene
from dit_lens.tasks.trail import Edge
from dit_lens.tasks.walkers import Walker, masks_together, walk_together

AGENTS = {"red": cv.AGENT, "blue": cv.BALLS["blue"]}
GOALS = {
    name: tuple((a + b) / 2 for a, b in zip(colour, cv.FLOOR, strict=True)) for name, colour in AGENTS.items()
}
"""A goal is as pale as half of its agent's colour, so that the agent is seen when it stands on it."""
TRAIL = (0.62, 0.62, 0.62)
"""Of both agents. Grey has nothing of red or blue, so that no trail is taken for an agent; whose a trail is, is told by where it
starts, since ways that are right share no cell. It is light: a darker one comes out of the codec, which knows blue trails, blue.
"""
MOST = 8
"""Right answers of a board, at most; at least 2."""
CROSSING = 0.5
"""Share of the pairs of lone shortest paths that share a cell, at least."""


class Ends(NamedTuple):
    """Where an agent starts, and where its goal is."""

    start: Cell
    goal: Cell


Layout = tuple[Ends, Ends]
"""Of red and of blue."""


@whole_numbers
def apart(seed: int, size: int = 4, num_frames: int = conduct.NUM_FRAMES) -> Sample:
    """Make an open board with a red and a blue agent, each with a goal; the answer is a way for each, and the two share no cell.

    Right are the pairs of ways of least total length. A board has 2 to 8 of them; neither goal is beside its agent; and of the
    pairs of shortest ways that each agent would have alone, at least half share a cell.

    Args:
        seed: below 1,000,000 for training, from there on for evaluation.
        size: cells along each side, 4 to 6.
        num_frames: frames of the video.

    Raises:
        TaskError: there is no such board.
    """
    if size not in (4, 5, 6):
        raise TaskError(f"apart(size={size!r}): size is 4 to 6.")
    layout, pairs = layouts.draw(f"apart{size}", seed, partial(_layout, size=size), _key)
    pair = pairs[cv.rng_for("apart-pair", seed).integers(len(pairs))]
    board = _board(size, layout)
    scorer = partial(score_apart, size=size, layout=layout, pairs=pairs, num_frames=num_frames)
    scene = Scene(
        _key((layout, pairs)),
        partial(_masks, size=size, layout=layout, pair=pair, num_frames=num_frames),
        partial(_answers, board=board, pairs=pairs, num_frames=num_frames),
    )
    truth = walk_together(board, walkers(pair), num_frames)
    name = "apart" if size == 4 else f"apart{size}"
    return of_truth(name, str(seed), "red and blue go to goal", truth, scorer, scene)


def _layout(rng: np.random.Generator, size: int) -> tuple[Layout, list[Pair]]:
    while True:
        a, b, c, d = cv.random_cells(rng, size, 4)
        layout = red, blue = Ends(a, b), Ends(c, d)
        if min(detours.distance(*red), detours.distance(*blue)) < 2:
            continue
        if detours.crossing(red, blue, size) < CROSSING:
            continue
        pairs = detours.shortest_pairs(red, blue, size)
        if 2 <= len(pairs) <= MOST:
            return layout, pairs


def _key(drawn: tuple[Layout, list[Pair]]) -> tuple[tuple[Cell, ...], ...]:
    red, blue = drawn[0]
    return tuple(red), tuple(blue)


def walkers(pair: Pair) -> list[Walker]:
    """Return the red and the blue agent on a pair of paths."""
    return [Walker(path, colour, TRAIL) for path, colour in zip(pair, AGENTS.values(), strict=True)]


def _goals(layout: Layout) -> Mapping[str, Any]:
    return {
        f"{name} goal": partial(trail.paint_goals, goals=[ends.goal], colour=GOALS[name])
        for name, ends in zip(AGENTS, layout, strict=True)
    }


def _board(size: int, layout: Layout) -> Canvas:
    out = trail.board(size, [], [])
    for paint in _goals(layout).values():
        paint(out)
    return out


def _masks(size: int, layout: Layout, pair: Pair, num_frames: int) -> dict[str, NDArray[np.bool_]]:
    things = {**_goals(layout), "walls": partial(trail.paint_walls, size=size)}
    return masks_together(size, dict(zip(AGENTS, walkers(pair), strict=True)), num_frames, things)


def _answers(board: Canvas, pairs: list[Pair], num_frames: int) -> list[Answer]:
    return [
        Answer(_spell(pair), walk_together(board, walkers(pair), num_frames), 1 / len(pairs))
        for pair in pairs
    ]


def _spell(pair: Pair) -> str:
    moves = ("".join(trail.move(a, b) for a, b in pairwise(path)) for path in pair)
    return ", ".join(f"{name} {path or 'stays'}" for name, path in zip(AGENTS, moves, strict=True))


def score_apart(
    video: NDArray[np.uint8], size: int, layout: Layout, pairs: list[Pair], num_frames: int
) -> Score:
    """Judge all frames: red and blue walk one of the pairs of paths, each in its time, and the board stays as it is (`conduct`).

    The graded score is the overlap of edges (Jaccard) with the nearest pair, halved where not both agents end on their goals,
    times the share of frames that are legal on a walk along that pair.
    The answer is both paths, such as 'red RRD, blue LL', and where an agent does not stand at the end of its own, that too; or
    all edges with a trail, where they are not one path from each agent that share no cell.
    """
    board = _board(size, layout)
    edges = trail.read_trail(video[-1], size, (TRAIL, *AGENTS.values()))
    near = max(pairs, key=lambda pair: trail.overlap(edges, _edges(pair)))
    frames = conduct.judge_together(video, board, walkers(near), num_frames)
    goals: list[Cell | None] = [ends.goal for ends in layout]
    stand = goals if frames.last else [_cell(conduct.see(video[-1], board, c)) for c in AGENTS.values()]
    solved = frames.whole and edges == _edges(near)
    graded = trail.overlap(edges, _edges(near)) * (1.0 if stand == goals else 0.5) * frames.share
    return Score(solved, 1.0 if solved else min(graded, 0.99), _read(edges, layout, stand), frames.frames)


def _edges(pair: Pair) -> frozenset[Edge]:
    return trail.path_edges(pair[0]) | trail.path_edges(pair[1])


def _cell(seen: conduct.Sighting) -> Cell | None:
    """Return the cell where an agent is; None where it is not one agent."""
    return (int(seen.at[1] // CELL), int(seen.at[0] // CELL)) if seen.is_one else None


def _read(edges: frozenset[Edge], layout: Layout, stand: list[Cell | None]) -> str:
    parts = [_joined(edges, ends.start) for ends in layout]
    paths = [trail.follow(part, ends.start) for part, ends in zip(parts, layout, strict=True)]
    red, blue = paths
    if red is None or blue is None or {*red} & {*blue} or parts[0] | parts[1] != edges:
        return "edges " + " ".join(f"{r}{c}{trail.move((r, c), b)}" for (r, c), b in sorted(edges))
    lost = [
        f", {name} elsewhere"
        for name, cell, path in zip(AGENTS, stand, (red, blue), strict=True)
        if cell != path[-1]
    ]
    return _spell((tuple(red), tuple(blue))) + "".join(lost)


def _joined(edges: frozenset[Edge], start: Cell) -> frozenset[Edge]:
    """Return the edges that a cell is joined with."""
    cells, part = {start}, set[Edge]()
    while more := {e for e in edges - part if cells & {*e}}:
        part |= more
        cells |= {cell for e in more for cell in e}
    return frozenset(part)
