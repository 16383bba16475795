"""Directions from one prompt to another one, fitted on runs that are none of those that are steered, and their placebos."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dit_lens import analysis, controls
from dit_lens.analysis.direction import How
from dit_lens.errors import DitLensError, TaskError
from dit_lens.experiments.couples import TWO_PROMPTS, Couple, Coupled, CoupleOptions, asked_both
from dit_lens.experiments.samples import batch_of, noise_seeds
from dit_lens.experiments.steps import clean_steps
from dit_lens.experiments.swaps import derangements
from dit_lens.experiments.token_questions import question_of
from dit_lens.experiments.token_states import refuse_other_tokens
from dit_lens.tasks.canvas import Cell
from dit_lens.tasks.pairs import Pair
from dit_lens.tasks.sample import Sample

if TYPE_CHECKING:
    from dit_lens.lens import Lens

Array = NDArray[Any]
DIRECTION, RANDOM, LAYER, SHUFFLED = "direction", "random direction", "another layer's", "shuffled labels"
KINDS = (DIRECTION, RANDOM, LAYER, SHUFFLED)
"""The direction, and placebos of its length: a random one, that of another layer, and one between prompts that were mixed up."""
OTHER_NOISE = 700_001
"""Added to a noise seed for the runs that a direction is fitted on, where there is one picture alone."""


def fit_pairs(options: CoupleOptions, drawn: Coupled, count: int) -> list[Pair]:
    """Return couples to fit a direction on, and a noise seed each: of training scenes, none of a picture that is steered.

    Of one picture of the user's: the couple itself, from other noise.

    Raises:
        TaskError: there are too few pictures.
    """
    tested = list(drawn)
    if options.image is not None:
        first = noise_seeds(tested[0], options)[0] + OTHER_NOISE
        return [(tested[0], first + n) for n in range(count)]
    taken = {np.asarray(sample.image).tobytes() for sample in tested}
    couples: list[Couple] = []
    for seed in range(20 * count + 100):
        couple = Couple.of(*asked_both(seed, options))
        picture = np.asarray(couple.image).tobytes()
        if picture not in taken:
            taken.add(picture)
            couples.append(couple)
        if len(couples) == count:
            return [(one, noise_seeds(one, options)[0]) for one in couples]
    raise TaskError(
        f"--fit {count}: only {len(couples)} pictures of {options.task} are none of the {len(tested)} that are steered; ask for "
        "fewer of both."
    )


def named_cells(sample: Sample) -> list[Cell]:
    """Return the cells of the objects that a prompt of `circle` names."""
    return sorted(question_of(TWO_PROMPTS).taken(sample, sample.answers[0].text) or ())


def mean_states(
    lens: Lens, pairs: Sequence[Pair], options: CoupleOptions, layers: Sequence[int], of_objects: bool
) -> xr.Dataset:
    """Run couples clean, and take mean states after the block, on the first branch, of both prompts from the same noise.

    Args:
        lens: the model.
        pairs: a couple and a noise seed each.
        options: of the script.
        layers: whose states are taken.
        of_objects: take the tokens of the objects that are named by one of the prompts, in all frames; else all tokens.

    Returns:
        `state` [side, sample, layer, step, channel]; of objects the side 0 is while the other prompt is asked, and 1 while it is
        that which names them, so that both are of the same objects; of all tokens 0 is of A, and 1 of B.
    """
    parts, take = [], _of_objects if of_objects else _of_all
    for start in range(0, len(pairs), options.block):
        couples = [(both_of(couple), seed) for couple, seed in pairs[start : start + options.block]]
        batch = batch_of(lens, [(sample, seed) for both, seed in couples for sample in both], options)
        if of_objects:
            refuse_other_tokens(batch, couples[0][0][0])
        places = [("block", batch.layout.branches[0], layer) for layer in layers]
        parts.append(
            [
                [
                    take(now.states[place].float().cpu().numpy(), [both for both, _ in couples])
                    for place in places
                ]
                for _, _, now in clean_steps(batch, places, "directions")
            ]
        )
    states = np.concatenate([np.array(part) for part in parts], 3)
    dims = ("step", "layer", "side", "sample", "channel")
    return xr.Dataset(
        {"state": (dims, states)},
        {"layer": list(layers), "step": range(batch.steps), "sigma": ("step", batch.sigmas)},
    )


def both_of(couple: Sample) -> tuple[Sample, Sample]:
    """Return A and B of a couple."""
    assert isinstance(couple, Couple)
    return couple.both


def _of_all(states: Array, couples: Sequence[tuple[Sample, Sample]]) -> Array:
    """Return the means over all tokens, [side, couple, channel], of rows A, B, A, B, ... [row, frame, y, x, channel]."""
    means = states.mean((1, 2, 3))
    return np.stack([means[0::2], means[1::2]])


def _of_objects(states: Array, couples: Sequence[tuple[Sample, Sample]]) -> Array:
    """Return the means over named objects, not asked for and asked for: [side, couple, channel]; see `mean_states`."""
    out = np.zeros((2, len(couples), states.shape[-1]))
    for n, both in enumerate(couples):
        cells = [tuple(np.transpose(named_cells(sample))) for sample in both]
        for side, of in ((0, cells[::-1]), (1, cells)):
            out[side, n] = np.mean(
                [states[2 * n + k][:, y, x].mean((0, 1)) for k, (y, x) in enumerate(of)], 0
            )
    return out


def directions_of(states: xr.DataArray, how: How, seed: int) -> xr.DataArray:
    """Return the direction from side 0 to side 1 and its placebos, all of one length at a layer and step.

    Args:
        states: [side, sample, layer, step, channel].
        how: see `analysis.direction`.
        seed: of what is random.

    Returns:
        [kind, layer, step, channel]; without `LAYER` where there is one layer, without `SHUFFLED` where samples do not differ.
    """
    a, b = states.isel(side=0), states.isel(side=1)
    found = analysis.direction(b, a, how=how).transpose("layer", "step", "channel")
    mixed = _mixed(a, b, seed)
    length = (found**2).sum("channel") ** 0.5

    def as_long(other: xr.DataArray) -> xr.DataArray:
        return other * length / (other**2).sum("channel") ** 0.5

    drawn = found.copy(data=controls.random_direction(found.values, seed=seed))
    every = {DIRECTION: found, RANDOM: drawn}
    with suppress(
        DitLensError
    ):  # where no two samples differ, prompts that are mixed up leave no direction at all
        every[SHUFFLED] = as_long(analysis.direction(*mixed, how=how).transpose(*found.dims))
    layers = list(range(found.sizes["layer"]))
    if orders := derangements(layers, 1, seed):
        every[LAYER] = as_long(found.isel(layer=orders[0]).assign_coords(layer=found.layer))
    kinds = [kind for kind in KINDS if kind in every]
    names = xr.Variable("kind", np.array(kinds, np.dtypes.StringDType()))
    return xr.concat([every[kind].drop_attrs() for kind in kinds], names, coords="minimal", compat="override")


def _mixed(a: xr.DataArray, b: xr.DataArray, seed: int) -> tuple[xr.DataArray, xr.DataArray]:
    """Return two kinds of states that mean nothing: each is a half of A's and a half of B's, drawn at random."""
    rng, half = np.random.default_rng(seed), a.sizes["sample"] // 2
    drawn = [states.isel(sample=rng.permutation(states.sizes["sample"])) for states in (a, b)]
    kinds = [
        xr.concat([one.isel(sample=slice(n * half, (n + 1) * half)) for one in drawn], "sample")
        for n in range(2)
    ]
    return kinds[0], kinds[1]


def agreement(states: xr.DataArray, how: How) -> xr.DataArray:
    """Return the cosine of the directions of two halves of the samples, [layer, step]: 1 is one direction, about 0 none."""
    halves = [states.isel(sample=slice(start, None, 2)) for start in range(2)]
    one, other = (analysis.direction(half.isel(side=1), half.isel(side=0), how=how) for half in halves)
    lengths = [(d**2).sum("channel") ** 0.5 for d in (one, other)]
    cosine: xr.DataArray = (one * other).sum("channel") / (lengths[0] * lengths[1])
    return cosine


__all__ = [
    "DIRECTION",
    "KINDS",
    "LAYER",
    "RANDOM",
    "SHUFFLED",
    "agreement",
    "directions_of",
    "fit_pairs",
    "mean_states",
]
