"""Averages over seeds: what they cost, when they act, and what they are placed at."""

import pytest

import dit_lens as dl
from dit_lens.experiments.averages import Average, averages, intervals


def average(site):
    return Average(site, dl.mean_over_seeds(), site)


def test_the_papers_ensemble_costs_four_hundredths_of_a_run():
    assert average("block").cost([0], 50, 3) == pytest.approx(1.04)
    assert average("x0").cost([0, 1, 2, 3], 20, 3) == pytest.approx(1 + 2 * 4 / 20)
    assert average("x0").cost([3], 4, 3) == 3  # to the last step: all of them whole
    assert average("x0").cost([0], 20, 1) == 1


def test_runs_of_one_latents_are_one_from_there_on():
    assert average("latents").cost([0, 1, 2], 20, 3) == 1
    assert average("latents").cost([5, 6], 20, 3) == pytest.approx(1.5)


def test_intervals_go_from_the_first_step_down_to_a_noise_level_and_come_once():
    sigmas = [1.0, 0.9375, 0.8333333, 0.625]
    found = intervals([0], (0.95, 0.9, 0.8333333, 0.5), sigmas)
    assert found == {"0": [0], "0-1": [0, 1], "0-2": [0, 1, 2], "0-3": [0, 1, 2, 3]}
    assert list(intervals([2], (0.9,), sigmas)) == ["2", "0-1"]
    assert list(intervals([0, 2], (), sigmas)) == ["0,2"]


def test_a_placebo_of_states_stands_where_the_average_acts():
    states, medoid = averages(("states", "medoid"), "4-6", 10)
    assert states.averaged([0]).place == dl.at(site="block", layer="4-6", step=0)
    assert states.placebo([0]).place == dl.at(site="block", layer=4, step=0)
    assert states.placebo([0]).over_seeds and medoid.placebo([0]).over_seeds
    assert medoid.averaged([0, 1]).place == dl.at(site="x0", step="0-1")
    assert [a.name for a in averages(("states",), "each", 9)] == [
        "states, first third (0-2)",
        "states, middle third (3-5)",
        "states, last third (6-8)",
    ]
    with pytest.raises(dl.PlanError, match="--layers 20-29"):
        averages(("states",), "20-29", 16)
