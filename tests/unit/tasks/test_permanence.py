"""A right video hides the ball and brings the same one out; spoiled ones are seen as what they are."""

import numpy as np
import pytest

import dit_lens as dl
from dit_lens.tasks import canvas as cv
from dit_lens.tasks import occlude
from dit_lens.tasks.permanence import ball, hidden_frames, lanes, permanence

SEEDS = range(1_000_000, 1_000_024)


def repainted(sample, frames, colour=None, lane=None):
    """Paint another ball in some frames, at the place of the last frame."""
    video = sample.truth.copy()
    colour_of_it, (row, column) = ball(sample)
    for t in frames:
        canvas = video[t].astype(np.float32) / 255
        x, y = cv.centre((row, column))
        if t in frames and lane is not None:
            cv.rectangle(canvas, column * 16, 0, column * 16 + 16, 64, cv.FLOOR)
            y = (lane + 0.5) * 16
        cv.disc(canvas, x, y, 6, cv.BALLS[colour or colour_of_it])
        video[t] = (canvas * 255).round()
    return video


@pytest.mark.parametrize("seed", SEEDS)
def test_the_right_video_hides_the_ball_and_keeps_it(seed):
    sample = occlude(seed)
    seen = permanence(sample, sample.truth)
    assert seen.hidden < 0.01 and (seen.colour, seen.lane) == lanes(sample)
    assert hidden_frames(sample).tolist() == [4, 5, 6, 7, 8]


@pytest.mark.parametrize("seed", SEEDS[:6])
def test_another_ball_no_ball_and_one_that_shines_through_are_told(seed):
    sample = occlude(seed)
    colour, lane = lanes(sample)
    other = next(c for c in cv.BALLS if c != colour)
    assert permanence(sample, repainted(sample, range(9, 13), colour=other)).colour == other
    elsewhere = permanence(sample, repainted(sample, range(9, 13), lane=(int(lane) + 2) % 4))
    assert elsewhere.colour == colour and elsewhere.lane == str((int(lane) + 2) % 4)
    still = np.stack([sample.truth[6]] * 13)
    gone = permanence(sample, still)
    assert (gone.colour, gone.lane) == ("", "") and gone.hidden < 0.01
    shining = permanence(sample, np.stack([sample.truth[0]] * 13))
    assert shining.hidden == pytest.approx(0.95, abs=0.12) and shining.colour == ""
    grain = np.random.default_rng(0).normal(0, 12, still.shape)
    grainy = permanence(sample, (still + grain).clip(0, 255).astype(np.uint8))
    assert grainy.hidden < 0.02 and grainy.colour == ""


def test_other_tasks_and_lengths_are_refused():
    with pytest.raises(dl.TaskError, match="use occlude"):
        permanence(dl.tasks.circle(1), dl.tasks.circle(1).truth)
    with pytest.raises(dl.TaskError, match="4k"):
        permanence(occlude(1), occlude(1).truth[:9])
