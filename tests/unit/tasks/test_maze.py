"""Mazes, judged by their pictures: walls are read off the first frame, not taken from the generator."""

import numpy as np
import pytest

from dit_lens import tasks
from dit_lens.errors import TaskError
from dit_lens.tasks import canvas as cv
from dit_lens.tasks import trail

SEEDS = [*range(15), *range(cv.EVAL_SEED, cv.EVAL_SEED + 15)]


def known(sample):
    """The size, start and goal of a maze, and its routes as edges."""
    k = sample.scorer.keywords
    return k["size"], k["start"], k["goal"], k["routes"]


def passages(sample, walls_of):
    size = known(sample)[0]
    return set(trail.grid_edges(size)) - walls_of(sample.truth[0], size)


def neighbours(open_edges, cell):
    return [b if a == cell else a for a, b in open_edges if cell in (a, b)]


def routes_between(open_edges, start, goal):
    """All simple paths, by brute force."""
    found, stack = [], [[start]]
    while stack:
        path = stack.pop()
        if path[-1] == goal:
            found.append(path)
            continue
        stack += [[*path, n] for n in neighbours(open_edges, path[-1]) if n not in path]
    return found


def reached(open_edges, start):
    seen, stack = {start}, [start]
    while stack:
        for n in neighbours(open_edges, stack.pop()):
            if n not in seen:
                seen.add(n)
                stack.append(n)
    return seen


def walk(sample, walls, path):
    """The video of another walk through the same maze."""
    size, _, goal, _ = known(sample)
    return trail.walk(trail.board(size, walls, [goal]), path, sample.num_frames)


def ending(sample, last):
    """The right video with another last frame, and the share of its frames that are left."""
    return np.concatenate([sample.truth[:-1], last[None]]), 1 - 1 / sample.num_frames


def goal_in(frame, size):
    seen = cv.likeness(frame, cv.GOAL)
    return [(r, c) for r in range(size) for c in range(size) if cv.patch(seen, *cv.centre((r, c)), 3) > 0.5]


@pytest.mark.parametrize("size", [3, 4, 6, 9])
def test_a_maze_is_a_spanning_tree_with_exactly_one_path(size, walls_of):
    for seed in SEEDS:
        sample = tasks.maze(seed, size=size)
        _, start, goal, (route,) = known(sample)
        open_edges = passages(sample, walls_of)
        assert len(open_edges) == size**2 - 1
        assert len(reached(open_edges, start)) == size**2
        (path,) = routes_between(open_edges, start, goal)
        assert trail.path_edges(path) == route
        assert (8 if size == 6 else size) <= len(path) <= 20


@pytest.mark.parametrize("size", [3, 4, 5])
def test_a_loop_has_exactly_two_routes_of_equal_length(size, walls_of):
    for seed in SEEDS:
        sample = tasks.loop(seed, size=size)
        _, start, goal, routes = known(sample)
        open_edges = passages(sample, walls_of)
        assert len(reached(open_edges, start)) == size**2
        one, other = routes_between(open_edges, start, goal)
        assert len(one) == len(other) >= 5
        assert {trail.path_edges(one), trail.path_edges(other)} == set(routes)
        assert set(one) & set(other) == {start, goal}


@pytest.mark.parametrize("make", [tasks.maze, tasks.loop], ids=["maze", "loop"])
def test_the_picture_shows_where_the_agent_starts_and_where_it_goes(make):
    for seed in SEEDS:
        sample = make(seed)
        size, start, goal, _ = known(sample)
        assert trail.read_agent(sample.truth[0], size) == start
        assert goal_in(sample.truth[0], size) == [goal]
        assert trail.read_agent(sample.truth[-1], size) == goal


@pytest.mark.parametrize("make, size, train, held_out", [(tasks.maze, 3, 800, 200), (tasks.loop, 3, 120, 30)])
def test_no_layout_is_on_both_sides_of_the_split(make, size, train, held_out):
    """So few mazes have 3 x 3 cells that without the split many would be."""

    def pictures(seeds):
        return [make(seed, size=size, num_frames=2).truth.tobytes() for seed in seeds]

    seen = set(pictures(range(train)))
    held = pictures(range(cv.EVAL_SEED, cv.EVAL_SEED + held_out))
    assert seen.isdisjoint(held)
    assert len(seen) < train  # the space is small: layouts do come twice on one side


def test_both_routes_of_loops_are_walked():
    picks = set()
    for seed in range(20):
        sample = tasks.loop(seed)
        size, _, _, routes = known(sample)
        picks.add(routes.index(trail.read_trail(sample.truth[-1], size)))
    assert picks == {0, 1}


