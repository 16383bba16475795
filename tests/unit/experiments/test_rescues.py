"""Runs taken up again: where they go on from, what they cost, and which of several tries is picked."""

import numpy as np
import pytest
import torch

import dit_lens as dl
from dit_lens.experiments import rescues
from dit_lens.experiments.picks import agreed, sharpness
from dit_lens.experiments.rescues import Way, other_noise, rerun, runs_of_ways, until_used_up


@pytest.fixture(scope="module")
def lens():
    return dl.load("organism-v1")  # the smallest


@pytest.fixture(scope="module")
def batch(lens):
    return lens.batch([(dl.tasks.choose(1_000_000 + n), 0) for n in range(2)], steps=4)


@pytest.fixture(scope="module")
def ended(batch):
    return from_step(batch, batch.noise, 0)


def from_step(batch, x, first):
    for step in range(first, batch.steps):
        x = batch.step(step, x).latents
    return x


def test_a_rescue_goes_on_from_where_it_says(batch, ended):
    noise = other_noise(batch)
    assert not torch.equal(noise, batch.noise) and torch.equal(noise, other_noise(batch))
    # Its own noise from the start, nothing held: the run itself.
    torch.testing.assert_close(rerun(batch, batch.noise, noise, ended, 0, 0), ended)
    # From other noise: what a loop from there gives.
    torch.testing.assert_close(rerun(batch, noise, noise, ended, 0, 0), from_step(batch, noise, 0))
    # Back to step 2: between the end and the noise, and two steps more.
    between = (1 - batch.sigmas[2]) * ended + batch.sigmas[2] * noise
    torch.testing.assert_close(rerun(batch, noise, noise, ended, 2, 0), from_step(batch, between, 2))
    held = rerun(batch, noise, noise, ended, 0, 2)
    assert torch.equal(held[:, :, :2], ended[:, :, :2])
    assert not torch.allclose(held[:, :, 2:], ended[:, :, 2:], atol=1e-2)


def test_every_try_has_noise_of_its_own(batch):
    drawn = [other_noise(batch, number) for number in range(3)]
    assert all(not torch.equal(a, b) for a in drawn for b in drawn if a is not b)


@pytest.mark.parametrize(
    "first, total, tries",
    [(10, 20, (10, 10)), (13, 20, (13, 13, 14)), (1, 20, (1, 19)), (19, 20, (19,) * 20), (7, 20, (7, 13))],
)
def test_tries_take_as_many_steps_as_one_run_never_more_or_less(first, total, tries):
    assert until_used_up(first, total) == tries
    assert Way("", tries).steps(total) == total


def test_ways_at_equal_compute_count_the_same_forwards(batch, ended):
    ways = [Way("over", (0,)), Way("back", (3,)), Way("again", until_used_up(3, 4)), Way("held", (0,), 2)]
    found = rescues.rescues(batch, ended, ways)
    assert found.cost.values.tolist() == [1, 0.25, 1, 1] and found.nfe.values.tolist() == [4, 1, 4, 4]
    assert runs_of_ways(ways, 4) == 3  # what goes back once is the first of the tries


def test_forwards_are_those_that_the_model_makes(batch, ended, monkeypatch):
    count, step = [], type(batch).step
    monkeypatch.setattr(type(batch), "step", lambda self, *a, **k: (count.append(1), step(self, *a, **k))[1])
    ways = [Way("again", until_used_up(1, 4)), Way("held", (0,), 2)]
    found = rescues.rescues(batch, ended, ways)
    assert len(count) == int(found.nfe.sum()) == 8


def test_a_pick_is_the_most_frequent_answer_and_the_sharpest_of_these():
    assert agreed(["b", "a", "a", "c"], [9.0, 1.0, 2.0, 9.0]) == 2
    assert agreed(["b", "a"], [1.0, 2.0]) == 1 and agreed(["b", "a"]) == 0
    assert agreed(["c", "a", "b", "b", "a"]) == 1


def test_the_pick_decides_whether_a_run_is_rescued_and_no_verdict_does(lens, batch, ended, monkeypatch):
    """Of three tries of the first scene two show nothing: agreement takes that, though the third one is right; and so on."""
    truths = [sample.truth for sample, _ in batch.pairs]
    right, nothing = (
        torch.stack([lens.encode(video).permute(3, 0, 1, 2) for video in videos])
        for videos in (truths, [np.repeat(truth[:1], len(truth), 0) for truth in truths])
    )
    tries = iter([torch.stack([nothing[0], right[1]])] * 2 + [torch.stack([right[0], nothing[1]])])
    monkeypatch.setattr(rescues, "rerun", lambda *_: next(tries))
    found = rescues.rescues(batch, ended, [Way("again", (2, 2, 3))])
    assert found.rescued.values.tolist() == [[False, True]]


def test_a_blurred_last_frame_is_less_sharp(batch, ended):
    blurred = ended.clone()
    blurred[1] = blurred[1] * 0.2
    sharp, dull = sharpness(batch, ended), sharpness(batch, blurred)
    assert sharp[0] == dull[0] and dull[1] < sharp[1]
