"""Two videos of a scene: the one breaks its rule alone, the other none."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

import dit_lens as dl
from dit_lens.errors import TaskError
from dit_lens.tasks import trail
from dit_lens.tasks.canvas import EVAL_SEED
from dit_lens.tasks.impossible import COMPARISONS, comparisons_of, videos_of
from dit_lens.tasks.permanence import hidden_frames, lanes, permanence

EVERY = [(task, name) for name, comparison in COMPARISONS.items() for task in comparison.tasks]


@pytest.mark.parametrize("task, name", EVERY)
def test_the_right_video_is_right_and_the_other_one_where_no_rule_is_broken(task, name):
    sample = dl.tasks.make(task, EVAL_SEED + 1)
    right, other = videos_of(sample, name)
    assert right.score(right.truth).solved
    if name != "reversed":  # which is another question, and has no scorer
        assert other.score(other.truth).solved == (task in COMPARISONS[name].nulls)
    for video in (right, other):
        assert video.truth.shape == sample.truth.shape and video.truth.dtype == np.uint8
        assert np.array_equal(np.asarray(video.image), video.truth[0])  # asked with its own first frame
        assert video.prompt == sample.prompt and video.num_frames == sample.num_frames
    assert not np.array_equal(right.truth, other.truth)
    again = videos_of(sample, name)
    assert all(np.array_equal(a.truth, b.truth) for a, b in zip(again, (right, other), strict=True))


@pytest.mark.parametrize("seed", range(EVAL_SEED, EVAL_SEED + 8))
def test_a_walk_through_a_wall_is_as_long_and_where_the_wall_is_away_as_many_pixels_change(seed):
    sample = dl.tasks.maze(seed)
    board = sample.scorer.keywords
    paths = [
        trail.follow(trail.read_trail(video.truth[-1], 6), board["start"])
        for video in videos_of(sample, "wall")
    ]
    assert len(paths[0]) == len(paths[1]) and paths[0][0] == paths[1][0] and paths[0][-1] == paths[1][-1]
    assert not trail.path_edges(paths[0]) & board["walls"] and trail.path_edges(paths[1]) & board["walls"]
    differ = [
        np.abs(np.subtract(*(video.truth.astype(int) for video in videos_of(sample, name)))).mean()
        for name in ("wall", "open")
    ]
    assert differ[1] == pytest.approx(differ[0], rel=0.1)
    opened = videos_of(sample, "open")
    assert opened[0].image.tobytes() == opened[1].image.tobytes() != sample.image.tobytes()
    assert all(
        np.array_equal(answer.video, video.truth)
        for answer, video in zip(opened[0].answers, opened, strict=True)
    )


def test_a_ball_changes_while_nothing_of_it_is_seen():
    for seed in range(EVAL_SEED, EVAL_SEED + 6):
        sample = dl.tasks.occlude(seed)
        colour, lane = lanes(sample)
        for name in ("colour", "lane"):
            _, other = videos_of(sample, name)
            same = (other.truth == sample.truth).all((1, 2, 3))
            first = int(np.flatnonzero(~same)[0])
            assert same[: hidden_frames(sample)[-1]].all() and first > hidden_frames(sample)[0]
            seen = permanence(sample, other.truth)
            changed = {"colour": seen.colour != colour, "lane": seen.lane != lane}
            assert [n for n, is_other in changed.items() if is_other] == [name]


@pytest.mark.parametrize("task", ["occlude", "roll"])
def test_a_ball_that_rolls_backwards_is_a_right_video_of_the_other_direction(task):
    sample = dl.tasks.make(task, EVAL_SEED + 1)
    _, other = videos_of(sample, "reversed")
    known = sample.scorer.keywords
    roll = known["roll"] if "roll" in known else known["legal"].keywords["roll"]
    way = roll.way
    turned = replace(
        roll, way=partial(way.func, **{**way.keywords, "leftward": not way.keywords["leftward"]})
    )
    off = np.abs(other.truth.astype(int) - turned.video(sample.num_frames))
    assert off.max() <= 1 and [answer.prior for answer in other.answers] == [1.0]


def test_time_backwards_has_no_right_answers_where_it_breaks_a_rule():
    _, other = videos_of(dl.tasks.maze(EVAL_SEED), "reversed")
    with pytest.raises(TaskError, match="too many to be enumerated"):
        _ = other.answers


def test_which_answer_is_the_right_video_is_drawn_evenly():
    """So a preference for one of them is as often for the right video as for the other one."""
    first = [
        int(np.array_equal(sample.answers[0].video, sample.truth))
        for sample in (dl.tasks.choose(EVAL_SEED + n, goals=2) for n in range(100))
    ]
    assert 35 <= sum(first) <= 65


def test_what_a_scene_does_not_have_is_refused():
    sample = dl.tasks.maze(EVAL_SEED)
    with pytest.raises(TaskError, match="has no comparison 'colour'; it has: wall, open, ending, reversed"):
        videos_of(sample, "colour")
    with pytest.raises(TaskError, match="no frame hides the ball; ask for more frames"):
        videos_of(dl.tasks.occlude(EVAL_SEED, num_frames=2), "colour")
    with pytest.raises(TaskError, match="has no right video"):
        videos_of(sample.with_(truth=None), "ending")
    with pytest.raises(TaskError, match="backwards it is the same video"):
        videos_of(sample.with_(truth=sample.truth[:1].repeat(13, 0)), "reversed")
    assert comparisons_of("custom") == []


def test_without_a_picture_videos_are_asked_without_one():
    sample = dl.tasks.maze(EVAL_SEED).with_(image=None)
    for name in comparisons_of("maze"):
        assert [video.image for video in videos_of(sample, name)] == [None, None]
        assert {video.size for video in videos_of(sample, name)} == {(96, 96)}