@pytest.mark.parametrize("pick", [0, 1])
def test_either_route_of_a_loop_is_right_and_the_answers_differ(pick, walls_of):
    sample = tasks.loop(5)
    size, start, _, routes = known(sample)
    path = trail.follow(routes[pick], start)
    score = sample.score(walk(sample, walls_of(sample.truth[0], size), path))
    assert (score.solved, score.score) == (True, 1.0)
    assert score.answer == trail.spell(routes[pick], start)
    assert score.answer != trail.spell(routes[1 - pick], start)


# ---- spoiled


@pytest.mark.parametrize("seed", SEEDS[:8])
def test_both_routes_at_once_are_not_solved(seed, walls_of):
    sample = tasks.loop(seed)
    size, start, _, routes = known(sample)
    one, other = (walk(sample, walls_of(sample.truth[0], size), trail.follow(r, start))[-1] for r in routes)
    off = [np.abs(f.astype(int) - sample.truth[0]).sum(-1, keepdims=True) for f in (one, other)]
    both = np.where(off[0] >= off[1], one, other)
    assert trail.read_trail(both, size) == routes[0] | routes[1]
    video, kept = ending(sample, both)
    score = sample.score(video)
    # One of the two is the route that the frames before it walk.
    assert not score.solved
    assert score.score in (pytest.approx(0.5 * kept), pytest.approx(0.5 / sample.num_frames, abs=0.1))
    assert score.answer.startswith("edges ")


def test_a_trail_through_a_wall_is_not_solved(walls_of):
    """Straight to the goal along column and row, whatever stands there."""
    tried = 0
    for seed in SEEDS:
        sample = tasks.maze(seed)
        size, start, goal, (route,) = known(sample)
        walls = walls_of(sample.truth[0], size)
        (r, c), (r1, c1) = start, goal
        down = [(i, c) for i in range(r, r1, 1 if r1 > r else -1)]
        across = [(r1, i) for i in range(c, c1, 1 if c1 > c else -1)]
        path = [*down, *across, goal]
        edges = trail.path_edges(path)
        if edges & walls:
            tried += 1
            score = sample.score(walk(sample, walls, path))
            assert not score.solved
            assert score.answer == trail.spell(edges, start)
            assert score.score <= trail.overlap(edges, route)  # less where the agent left its path, too
    assert tried > len(SEEDS) / 2


@pytest.mark.parametrize("seed", SEEDS[:8])
def test_a_trail_that_stops_short_is_not_solved_and_scores_less_than_half_its_share(seed, walls_of):
    sample = tasks.maze(seed)
    size, start, _, (route,) = known(sample)
    path = trail.follow(route, start)
    score = sample.score(walk(sample, walls_of(sample.truth[0], size), path[:-1]))
    assert not score.solved
    assert 0.1 < score.score <= (len(path) - 2) / (len(path) - 1) / 2
    assert score.answer == trail.spell(route, start)[:-1]


def test_a_right_trail_without_the_agent_on_the_goal_is_not_solved():
    sample = tasks.maze(3)
    size, _, goal, _ = known(sample)
    x, y = (int(v) for v in cv.centre(goal))
    last = sample.truth[-1].copy()
    last[y - 6 : y + 6, x - 6 : x + 6] = np.round(255 * np.array(cv.TRAIL))
    video, kept = ending(sample, last)
    score = sample.score(video)
    assert trail.read_trail(last, size) == known(sample)[3][0]
    assert not score.solved
    assert score.score == pytest.approx(0.5 * kept)


def test_a_right_trail_with_a_side_branch_is_not_solved():
    sample = tasks.maze(3)
    size, _, goal, (route,) = known(sample)
    on_route = {cell for e in route for cell in e} - {goal}
    extra = next(e for e in trail.grid_edges(size) if e not in route and on_route & set(e) and goal not in e)
    (x0, y0), (x1, y1) = (cv.centre(c) for c in extra)
    canvas = sample.truth[-1].astype(np.float32) / 255
    cv.rectangle(canvas, x0 - 3, y0 - 3, x1 + 3, y1 + 3, cv.TRAIL)
    (last,) = cv.to_frames([canvas])
    assert trail.read_trail(last, size) == route | {extra}
    video, kept = ending(sample, last)
    score = sample.score(video)
    assert not score.solved
    assert score.score == pytest.approx(kept * len(route) / (len(route) + 1))


@pytest.mark.parametrize("make", [tasks.maze, tasks.loop], ids=["maze", "loop"])
@pytest.mark.parametrize("size", [2, 13, 0, -4])
def test_a_size_that_is_no_board_is_refused(make, size):
    with pytest.raises(TaskError, match=f"size is {size}: a board has 3 to 12 cells"):
        make(1, size=size)
