"""A sample is frozen data that knows its size, and scores a video of that size."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from dit_lens.errors import TaskError
from dit_lens.tasks.sample import Sample, Score, as_frames

IMAGE = Image.new("RGB", (48, 32), (10, 20, 30))
VIDEO = np.random.default_rng(0).integers(0, 256, (3, 32, 48, 3), np.uint8)


def count_frames(video):
    return Score(True, 1.0, str(len(video)))


def test_the_size_is_that_of_the_image_height_first():
    sample = Sample("a cat", IMAGE)
    assert sample.size == (sample.height, sample.width) == (32, 48)


def test_a_given_size_stands_with_or_without_an_image():
    assert Sample("a cat", IMAGE, size=(480, 832)).size == (480, 832)
    assert Sample("a cat", size=(480, 832)).height == 480


def test_without_image_and_size_a_sample_is_refused():
    with pytest.raises(TaskError, match=r"Sample mine/7 has neither an image nor a size: pass size="):
        Sample("a cat", task="mine", id="7")


@pytest.mark.parametrize("num_frames", [0, -1])
def test_a_sample_has_frames(num_frames):
    with pytest.raises(
        TaskError, match=f"Sample custom/0: num_frames is {num_frames}; give a whole number of at least 1"
    ):
        Sample("a cat", IMAGE, num_frames)


def test_a_sample_is_frozen_and_changed_by_copy():
    sample = Sample("a cat", IMAGE, id="1")
    with pytest.raises(dataclasses.FrozenInstanceError):
        sample.prompt = "a dog"
    other = sample.with_(prompt="a dog")
    assert (sample.prompt, other.prompt, other.id, other.image) == ("a cat", "a dog", "1", IMAGE)


def test_the_size_follows_a_new_image_unless_it_was_given():
    wide = Image.new("RGB", (100, 20))
    assert Sample("a cat", IMAGE).with_(image=wide).size == (20, 100)
    assert Sample("a cat", IMAGE, size=(480, 832)).with_(image=wide).size == (480, 832)
    assert Sample("a cat", IMAGE).with_(image=wide, size=(8, 8)).size == (8, 8)
    assert Sample("a cat", IMAGE).with_(image=None).size == (32, 48)


def test_samples_are_equal_where_the_question_is():
    assert Sample("a cat", IMAGE, truth=VIDEO, scorer=count_frames) == Sample("a cat", IMAGE.copy())
    assert Sample("a cat", IMAGE) != Sample("a dog", IMAGE)
    assert Sample("a cat", IMAGE) != Sample("a cat", Image.new("RGB", (48, 32)))


def test_a_sample_prints_without_its_video():
    assert "truth" not in repr(Sample("a cat", IMAGE, truth=VIDEO))


def test_the_scorer_judges_arrays_and_images_alike():
    sample = Sample("a cat", IMAGE, scorer=count_frames)
    assert sample.score(VIDEO) == Score(True, 1.0, "3")
    assert sample.score([Image.fromarray(f) for f in VIDEO[:2]]).answer == "2"


def test_without_a_scorer_there_is_no_score():
    with pytest.raises(
        TaskError, match=r"Sample custom/0 has no scorer: give one with sample.with_\(scorer=f\)"
    ):
        Sample("a cat", IMAGE).score(VIDEO)


def test_a_video_of_another_size_is_refused_with_both_sizes():
    sample = Sample("a cat", IMAGE, scorer=count_frames)
    with pytest.raises(TaskError, match=r"is \(32, 48\) pixels \(height, width\), the video \(48, 32\)"):
        sample.score(VIDEO.transpose(0, 2, 1, 3))


def test_frames_come_from_arrays_and_images_of_any_mode():
    assert as_frames(VIDEO) is VIDEO
    np.testing.assert_array_equal(as_frames([Image.fromarray(f) for f in VIDEO]), VIDEO)
    np.testing.assert_array_equal(as_frames(tuple(VIDEO)), VIDEO)
    grey = as_frames([IMAGE.convert("L"), IMAGE.convert("RGBA")])
    assert grey.shape == (2, 32, 48, 3)
    assert grey[1, 0, 0].tolist() == [10, 20, 30]


@pytest.mark.parametrize(
    "video, said",
    [
        (VIDEO / 255, "float64 with shape (3, 32, 48, 3)"),
        (VIDEO.astype(np.int64), "int64"),
        (VIDEO[0], "uint8 with shape (32, 48, 3)"),
        (VIDEO[None], "uint8 with shape (1, 3, 32, 48, 3)"),
        (VIDEO[..., :2], "uint8 with shape (3, 32, 48, 2)"),
        (VIDEO[:0], "at least one frame; this is uint8 with shape (0, 32, 48, 3)"),
        ([], "at least one frame"),
        ([VIDEO[0], VIDEO[0, :8]], "several shapes, [(8, 48, 3), (32, 48, 3)]"),
        (None, "object with shape ()"),
    ],
)
def test_what_is_no_video_is_refused_with_what_it_is(video, said):
    with pytest.raises(TaskError) as error:
        as_frames(video)
    assert said in str(error.value)


ODD_SCORES = {
    "nothing": None,
    "a tuple": (True, 1.0, "a"),
    "solved is nothing": Score(None, 0.1, "x"),
    "solved is NaN": Score(float("nan"), 0.5, "x"),
    "solved is an array": Score(np.array([True]), 0.5, "x"),
    "solved is a number": Score(1, 1.0, "x"),
    "score is nothing": Score(True, None, "x"),
    "score is NaN": Score(False, float("nan"), "x"),
    "score is an infinity": Score(False, float("inf"), "x"),
    "score is above 1": Score(True, 1.5, "x"),
    "score is below 0": Score(False, -0.1, "x"),
    "score is an array": Score(True, np.array([0.5]), "x"),
    "score is a text": Score(True, "0.5", "x"),
    "answer is nothing": Score(False, 0.0, None),
    "answer is a number": Score(False, 0.0, 3),
}


@pytest.mark.parametrize("kind", ODD_SCORES)
def test_what_a_scorer_returns_is_checked(kind):
    def odd(video):
        return ODD_SCORES[kind]

    sample = Sample("x", size=(16, 16), task="mine", id="7", scorer=odd)
    with pytest.raises(TaskError, match=r"Sample mine/7: its scorer '.*odd' returned (Score|None|\()"):
        sample.score(np.zeros((3, 16, 16, 3), np.uint8))


@pytest.mark.parametrize("right", [Score(np.bool_(True), np.float32(1), "a"), Score(False, 0, np.str_("b"))])
def test_a_score_may_be_made_of_numpy(right):
    sample = Sample("x", size=(16, 16), scorer=lambda video: right)
    assert sample.score(np.zeros((3, 16, 16, 3), np.uint8)) is right
