"""Commitment per frame: where the agent is seen, and a slope that is planted."""

import numpy as np
import pytest
import xarray as xr

import frame_commitment
from dit_lens import tasks
from dit_lens.tasks.canvas import EVAL_SEED


@pytest.mark.parametrize("task, options", frame_commitment.TASKS.items())
def test_the_agent_is_seen_where_the_right_video_has_it(task, options):
    for seed in range(EVAL_SEED, EVAL_SEED + 4):
        sample = tasks.make(task, seed, **options)
        places = frame_commitment.places(sample.truth, sample)
        for place, mask in zip(places, sample.masks["agent"], strict=True):
            rows, columns = np.nonzero(mask)
            middle = (rows.mean() + 0.5) / 16, (columns.mean() + 0.5) / 16
            assert place and all(
                abs(int(n) + 0.5 - m) < 0.6 for n, m in zip(place.split(), middle, strict=True)
            )


def test_a_frame_without_one_agent_has_no_place():
    sample = tasks.arrows(EVAL_SEED, depth=4)
    blank, doubled = np.full_like(sample.truth, 240), np.minimum(sample.truth, sample.truth[::-1])
    assert set(frame_commitment.places(blank, sample)) == {""}
    assert frame_commitment.places(doubled, sample)[0] == ""


@pytest.mark.parametrize("slope", [0.0, 0.5, -0.25])
def test_a_planted_slope_is_found(slope):
    frames = np.arange(25)
    noise = np.random.default_rng(0).normal(0, 0.5, (40, 25))
    settled = xr.DataArray(8 + slope * frames + noise, dims=("sample", "frame"), coords={"frame": frames})
    settled[0, 3:] = np.nan  # a run in which the agent is seldom seen
    found = frame_commitment.summary(settled)
    assert (found["runs"], found["n"]) == (40, 39)
    low, high = found["interval"]
    assert low <= slope * 24 <= high and high - low < 1
