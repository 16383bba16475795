"""Boards with several goals: any one is right, two are not."""

import numpy as np
import pytest

from dit_lens import tasks
from dit_lens.errors import TaskError
from dit_lens.tasks import canvas as cv
from dit_lens.tasks import trail

SEEDS = [*range(30), *range(cv.EVAL_SEED, cv.EVAL_SEED + 30)]


def known(sample):
    k = sample.scorer.keywords
    return k["size"], k["start"], k["goals"]


def corner(start, goal):
    """Along the column first: a path that the generator itself never draws, unless it is straight."""
    (r, c), (r1, c1) = start, goal
    down = [(i, c) for i in range(r, r1, 1 if r1 > r else -1)]
    across = [(r1, i) for i in range(c, c1, 1 if c1 > c else -1)]
    return [*down, *across, goal]


def truth_path(sample):
    size, start, _ = known(sample)
    return trail.follow(trail.read_trail(sample.truth[-1], size), start)


def walk(sample, path):
    size, _, goals = known(sample)
    return trail.walk(trail.board(size, [], goals), path, sample.num_frames)


def free(path, goals):
    return not set(path[:-1]) & set(goals)


def both(one, other, background):
    off = [np.abs(f.astype(int) - background).sum(-1, keepdims=True) for f in (one, other)]
    return np.where(off[0] >= off[1], one, other)


@pytest.mark.parametrize("goals, size", [(None, 4), (2, 4), (4, 4), (3, 8)])
def test_the_picture_shows_the_agent_and_the_goals_none_next_door(goals, size):
    for seed in SEEDS:
        sample = tasks.choose(seed, goals=goals, size=size)
        _, start, ends = known(sample)
        seen = cv.likeness(sample.truth[0], cv.GOAL)
        cells = [(r, c) for r in range(size) for c in range(size)]
        assert {c for c in cells if cv.patch(seen, *cv.centre(c), 3) > 0.5} == set(ends)
        assert trail.read_agent(sample.truth[0], size) == start
        assert len(ends) == goals or (goals is None and 2 <= len(ends) <= 4)
        assert all(abs(start[0] - r) + abs(start[1] - c) >= 2 for r, c in ends)


def test_the_number_of_goals_varies_where_it_is_not_given():
    assert {len(known(tasks.choose(seed))[2]) for seed in range(30)} == {2, 3, 4}


def test_the_route_goes_along_cells_to_one_goal_and_avoids_the_others():
    picked = set()
    for seed in SEEDS:
        sample = tasks.choose(seed)
        _, start, goals = known(sample)
        path = truth_path(sample)
        assert path[0] == start
        assert [g for g in goals if g in path] == [path[-1]]
        picked.add(goals.index(path[-1]))
    assert picked == {0, 1, 2, 3}


def test_any_goal_by_any_one_path_is_right_and_named():
    tried = 0
    for seed in SEEDS:
        sample = tasks.choose(seed)
        _, start, goals = known(sample)
        for i, goal in enumerate(goals):
            path = corner(start, goal)
            if free(path, goals):
                score = sample.score(walk(sample, path))
                assert (score.solved, score.score, score.answer) == (True, 1.0, f"goal {i}")
                tried += 1
    assert tried > 60


# ---- spoiled


def test_trails_to_two_goals_are_not_solved():
    tried = 0
    for seed in SEEDS:
        sample = tasks.choose(seed)
        _, start, goals = known(sample)
        one, other = (corner(start, g) for g in goals[:2])
        if not (free(one, goals) and free(other, goals)):
            continue
        tried += 1
        frame = both(walk(sample, one)[-1], walk(sample, other)[-1], sample.truth[0])
        score = sample.score(frame[None])
        assert not score.solved
        assert score.score <= 1 / 3
        assert score.answer.startswith("goals [0, 1] by ")
    assert tried > 20


@pytest.mark.parametrize("through", [0, 1])
def test_a_trail_through_one_goal_to_another_is_not_solved(through):
    tried = 0
    for seed in SEEDS:
        sample = tasks.choose(seed, goals=2, size=6)
        _, start, goals = known(sample)
        out, on = corner(start, goals[through]), corner(goals[through], goals[1 - through])
        if free(out, goals) and not set(out) & set(on[1:]):
            tried += 1
            score = sample.score(walk(sample, [*out, *on[1:]]))
            assert not score.solved
            assert score.answer.startswith("goals [0, 1]")
    assert tried > 10


def test_a_right_trail_with_a_piece_of_trail_beside_it_is_not_solved():
    for seed in SEEDS[:20]:
        sample = tasks.choose(seed)
        size, _, goals = known(sample)
        right = trail.read_trail(sample.truth[-1], size)
        kept = set(goals)
        extra = next(e for e in trail.grid_edges(size) if e not in right and not set(e) & kept)
        (x0, y0), (x1, y1) = (cv.centre(c) for c in extra)
        canvas = sample.truth[-1].astype(np.float32) / 255
        cv.rectangle(canvas, x0 - 3, y0 - 3, x1 + 3, y1 + 3, cv.TRAIL)
        video = np.concatenate([sample.truth[:-1], cv.to_frames([canvas])])
        score = sample.score(video)
        assert not score.solved
        assert score.score == pytest.approx(2 / 3 * 12 / 13)  # the last frame is wrong


def test_a_trail_that_stops_before_the_goal_is_not_solved():
    for seed in SEEDS[:10]:
        sample = tasks.choose(seed)
        score = sample.score(walk(sample, truth_path(sample)[:-1]))
        assert not score.solved
        assert score.score == pytest.approx(1 / 3, abs=0.01)
        assert score.answer.startswith("goals [] by ")


def test_a_trail_that_goes_on_past_its_goal_is_not_solved():
    for seed in SEEDS:
        sample = tasks.choose(seed)
        size, _, goals = known(sample)
        path = truth_path(sample)
        (r0, c0), (r1, c1) = path[-2:]
        beyond = (2 * r1 - r0, 2 * c1 - c0)
        if min(beyond) >= 0 and max(beyond) < size and beyond not in goals:
            score = sample.score(walk(sample, [*path, beyond]))
            assert not score.solved and score.score < 1
            return
    raise AssertionError("no seed has a cell past its goal")


def test_an_agent_that_jumps_to_a_goal_without_a_trail_is_not_solved():
    sample = tasks.choose(1)
    size, _, goals = known(sample)
    board = trail.board(size, [], goals)
    cv.disc(board, *cv.centre(goals[0]), 5, cv.AGENT)
    score = sample.score(cv.to_frames([board]))
    assert not score.solved
    assert score.score == 0


def test_a_diagonal_trail_is_not_solved():
    sample = tasks.choose(0, goals=2)
    _, start, goals = known(sample)
    last = sample.truth[0].copy()
    goal = next(g for g in goals if g[0] != start[0] and g[1] != start[1])
    for t in np.linspace(0, 1, 200):
        x, y = np.round(np.array(cv.centre(start)) * (1 - t) + np.array(cv.centre(goal)) * t).astype(int)
        last[y - 3 : y + 3, x - 3 : x + 3] = np.round(255 * np.array(cv.TRAIL))
    assert not sample.score(last[None]).solved


@pytest.mark.parametrize("options", [{"size": 3}, {"size": 13}, {"goals": 1}, {"goals": 5}, {"goals": 0}])
def test_a_board_that_cannot_be_made_is_refused(options):
    with pytest.raises(TaskError, match=r"size is 4 to 12, goals 2 to 4"):
        tasks.choose(1, **options)
