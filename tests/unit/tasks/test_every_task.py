"""What holds of every task: truth scores 1, spoiled videos are not solved, and a seed gives one sample."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dit_lens import tasks
from dit_lens.errors import TaskError
from dit_lens.tasks import canvas as cv

TASKS = {
    **tasks.TASKS,
    "maze4": partial(tasks.maze, size=4),
    "choose6": partial(tasks.choose, size=6),
    "arrows2": partial(tasks.arrows, depth=2),
    "arrows32": partial(tasks.arrows, depth=32),
    "bounce1": partial(tasks.bounce, depth=1),
    "bounce10": partial(tasks.bounce, depth=10),
    "latin10": partial(tasks.latin, open_cells=10),
    "pick-new": partial(tasks.pick, held_out=True),
}
SEEDS = [*range(20), *range(cv.EVAL_SEED, cv.EVAL_SEED + 20)]


@pytest.fixture(scope="module", params=TASKS)
def task(request):
    return request.param


@pytest.fixture(scope="module")
def samples(task):
    return [TASKS[task](seed) for seed in SEEDS]


@pytest.fixture(scope="module")
def scores(samples):
    """Of each truth."""
    return [sample.score(sample.truth) for sample in samples]


@pytest.fixture(scope="module")
def scores_of_decoded(samples, through_codec):
    """Of what comes back of each truth: the best that a model can do."""
    return [sample.score(through_codec(sample.truth)) for sample in samples]


def test_the_truth_is_solved_and_scores_1(scores):
    assert all((score.solved, score.score) == (True, 1.0) for score in scores)


def test_the_truth_is_solved_after_the_codec(scores_of_decoded):
    assert np.mean([score.solved for score in scores_of_decoded]) == 1


def test_the_codec_does_not_change_the_answer_that_is_read(scores, scores_of_decoded):
    assert [score.answer for score in scores] == [score.answer for score in scores_of_decoded]


def test_spoiled_videos_are_not_solved(task, samples, noise):
    for sample, other in zip(samples[::7], samples[1::7], strict=False):
        truth = sample.truth
        spoiled = {
            "frozen": np.repeat(truth[:1], len(truth), 0),
            "backwards": truth[::-1],
            "noise": noise(truth, int(sample.id)),
            "black": np.zeros_like(truth),
            "white": np.full_like(truth, 255),
            "grey": np.full_like(truth, 128),
            "a quarter of the way": truth[: len(truth) // 4],
        }
        if task == "back":
            del spoiled["backwards"]  # it looks the same
        if task.startswith(
            ("maze", "loop", "arrows", "bounce", "apart")
        ):  # elsewhere another question may well have the same answer
            spoiled |= {"another's": other.truth, "upside down": truth[:, ::-1, ::-1]}
        for name, video in spoiled.items():
            score = sample.score(video)
            assert not score.solved and score.score < 1, (sample.id, name, score)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(sorted(TASKS)),
    st.integers(0, 2 * cv.EVAL_SEED),
    st.integers(0, 12),
    st.floats(0, 1),
    st.integers(0, 2**32 - 1),
)
def test_a_score_is_in_0_to_1_and_is_1_exactly_where_solved(task, seed, frame, share, noise_seed):
    sample = TASKS[task](seed)
    noise = np.random.default_rng(noise_seed).integers(0, 256, sample.truth.shape[1:])
    last = (share * sample.truth[frame] + (1 - share) * noise).round().astype(np.uint8)
    score = sample.score(last[None])
    assert isinstance(score.solved, bool)
    assert 0 <= score.score <= 1
    assert (score.score == 1) == score.solved
    assert isinstance(score.answer, str)


def test_a_seed_gives_one_sample_and_another_seed_another(task):
    one, same, other = (TASKS[task](seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one.truth, same.truth)
    assert (one.prompt, one.id) == (same.prompt, same.id)
    assert not np.array_equal(one.truth, other.truth)


def test_the_first_frame_is_the_question_and_ids_name_the_seed(task):
    sample = TASKS[task](cv.EVAL_SEED + 7)
    np.testing.assert_array_equal(np.asarray(sample.image), sample.truth[0])
    assert sample.truth.dtype == np.uint8
    assert sample.truth.shape == (sample.num_frames, *sample.size, 3)
    assert sample.num_frames in (13, 25)
    assert sample.id == str(cv.EVAL_SEED + 7)


@pytest.mark.parametrize("num_frames", [2, 5, 25])
def test_the_number_of_frames_changes_the_video_and_not_the_question(task, num_frames):
    sample, usual = TASKS[task](5, num_frames=num_frames), TASKS[task](5)
    assert len(sample.truth) == sample.num_frames == num_frames
    assert sample.score(sample.truth) == usual.score(usual.truth)
    np.testing.assert_array_equal(np.asarray(sample.image), np.asarray(usual.image))


def test_a_video_needs_two_frames_and_a_seed_is_a_whole_number(task):
    for few in (0, 1):
        with pytest.raises(TaskError, match=f"num_frames is {few}"):
            TASKS[task](1, num_frames=few)
    for seed in (-1, "7", 1.5, 7.0, None, True):
        with pytest.raises(TaskError, match=rf"seed={seed!r}\): seeds are whole numbers"):
            TASKS[task](seed)


def test_numbers_of_any_library_make_the_same_sample(task):
    one = TASKS[task](5, num_frames=5)
    for other in (
        TASKS[task](np.int64(5), num_frames=np.int32(5)),
        TASKS[task](np.uint8(5), num_frames=np.array(5)),
    ):
        np.testing.assert_array_equal(one.truth, other.truth)
        assert (one.id, repr(one.scene.layout)) == (other.id, repr(other.scene.layout))
    for frames in (2.5, 13.0, "13", None, True):
        with pytest.raises(TaskError, match=r"num_frames=.*give a whole number"):
            TASKS[task](5, num_frames=frames)


@pytest.mark.parametrize(
    "name, option",
    [
        ("maze", "size"),
        ("loop", "size"),
        ("choose", "size"),
        ("apart", "size"),
        ("choose", "goals"),
        ("maze", "least"),
        ("odd", "count"),
        ("latin", "open_cells"),
        ("arrows", "depth"),
        ("bounce", "depth"),
        ("arrows", "size"),
    ],
)
def test_options_of_any_library_make_the_same_sample_on_the_same_side(name, option):
    value = {"size": 6, "goals": 2, "least": 9, "count": 5, "open_cells": 7, "depth": 3}[option]
    for seed in (3, cv.EVAL_SEED + 3):
        one, other = (tasks.make(name, seed, **{option: number}) for number in (value, np.int64(value)))
        np.testing.assert_array_equal(one.truth, other.truth)
        assert repr(one.scene.layout) == repr(other.scene.layout) and one.split == other.split
    for wrong in (float(value), str(value), True):
        with pytest.raises(TaskError, match=f"{option}={wrong!r}.*give a whole number|size is 4 to 6"):
            tasks.make(name, 3, **{option: wrong})


def test_tasks_are_made_by_name():
    for name, task in tasks.TASKS.items():
        assert tasks.make(name, 3) == task(3)
        assert task(3).task == name
    assert tasks.make("maze", 3, size=4).task == "maze4"


def test_an_unknown_task_is_refused_with_the_known_ones():
    with pytest.raises(TaskError, match="No task is called 'sudoku'; there are: maze, loop, choose"):
        tasks.make("sudoku", 1)


def test_masks_are_of_what_is_seen(samples):
    for sample in samples[::10]:
        floor = np.array(cv.FLOOR) * 255
        for name, mask in sample.masks.items():
            assert mask.shape == sample.truth.shape[:3] and mask.dtype == bool, name
            if name not in ("open",):  # cells, not things
                seen = np.abs(sample.truth[mask] - floor).mean(-1) if mask.any() else np.ones(1) * 255
                assert (seen > 5).mean() > 0.8, (sample.id, name)


def test_every_answer_is_right_and_one_of_them_is_the_truth(samples):
    for sample in samples[::10]:
        answers = sample.answers
        scores = [sample.score(answer.video) for answer in answers]
        assert all(score.solved for score in scores)
        assert [score.answer for score in scores] == [answer.text for answer in answers]
        assert sum(np.array_equal(answer.video, sample.truth) for answer in answers) == 1
        assert abs(sum(answer.prior for answer in answers) - 1) < 1e-9


def test_a_layout_is_on_one_side_of_the_split(task, samples):
    if samples[0].scene.layout is None:
        with pytest.raises(TaskError, match="does not split its layouts"):
            _ = samples[0].split
        return
    for sample in samples:
        assert sample.split == ("eval" if int(sample.id) >= cv.EVAL_SEED else "train")


def test_a_sample_of_ones_own_has_no_scene():
    sample = tasks.Sample("a cat", size=(4, 4))
    for name in ("masks", "answers", "split"):
        with pytest.raises(TaskError, match="does not say how its scene was made"):
            getattr(sample, name)
