"""What is left open is read as such: two answers blended are two, and a right video leaves none."""

import numpy as np
import pytest

import dit_lens as dl
from dit_lens import tasks
from dit_lens.tasks.explore import candidates, off_path, on_path, path_length
from dit_lens.tasks.trail import board, walk


def blend(a, b, share=0.5):
    return (a.astype(float) * share + b * (1 - share)).round().astype(np.uint8)


@pytest.mark.parametrize("task", ["maze", "loop", "choose"])
@pytest.mark.parametrize("seed", range(1_000_000, 1_000_005))
def test_a_right_video_holds_one_answer_and_the_first_frame_none(task, seed):
    sample = tasks.make(task, seed)
    assert candidates(sample, sample.truth) == 1
    assert candidates(sample, sample.truth[:1]) == 0
    if task != "choose":
        assert off_path(sample, sample.truth) < 0.05 and on_path(sample, sample.truth) > 0.95
        assert on_path(sample, sample.truth[:1]) < 0.05


def test_a_blend_of_two_goals_holds_two():
    several = 0
    for seed in range(1_000_000, 1_000_020):
        sample = tasks.choose(seed, goals=2)
        options = sample.scorer.keywords
        ends = [g for g in options["goals"]]
        videos = []
        for goal in ends:
            r, c = options["start"]
            path = [(r, c)]
            while path[-1] != goal:
                y, x = path[-1]
                path.append((y, x + np.sign(goal[1] - x)) if x != goal[1] else (y + np.sign(goal[0] - y), x))
            if set(path[:-1]) & set(ends):
                break
            videos.append(walk(board(4, [], ends), [tuple(map(int, p)) for p in path], 13))
        if len(videos) == 2:
            several += 1
            assert candidates(sample, blend(*videos)) == 2
            assert candidates(sample, blend(*videos, share=0.95)) == 1
    assert several > 5


def test_trail_in_a_wrong_corridor_is_off_the_path():
    a, b = tasks.maze(1_000_000), tasks.maze(1_000_001)
    assert off_path(a, b.truth) > 3 and on_path(a, b.truth) < 0.9
    half = blend(a.truth, a.truth[:1])
    assert on_path(a, half) == pytest.approx(0.5, abs=0.03) and off_path(a, half) < 0.05


def test_other_tasks_are_refused():
    with pytest.raises(dl.TaskError, match="'circle' has no routes"):
        off_path(tasks.circle(1), tasks.circle(1).truth)


def test_the_length_of_a_path_is_that_of_the_walk_in_the_truth():
    for seed in range(1_000_000, 1_000_010):
        sample = tasks.maze(seed)
        walked = sample.score(sample.truth).answer  # a letter a move
        assert path_length(sample) == len(walked) + 1
        assert path_length(tasks.maze(seed, least=12)) >= 12
    assert (
        path_length(tasks.loop(1_000_000))
        == len(tasks.loop(1_000_000).score(tasks.loop(1_000_000).truth).answer) + 1
    )
    assert path_length(tasks.circle(1)) is None and path_length(dl.Sample("a cat", size=(16, 16))) is None
