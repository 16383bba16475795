"""`maze`: one path through a perfect maze. `loop`: a maze with two routes of equal length."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from dit_lens.errors import TaskError
from dit_lens.tasks import canvas as cv
from dit_lens.tasks import conduct, layouts, trail
from dit_lens.tasks.arguments import whole_numbers
from dit_lens.tasks.canvas import Cell
from dit_lens.tasks.sample import Sample, Score, of_truth
from dit_lens.tasks.scene import Answer, Scene
from dit_lens.tasks.trail import Edge

LONGEST = 20
"""Cells on a path, at most: more would not be walked in the frames there are."""


@whole_numbers
def maze(seed: int, size: int = 6, least: int | None = None, num_frames: int = cv.NUM_FRAMES) -> Sample:
    """Make a perfect maze, an agent and a goal; the answer is the only path.

    Training seeds and evaluation seeds never share a maze: each layout belongs to one side by its checksum.

    Args:
        seed: below 1,000,000 for training, from there on for evaluation.
        size: cells along each side, 3 to 12.
        least: fewest cells on the path, up to 20. Default: `size`, and 8 at size 6, where the organism solves
            shorter paths in one pass, so that nothing of them is worked out along the steps.
        num_frames: frames of the video.

    Raises:
        TaskError: there is no board of this size, or no path of this length on it.
    """
    _check_size(size)
    least = (8 if size == 6 else size) if least is None else least
    if not 2 <= least <= min(LONGEST, size * size // 2):
        raise TaskError(
            f"maze(size={size}, least={least}): a path has 2 to {min(LONGEST, size * size // 2)} cells there."
        )
    walls, path = _split(seed, f"maze{size}", partial(_perfect, size=size, least=least))
    return route_sample("maze" if size == 6 else f"maze{size}", seed, size, walls, [path], num_frames)


@whole_numbers
def loop(seed: int, size: int = 4, num_frames: int = cv.NUM_FRAMES) -> Sample:
    """Make a maze with two routes of equal length from agent to goal; the answer is one of them, entire.

    Args:
        seed: below 1,000,000 for training, from there on for evaluation.
        size: cells along each side, 3 to 12.
        num_frames: frames of the video.
    """
    _check_size(size)
    walls, *routes = _split(seed, f"loop{size}", partial(_ring, size=size))
    return route_sample("loop" if size == 4 else f"loop{size}", seed, size, walls, routes, num_frames)


def _check_size(size: int) -> None:
    if not 3 <= size <= 12:
        raise TaskError(f"size is {size}: a board has 3 to 12 cells a side.")


def _split(seed: int, name: str, make: Callable[[np.random.Generator], tuple]) -> tuple:
    """Draw a layout of walls and routes on the seed's side of the split."""
    return layouts.draw(name, seed, make, _key)


def _key(layout: tuple) -> tuple[list[Edge], Cell, Cell]:
    walls, route, *_ = layout
    return sorted(walls), route[0], route[-1]


def _tree(rng: np.random.Generator, size: int) -> set[Edge]:
    """Draw passages that join all cells without a loop, depth first: long winding corridors."""
    start = int(rng.integers(size)), int(rng.integers(size))
    tree: set[Edge] = set()
    seen, stack = {start}, [start]
    while stack:
        ahead = [n for n in trail.neighbours(stack[-1], size) if n not in seen]
        if not ahead:
            stack.pop()
            continue
        n = ahead[rng.integers(len(ahead))]
        tree.add(trail.edge(stack[-1], n))
        seen.add(n)
        stack.append(n)
    return tree


def _perfect(rng: np.random.Generator, size: int, least: int) -> tuple[frozenset[Edge], list[Cell]]:
    while True:
        tree = _tree(rng, size)
        for _ in range(50):  # not every tree has so long a path
            a, b = rng.choice(size * size, 2, replace=False)
            path = _path(tree, divmod(int(a), size), divmod(int(b), size))
            if least <= len(path) <= LONGEST:
                return frozenset(trail.grid_edges(size)) - tree, path


