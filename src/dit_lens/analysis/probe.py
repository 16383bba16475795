"""Linear probes: can a state's meaning be read along one direction per choice, and better than by chance?

A probe is logistic regression with strong shrinkage, one choice against the rest, on standardised channels. What it
is worth is told by two baselines: the same fit on shuffled labels (what that many channels fit by chance), and the
most common answer (what is known without looking at the state).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

SHRINKAGE = 0.01
"""scikit-learn's C: a few hundred states, as many channels."""


def fit_probe(states: NDArray[Any], labels: NDArray[np.bool_], balanced: bool = False) -> tuple[Array, Array]:
    """Fit a linear probe for each choice.

    Args:
        states: [state, channel].
        labels: [state, choice], bool.
        balanced: let states with the label and those without it weigh the same together, however many they are.

    Returns:
        weight [choice, channel] and bias [choice]: `states @ weight.T + bias` are log odds. A choice that all states
        or none are labelled with has no weight; its bias says which.
    """
    from sklearn.linear_model import LogisticRegression

    mean, spread = states.mean(0), states.std(0)
    scale = np.where(spread > 0, spread, 1)
    scaled = (states - mean) / scale
    weight, bias = np.zeros((labels.shape[1], states.shape[1])), np.zeros(labels.shape[1])
    for k, wanted in enumerate(labels.T):
        if wanted.all() or not wanted.any():
            bias[k] = 1.0 if wanted.all() else -1.0
            continue
        weights = "balanced" if balanced else None
        classifier = LogisticRegression(C=SHRINKAGE, max_iter=2000, class_weight=weights).fit(scaled, wanted)
        weight[k] = classifier.coef_[0] / scale
        bias[k] = classifier.intercept_[0] - weight[k] @ mean
    return weight, bias


def pick(odds: NDArray[Any], one: bool) -> NDArray[np.bool_]:
    """Return what log odds [choice] pick: the largest of them where exactly one is right, else all above 0."""
    return np.arange(len(odds)) == odds.argmax() if one else odds > 0


def shuffle(
    labels: list[NDArray[np.bool_]], rng: np.random.Generator, within: bool
) -> list[NDArray[np.bool_]]:
    """Shuffle labels [run][choice]: among the choices of each run, or among runs."""
    if within:
        return [rng.permutation(one) for one in labels]
    return [labels[i] for i in rng.permutation(len(labels))]


def common(labels: list[NDArray[np.bool_]]) -> Array:
    """Return how much more often than not each choice [choice] is picked, by its place in the list.

    `pick` of it, cut to a run's number of choices, is the best answer that does not depend on the state.
    """
    most = max(map(len, labels))
    taken = [[one[k] for one in labels if k < len(one)] for k in range(most)]
    return np.array([np.mean(picked) - 0.5 for picked in taken])


def held_out(
    states: NDArray[Any], labels: NDArray[np.bool_], folds: NDArray[np.int_]
) -> tuple[Array, Array, Array]:
    """Read every state by a balanced probe that was fitted on the states of other folds.

    Args:
        states: [state, channel].
        labels: [state], bool.
        folds: [state], from 0 on; states of one scene are in one fold, or the probe may know the scene again.

    Returns:
        The log odds of each state, [state]; weight [fold, channel] and bias [fold] of the probe that reads each fold.
    """
    odds, weights, biases = np.zeros(len(states)), [], []
    for fold in range(int(folds.max()) + 1):
        here = folds == fold
        weight, bias = fit_probe(states[~here], labels[~here, None], balanced=True)
        odds[here] = states[here] @ weight[0] + bias[0]
        weights.append(weight[0])
        biases.append(bias[0])
    return odds, np.array(weights), np.array(biases)


def recall(said: NDArray[np.bool_], labels: NDArray[np.bool_], counted: NDArray[np.bool_]) -> Array:
    """Compute the balanced accuracy of each run: the mean, over the labels that it has, of how many are found.

    Where a run has both labels, whoever says the same of all its items gets 0.5.

    Args:
        said: [..., run, item], bool.
        labels: [..., run, item], bool.
        counted: [run, item], the items there are.

    Returns:
        [..., run]; NaN where a run has no items.
    """
    hit, shares = said == labels, []
    for label in (True, False):
        there = counted & (labels == label)
        number = np.broadcast_to(there, hit.shape).sum(-1)
        shares.append(np.where(number > 0, (hit & there).sum(-1) / np.maximum(number, 1), np.nan))
    present = (~np.isnan(shares)).sum(0)
    out: Array = np.where(present > 0, np.nansum(shares, 0) / np.maximum(present, 1), np.nan)
    return out
