"""Linear probes over a grid of layers and steps, beside what has to be beaten, each read on scenes that it was not fitted on.

A probe reads one token and says yes or no. Scenes of one picture are in one fold. Every run that has both answers counts; the
measure is balanced accuracy within a run, of which a constant answer gets one half.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dit_lens.analysis.probe import fit_probe, held_out, recall
from dit_lens.controls import shuffled_labels
from dit_lens.errors import TaskError
from dit_lens.experiments.token_states import FEATURES, NOT_ASKED

Array = NDArray[Any]
RUN = ("sample", "seed")
ROUNDING = 1e-7
"""Chances that are this near are equal."""
ACCURACIES = ("state", "state_control", "after_means", "after_probe")
DIRECTIONS = ("means", "probe", "control_means")
"""What is fitted at every layer and step. Where the means of a yes and a no are equal, no linear probe tells them apart better
than a constant does (Belrose et al. 2023, arXiv 2306.03819); the direction of one probe leaves others."""


@dataclass(frozen=True)
class Items:
    """The items of all runs that are probed, and what is asked of them.

    Attributes:
        counted: [run, item], whether there is such an item, in a run that has both answers.
        tasks: [task, run, item], bool: the labels, then those of each control task.
        folds: [run].
    """

    counted: NDArray[np.bool_]
    tasks: NDArray[np.bool_]
    folds: NDArray[np.int_]

    @classmethod
    def of(cls, read: xr.Dataset, folds: int, controls: int, seed: int) -> Items:
        """Sort what was read into folds of scenes, and draw the control tasks.

        Raises:
            TaskError: too few scenes have a run with both answers.
        """
        taken, place = (_by_run(read[name]) for name in ("taken", "place"))
        asked = place != NOT_ASKED
        yes, no = ((asked & (taken == label)).any(-1) for label in (1, 0))
        usable = yes & no & ~(asked & (taken == NOT_ASKED)).any(-1)
        pictures = _by_run(read.picture.broadcast_like(read.taken.isel(item=0)))
        known = len({*pictures[usable].tolist()})
        if known < 2 * folds:
            raise TaskError(
                f"{known} scenes have a run of which the answer can be read, with a yes and a no, and --folds {folds} takes "
                f"{2 * folds}: take more --samples or --steps, fewer --folds, or --label right."
            )
        counted = asked & usable[:, None]
        tasks = [np.where(counted, taken == 1, False)]
        for control in range(controls):
            drawn = np.zeros_like(tasks[0])
            drawn[counted] = shuffled_labels(tasks[0][counted], place[counted], seed=seed + control)
            tasks.append(drawn)
        return cls(counted, np.stack(tasks), folds_of(pictures, folds, seed))


def folds_of(pictures: Array, folds: int, seed: int) -> NDArray[np.int_]:
    """Return the fold of each run: runs of one picture are in one, drawn at random."""
    known, of_run = np.unique(pictures, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(known))
    out: NDArray[np.int_] = (order % folds)[of_run]
    return out


def _by_run(array: xr.DataArray) -> Array:
    """Return values as [run, ...], the seeds of a sample side by side."""
    values = array.transpose(*RUN, ...).to_numpy()
    return values.reshape(-1, *values.shape[2:])


def fit(read: xr.Dataset, folds: int, controls: int, seed: int) -> xr.Dataset:
    """Fit a probe at every layer and step, and to what it is compared with.

    Args:
        read: of all runs; see `read_tokens`.
        folds: of scenes.
        controls: how many control tasks are drawn (`dl.controls.shuffled_labels`: a random label for every place of a board).
        seed: of folds and control tasks.

    Returns:
        Balanced accuracy on scenes that were not fitted on, on [sample, seed] and more, NaN of runs that do not count: `state`,
        `state_control` [layer, step]; of a new probe, once a direction is taken away from all states, `after_means`,
        `after_probe` likewise; `input`, `latents`, `first_frame` and their `_control` by step; `ideal` [step]; `transfer`
        [layer, step, tested]. Directions, [fold, layer, step, channel], of the other folds: `means`, from the mean of a no to
        that of a yes; `probe`, weights; `control_means`, as `means` of the first control task. `fold` and `counted`, of runs.
    """
    items = Items.of(read, folds, controls, seed)
    shape = [read.sizes[dim] for dim in RUN]
    data = _of_states(items, read, shape)
    for name in [n for n in FEATURES if n != "state"]:
        found = [_Probe.of(items, _by_run(part), cut=False) for part in _by_step(read[name])]
        data[name] = _accuracies(np.array([one.state for one in found]), ["step"], shape)
        data[f"{name}_control"] = _accuracies(np.array([one.state_control for one in found]), ["step"], shape)
    data["ideal"] = _accuracies(_of_ideal(items, _by_run(read.ideal)), ["step"], shape)
    data["fold"] = (RUN, items.folds.reshape(shape))
    data["counted"] = (RUN, items.counted.any(-1).reshape(shape))
    coords = {n: read[n] for n in ("sample", "seed", "layer", "step", "sigma")}
    return xr.Dataset(data, {**coords, "tested": read.step.values})


def _of_states(items: Items, read: xr.Dataset, shape: list[int]) -> dict[str, Any]:
    """Fit a probe at every layer and step, and read each at the other steps."""
    grid: dict[str, list[list[Array]]] = {name: [] for name in (*ACCURACIES, *DIRECTIONS)}
    transfer = []
    for layer in read.layer.values:
        states = [_by_run(read.state.sel(layer=layer, step=step)) for step in read.step.values]
        probes = [_Probe.of(items, one) for one in states]
        for name in grid:
            grid[name].append([getattr(one, name) for one in probes])
        transfer.append([[one.on(items, other) for other in states] for one in probes])
    data: dict[str, Any] = {n: _accuracies(np.array(grid[n]), ["layer", "step"], shape) for n in ACCURACIES}
    data |= {n: (("layer", "step", "fold", "channel"), np.array(grid[n])) for n in DIRECTIONS}
    return data | {"transfer": _accuracies(np.array(transfer), ["layer", "step", "tested"], shape)}


def _by_step(values: xr.DataArray) -> list[xr.DataArray]:
    """Return values at each step; those that all steps have in common, once and again for each."""
    return [values.isel(step=n) for n in range(values.sizes["step"])] if "step" in values.dims else [values]


def _accuracies(values: Array, dims: list[str], shape: list[int]) -> tuple[list[str], Array]:
    """Return values [..., run] on sample and seed, of as many leading dimensions as there are."""
    if values.shape[0] == 1 and dims == ["step"]:
        return list(RUN), values[0].reshape(shape)
    return [*dims, *RUN], values.reshape(*values.shape[:-1], *shape)


def _of_ideal(items: Items, gained: Array) -> Array:
    """Return the balanced accuracy of the ideal denoiser, [step, run]; NaN where it is not known."""
    steps = np.moveaxis(gained, 1, 0)
    known = ~np.isnan(np.where(items.counted, steps, 0)).any(-1)
    found = recall(
        np.nan_to_num(steps) > ROUNDING, np.broadcast_to(items.tasks[0], steps.shape), items.counted
    )
    return np.where(known, found, np.nan)


@dataclass(frozen=True)
class _Probe:
    """Probes of one set of states, one a fold.

    Attributes:
        state: balanced accuracy, [run].
        state_control: the mean over control tasks.
        after_means: of new probes, once the difference of the means is taken away.
        after_probe: of new probes, once the direction of the first is taken away.
        means: [fold, channel].
        probe: [fold, channel], the weights.
        control_means: [fold, channel], of the first control task.
        bias: [fold].
    """

    state: Array
    state_control: Array
    after_means: Array
    after_probe: Array
    means: Array
    probe: Array
    control_means: Array
    bias: Array

    @classmethod
    def of(cls, items: Items, states: Array, cut: bool = True) -> _Probe:
        """Fit to states [run, item, channel]."""
        fits = [_held_out(items, states, labels) for labels in items.tasks]
        state, weight, bias = fits[0]
        control = np.mean([fit[0] for fit in fits[1:]], 0)
        means, control_means = (_means_apart(items, states, labels) for labels in items.tasks[:2])
        after = [_once_cut(items, states, along) if cut else state for along in (means, weight)]
        return cls(state, control, after[0], after[1], means, weight, control_means, bias)

    def on(self, items: Items, states: Array) -> Array:
        """Read other states, each by the probe that did not see its scene: balanced accuracy, [run]."""
        odds = np.einsum("ric,rc->ri", states, self.probe[items.folds]) + self.bias[items.folds][:, None]
        return recall(odds > 0, items.tasks[0], items.counted)


def _held_out(items: Items, states: Array, labels: NDArray[np.bool_]) -> tuple[Array, Array, Array]:
    """Fit probes; return balanced accuracy [run], weight [fold, channel] and bias [fold]."""
    folds = np.broadcast_to(items.folds[:, None], items.counted.shape)[items.counted]
    odds, weight, bias = held_out(states[items.counted].astype(np.float64), labels[items.counted], folds)
    said = np.zeros(items.counted.shape, bool)
    said[items.counted] = odds > 0
    return recall(said, labels, items.counted), weight, bias


def _means_apart(items: Items, states: Array, labels: NDArray[np.bool_]) -> Array:
    """Return the mean of a yes minus that of a no over the scenes of all other folds, [fold, channel]; 0 where one is missing."""
    out = np.zeros((items.folds.max() + 1, states.shape[-1]))
    for fold in range(len(out)):
        others = items.counted & (items.folds != fold)[:, None]
        yes, no = others & labels, others & ~labels
        if yes.any() and no.any():
            out[fold] = states[yes].mean(0, dtype=np.float64) - states[no].mean(0, dtype=np.float64)
    return out


def _once_cut(items: Items, states: Array, directions: Array) -> Array:
    """Fit probes again, once all states lack what they hold along the direction of a fold: balanced accuracy, [run]."""
    folds = np.broadcast_to(items.folds[:, None], items.counted.shape)[items.counted]
    flat, labels = states[items.counted].astype(np.float64), items.tasks[0][items.counted]
    odds = np.zeros(len(flat))
    for fold, along in enumerate(directions):
        unit, here = along / max(float(np.linalg.norm(along)), 1e-30), folds == fold
        left = flat - np.outer(flat @ unit, unit)
        again, bias = fit_probe(left[~here], labels[~here, None], balanced=True)
        odds[here] = left[here] @ again[0] + bias[0]
    said = np.zeros(items.counted.shape, bool)
    said[items.counted] = odds > 0
    return recall(said, items.tasks[0], items.counted)


__all__ = ["ACCURACIES", "DIRECTIONS", "Items", "fit", "folds_of"]