def _path(tree: set[Edge], start: Cell, goal: Cell) -> list[Cell]:
    """Return the only path between two cells of a tree."""
    steps: dict[Cell, list[Cell]] = {}
    for a, b in tree:
        steps.setdefault(a, []).append(b)
        steps.setdefault(b, []).append(a)
    came, stack = {start: start}, [start]
    while stack:
        cell = stack.pop()
        for n in steps[cell]:
            if n not in came:
                came[n] = cell
                stack.append(n)
    path = [goal]
    while path[-1] != start:
        path.append(came[path[-1]])
    return path[::-1]


def _ring(rng: np.random.Generator, size: int) -> tuple[frozenset[Edge], list[Cell], list[Cell]]:
    """Find a cycle (a tree plus one edge) of at least 8 cells; agent and goal stand at its opposite ends."""
    while True:
        tree = _tree(rng, size)
        spare = sorted(set(trail.grid_edges(size)) - tree)
        a, b = spare[rng.integers(len(spare))]
        cycle = _path(tree, a, b)
        if len(cycle) >= 8:
            break
    k, half = int(rng.integers(len(cycle))), len(cycle) // 2
    cycle = cycle[k:] + cycle[:k]
    walls = frozenset(trail.grid_edges(size)) - tree - {trail.edge(a, b)}
    return walls, cycle[: half + 1], [cycle[0], *cycle[: half - 1 : -1]]


def route_sample(
    task: str, seed: int, size: int, walls: frozenset[Edge], routes: list[list[Cell]], num_frames: int
) -> Sample:
    """Make the sample of a board with walls; its right video walks one of the routes, drawn by the seed.

    Args:
        task: name of the task.
        seed: of the sample.
        size: cells along each side.
        walls: edges that are closed.
        routes: every right answer, from one start to one goal.
        num_frames: frames of the video.
    """
    start, goal = routes[0][0], routes[0][-1]
    pick = routes[cv.rng_for(task + "-route", seed).integers(len(routes))]
    truth = trail.walk(trail.board(size, walls, [goal]), pick, num_frames)
    edges = [trail.path_edges(route) for route in routes]
    scorer = partial(
        score_routes, size=size, walls=walls, routes=edges, start=start, goal=goal, num_frames=num_frames
    )
    scene = Scene(
        _key((walls, *routes)),
        partial(trail.scene_masks, size, walls, [goal], pick, num_frames),
        partial(_answers, size=size, walls=walls, routes=routes, num_frames=num_frames),
    )
    return of_truth(task, str(seed), "solve the maze", truth, scorer, scene)


def _answers(size: int, walls: frozenset[Edge], routes: list[list[Cell]], num_frames: int) -> list[Answer]:
    board = trail.board(size, walls, [routes[0][-1]])
    return [
        Answer(
            trail.spell(trail.path_edges(route), route[0]),
            trail.walk(board, route, num_frames),
            1 / len(routes),
        )
        for route in routes
    ]


def score_routes(
    video: NDArray[np.uint8],
    size: int,
    walls: frozenset[Edge],
    routes: list[frozenset[Edge]],
    start: Cell,
    goal: Cell,
    num_frames: int,
) -> Score:
    """Judge all frames: the agent walks one of the routes, entire, in its time, and the board stays as it is (`conduct`).

    The graded score is the overlap of edges (Jaccard) with the nearest route, halved where the agent does not end on the
    goal, times the share of frames that are legal on a walk along that route.
    """
    edges = trail.read_trail(video[-1], size)
    route = max(routes, key=lambda route: trail.overlap(edges, route))
    path = trail.follow(route, start)
    assert path is not None
    frames = conduct.judge(video, trail.board(size, walls, [goal]), path, num_frames)
    arrived = frames.last or trail.read_agent(video[-1], size) == goal
    solved = frames.whole and edges == route
    graded = trail.overlap(edges, route) * (1.0 if arrived else 0.5) * frames.share
    return Score(solved, 1.0 if solved else min(graded, 0.99), trail.spell(edges, start), frames.frames)
