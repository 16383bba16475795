"""A probe finds what is there, and its baselines say what is found where nothing is."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dit_lens.analysis import probe
from dit_lens.analysis.probe import SHRINKAGE, common, fit_probe, pick, shuffle


def planted(strength, runs=150, choices=3, channels=40, seed=0):
    """Make states [run][choice, channel] of which one choice, at random, stands out along a direction."""
    rng = np.random.default_rng(seed)
    direction = rng.standard_normal(channels)
    right = rng.integers(choices, size=runs)
    labels = [np.arange(choices) == k for k in right]
    states = rng.standard_normal((runs, choices, channels)) * np.linspace(1, 30, channels) + 5
    return states + strength * np.array(labels)[..., None] * direction, labels


def right(fitted, states, labels):
    weight, bias = fitted
    return np.mean(
        [
            (pick((h @ weight.T + bias)[:, 0], True) == one).all()
            for h, one in zip(states, labels, strict=True)
        ]
    )


def fit(states, labels):
    return fit_probe(np.concatenate(states), np.concatenate(labels)[:, None])


def test_odds_are_those_of_the_pipeline_that_a_user_would_write():
    states, labels = planted(2.0)
    h, y = np.concatenate(states), np.concatenate(labels)
    weight, bias = fit_probe(h, y[:, None])
    theirs = make_pipeline(StandardScaler(), LogisticRegression(C=SHRINKAGE, max_iter=2000)).fit(h, y)
    np.testing.assert_allclose((h @ weight.T + bias)[:, 0], theirs.decision_function(h), atol=1e-3)


def test_a_planted_direction_is_found_on_other_runs_and_shuffled_labels_find_chance():
    states, labels = planted(4.0, runs=900)
    rng = np.random.default_rng(1)
    assert right(fit(states[:300], labels[:300]), states[300:], labels[300:]) > 0.8
    nulls = [
        right(fit(states[:300], shuffle(labels[:300], rng, within=True)), states[300:], labels[300:])
        for _ in range(5)
    ]
    assert np.mean(nulls) == pytest.approx(1 / 3, abs=0.08)
    nothing, labels = planted(0.0, runs=900)
    assert right(fit(nothing[:300], labels[:300]), nothing[300:], labels[300:]) == pytest.approx(
        1 / 3, abs=0.06
    )


def test_shuffling_keeps_what_is_to_be_kept():
    labels = [np.arange(k) == 0 for k in (2, 3, 4)]
    rng = np.random.default_rng(0)
    assert [one.sum() for one in shuffle(labels, rng, within=True)] == [1, 1, 1]
    assert sorted(len(one) for one in shuffle(labels, rng, within=False)) == [2, 3, 4]


def test_the_most_common_answer_is_that_of_the_places():
    labels = [
        np.array(one) for one in ([True, False], [False, True, False], [False, True, False], [False, True])
    ]
    odds = common(labels)
    np.testing.assert_allclose(odds, [-0.25, 0.25, -0.5])
    assert pick(odds[:2], True).tolist() == [False, True] and pick(odds, False).tolist() == [
        False,
        True,
        False,
    ]


def test_a_choice_that_is_always_or_never_right_needs_no_state():
    states = np.random.default_rng(0).standard_normal((20, 4))
    weight, bias = fit_probe(states, np.array([[True, False]] * 20))
    assert not weight.any() and bias.tolist() == [1, -1]


def test_scenes_are_read_by_probes_that_did_not_see_them():
    """Planted: a direction that all scenes share. Null: labels that each scene has to itself, by what marks the scene."""
    rng = np.random.default_rng(0)
    scene = np.repeat(np.arange(40), 6)
    marks = rng.standard_normal((40, 60))[scene] * 5
    labels = rng.random(240) < 0.2
    shared = marks + rng.standard_normal((240, 60)) * 0.1
    shared[:, 0] = 3 * labels + 0.1 * rng.standard_normal(240)
    odds, weight, bias = probe.held_out(shared, labels, scene % 4)
    assert ((odds > 0) == labels).mean() > 0.97 and weight.shape == (4, 60)
    assert np.allclose(odds, np.einsum("sc,sc->s", shared, weight[scene % 4]) + bias[scene % 4])
    own = (rng.random(40) < 0.5)[scene]  # a label for each scene: to be known by its marks alone
    odds, *_ = probe.held_out(marks, own, scene % 4)
    seen = probe.fit_probe(marks, own[:, None])
    assert ((marks @ seen[0][0] + seen[1][0] > 0) == own).mean() > 0.95 > 0.75 > ((odds > 0) == own).mean()


def test_recall_counts_both_labels_alike_and_chance_is_one_half():
    labels = np.array([[1, 0, 0, 0], [1, 1, 0, 1], [1, 1, 1, 0]], bool)
    counted = np.array([[1, 1, 1, 1], [1, 1, 1, 0], [0, 0, 0, 0]], bool)
    assert probe.recall(labels, labels, counted).tolist()[:2] == [1, 1]
    assert probe.recall(~labels, labels, counted).tolist()[:2] == [0, 0]
    for constant in (True, False):
        assert probe.recall(np.full((3, 4), constant), labels, counted).tolist()[:2] == [0.5, 0.5]
    assert np.isnan(probe.recall(labels, labels, counted)[2])
    two = probe.recall(np.stack([labels, ~labels]), labels, counted)
    assert two[:, :2].tolist() == [[1, 1], [0, 0]]
