"""Which channels are massive, and do they hold anything?

A few channels of a large transformer have values that are huge at every token, and carry most of the energy that maps show
(Sun et al. 2024, arXiv 2402.17762). For every layer and step of clean runs:

- how many channels are massive: mean absolute value over 100 times that of the median channel;
- for models that have none by this rule, what the `--k` largest channels carry: their share of the state's energy, and of its
  variance over tokens;
- what leaving them out changes: of the map of energy (correlation of the tokens' energy with and without them), and of how tokens
  are arranged (debiased CKA of the state with and without them); beside as many random channels.

Do they hold anything? At `--edit-layer`, at all steps and branches, some channels are set to their mean over the tokens, or to 0:

- largest: the k channels of the largest mean absolute value in that layer, over the steps of the pair's own clean run;
- same variance: for each of these another channel whose variance over tokens is nearest: an edit that moves the state as far;
- random: k others, `--random-sets` times. It moves the state less; the summary says by how much each edit does.

What comes out is compared with the clean run: score, and distance of the last latents.

    python analyses/massive_channels.py --task maze --samples 32 --out runs/massive_channels
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor

import dit_lens as dl
from dit_lens import analysis, plot
from dit_lens.analysis.cka_sampled import kernel_cka, sample_tokens, unit_kernel
from dit_lens.analysis.massive import (
    PROFILE,
    TIMES,
    channel_sizes,
    largest_channels,
    matched_channels,
    profile,
)
from dit_lens.engine.batch import Batch
from dit_lens.engine.outcomes import by_sample, outcomes
from dit_lens.engine.sweep import run_arms
from dit_lens.errors import DitLensError, TaskError
from dit_lens.experiments.clean_states import look_at_states
from dit_lens.experiments.cost import runs_of_arms
from dit_lens.experiments.options import StudyOptions
from dit_lens.experiments.outcomes import BOUNDS, OUTCOMES, family, headline
from dit_lens.experiments.pictures import choose
from dit_lens.experiments.samples import batch_of, pairs_of
from dit_lens.experiments.script import run_script
from dit_lens.experiments.study import Measured, study
from dit_lens.experiments.summary import write_summary
from dit_lens.models.options import Unset
from dit_lens.plan.plan import Placed

LARGEST, MATCHED, RANDOM = "largest", "same variance", "random"
"""Sets of channels; the random ones are numbered."""
WITHOUT = (LARGEST, RANDOM)
"""What is left out of a state."""
TEXT = np.dtypes.StringDType()


@dataclass
class Options(StudyOptions):
    """Find massive channels, and take away what they say."""

    k: int = 3
    """How many of a state's largest channels are looked at."""
    layers: str = "all"
    """Layers that are measured: all, auto (5 of them), or a list such as 0,4,9."""
    vis_steps: str = "all"
    """Steps that are measured: all, auto (5 of them), or a list such as 0,5,19."""
    cka_tokens: int = 2048
    """Tokens of a state that CKA compares, at most: drawn by --draw, the same ones everywhere."""
    edit_layer: Unset[int] = None
    """Layer whose channels are edited. Default: the middle one."""
    to: tuple[Literal["mean", "0"], ...] = ("mean", "0")
    """What the channels are set to: their mean over the tokens, or 0. The primary outcome takes the mean."""
    random_sets: int = 3
    """How many random sets of channels are edited, drawn by --draw for each sample."""
    out: Path = Path("runs/massive_channels")


def main(options: Options) -> int:
    """Measure clean runs, edit channels, compare, draw, save."""
    if options.k < 1 or options.random_sets < 1:
        raise TaskError(f"--k {options.k} --random-sets {options.random_sets}: give 1 or more of each.")
    if len(set(options.to)) < len(options.to):
        raise TaskError(f"--to {' '.join(options.to)}: give each value once.")
    lens = options.load()
    if not 0 <= layer_of(lens, options) < lens.layers:
        raise TaskError(f"--edit-layer {options.edit_layer}: there are the layers 0 to {lens.layers - 1}.")
    channels = lens.family.anatomy.channels(next(iter(lens.dits.values())))
    if 3 * options.k > channels:
        raise TaskError(
            f"--k {options.k}: a state has {channels} channels, and sets of others are compared; take {channels // 3} at most."
        )
    measured = study(
        options,
        "massive_channels",
        lens,
        lambda part: measure(lens, part, options),
        runs=lambda b: cost(b, lens, options),
    )
    conclude(measured, options)
    return measured.exit_code


def layer_of(lens: dl.Lens, options: Options) -> int:
    """Return the layer whose channels are edited."""
    return lens.layers // 2 if options.edit_layer is None else options.edit_layer


def sets_of(options: Options) -> list[str]:
    """Return the names of the sets of channels."""
    return [LARGEST, MATCHED, *(f"{RANDOM} {n + 1}" for n in range(options.random_sets))]


def cost(batch: Batch, lens: dl.Lens, options: Options) -> float:
    """Return how many whole runs there are of a pair: one to find the channels, the clean one, and one for each edit."""
    edit = settle([0], options.to[0], layer_of(lens, options))
    return 1 + runs_of_arms(batch, [[edit]] * (len(sets_of(options)) * len(options.to)))


def measure(lens: dl.Lens, samples: list[dl.Sample], options: Options) -> xr.Dataset:
    """Look at the channels of every pair's clean run, and edit some of them."""
    pairs = pairs_of(samples, options)
    batch = batch_of(lens, pairs, options)
    states = States(batch, lens, options)
    look_at_states(batch, list(range(batch.steps)), states.watched, states.look)
    sets = [states.sets(pair) for pair in range(len(pairs))]
    layer, names = layer_of(lens, options), sets_of(options)

    def arm(name: str, to: str) -> Any:
        return lambda pair: [settle(sets[pair][name], to, layer)]

    arms = [(name, to) for to in options.to for name in names]
    clean, ended = run_arms(batch, [arm(name, to) for name, to in arms], progress="edits")
    judged = outcomes(batch, torch.cat([ended, clean[None]]), clean).drop_vars("answer", errors="ignore")
    shape = len(options.to), len(names), len(pairs)
    data = states.dataset()
    for name, values in judged.items():
        data[f"edited_{name}"] = (("to", "set", "pair"), values.values[:-1].reshape(shape))
        data[f"clean_{name}"] = ("pair", values.values[-1])
    data["chosen"] = (("set", "pair", "rank"), [[one[name] for one in sets] for name in names])
    taken = [
        [[states.taken(pair, sets[pair][name], to) for pair in range(len(pairs))] for name in names]
        for to in options.to
    ]
    data["taken"] = (("to", "set", "pair"), taken)
    coords = {"to": np.array(options.to, TEXT), "set": np.array(names, TEXT), "edit_layer": layer}
    return by_sample(data.assign_coords(coords), pairs)


class States:
    """What is measured of the channels of clean runs.

    Args:
        batch: the pairs.
        lens: the model.
        options: of the script.
    """

    def __init__(self, batch: Batch, lens: dl.Lens, options: Options) -> None:
        self.batch, self.options, self.edited = batch, options, layer_of(lens, options)
        self.steps = choose(options.vis_steps, batch.steps, "vis-steps")
        self.layers = choose(options.layers, lens.layers, "layers")
        self.watched = sorted({*self.layers, self.edited})
        self.tokens = sample_tokens(int(np.prod(batch.grid)), options.cka_tokens, options.draw)
        channels = lens.family.anatomy.channels(next(iter(lens.dits.values())))
        rows, branches = len(batch.pairs), len(batch.layout.branches)
        self.sums = np.zeros((rows, 3, channels))
        shape = rows, len(self.steps), branches, len(self.layers)
        self.profiles = np.full((*shape, len(PROFILE)), np.nan)
        self.without = np.full((*shape, len(WITHOUT), 2), np.nan)

    def look(self, row: int, at: tuple[int, int, int], tokens: Tensor) -> None:
        """Measure a state: for the edits, where it is of the edited layer; for the maps, where it is asked for."""
        step, branch, layer = at[0], at[1], self.watched[at[2]]
        is_mapped = step in self.steps and layer in self.layers
        if not is_mapped and layer != self.edited:
            return
        sizes = channel_sizes(tokens)
        if layer == self.edited:
            self.sums[row] += sizes
        if is_mapped:
            place = row, self.steps.index(step), branch, self.layers.index(layer)
            self.profiles[place] = profile(sizes, self.options.k)
            largest = largest_channels(sizes[0], self.options.k).tolist()
            sets = largest, self.others(row, largest, 0)
            self.without[place] = [self.left(tokens, channels) for channels in sets]

    def left(self, tokens: Tensor, channels: list[int]) -> tuple[float, float]:
        """Return how alike a state and what is left of it without some channels are: correlation of energy, and CKA.

        NaN where all tokens are alike, as neither is defined there.
        """
        less = tokens.clone()
        less[:, channels] = 0
        energy = torch.stack([x.norm(dim=1, dtype=torch.float64) for x in (tokens, less)])
        varies = bool((energy.amax(1) - energy.amin(1) > 1e-9 * energy.amax(1)).all())
        same_map = float(torch.corrcoef(energy)[0, 1]) if varies else float("nan")
        try:
            return same_map, kernel_cka(*(unit_kernel(x, self.tokens) for x in (tokens, less)))
        except DitLensError:
            return same_map, float("nan")

    def others(self, row: int, channels: Sequence[int], number: int) -> list[int]:
        """Draw as many channels that are none of these: the same ones for a pair, whatever else is measured."""
        rng = np.random.default_rng([self.options.draw, self.batch.pairs[row][1], number])
        left = np.setdiff1d(np.arange(self.sums.shape[-1]), channels)
        return sorted(int(c) for c in rng.choice(left, len(channels), replace=False))

    def sets(self, row: int) -> dict[str, list[int]]:
        """Return the channels of a pair that are edited, by the name of their set."""
        size, _, variance = self.sums[row]
        largest = largest_channels(size, self.options.k).tolist()
        sets = {LARGEST: largest, MATCHED: matched_channels(variance, largest)}
        drawn = {
            f"{RANDOM} {n + 1}": self.others(row, largest, n + 1) for n in range(self.options.random_sets)
        }
        return sets | drawn

    def taken(self, row: int, channels: Sequence[int], to: str) -> float:
        """Return how far an edit moves the states of a clean run, relative to their norm (root mean square over steps)."""
        _, energy, variance = self.sums[row]
        gone = variance if to == "mean" else energy
        return float((gone[list(channels)].sum() / energy.sum()) ** 0.5)

    def dataset(self) -> xr.Dataset:
        """Return what was measured, by pair."""
        dims = ("pair", "step", "branch", "layer")
        data = {name: (dims, self.profiles[..., i]) for i, name in enumerate(PROFILE)}
        data |= {
            name: ((*dims, "without"), self.without[..., i]) for i, name in enumerate(("same_map", "cka"))
        }
        coords = {
            "step": self.steps,
            "layer": self.layers,
            "branch": np.array(self.batch.layout.branches, TEXT),
            "without": np.array(WITHOUT, TEXT),
            "sigma": ("step", [self.batch.sigmas[step] for step in self.steps]),
        }
        return xr.Dataset(data, coords)


def settle(channels: Sequence[int], to: str, layer: int) -> Placed:
    """Return an edit: some channels of what a block returns, at all steps and branches, become their token mean, or 0."""
    return Placed(set_channels(channels=tuple(channels), to=to), dl.at(layer=layer))


@dl.options
def set_channels(h: Tensor, at: dl.Spot, *, channels: tuple[int, ...], to: str) -> Tensor:
    """Set some channels of a value [frame, y, x, channel] to their mean over its tokens, or to 0."""
    out, chosen = h.clone(), list(channels)
    mean = h[..., chosen].mean((0, 1, 2), dtype=torch.promote_types(h.dtype, torch.float32))
    out[..., chosen] = mean.to(h.dtype) if to == "mean" else 0
    return out


# ---- what comes of it


def conclude(measured: Measured, options: Options) -> None:
    """Say what the largest channels carry, and what is lost without them; draw; save."""
    results = measured.results.isel(branch=0)
    summary: dict[str, Any] = {
        "samples": results.sizes["sample"],
        "seeds": results.sizes["seed"],
        "branch": str(results.branch.values),
        "k": options.k,
        "layer of the edits": int(results.edit_layer),
    }
    if results.sizes["sample"] < 2:
        summary["not measured"] = "one sample is left, and an interval needs 2"
        return write_summary(options, summary, measured.left_out)
    summary |= of_edits(results, options) | of_states(results)
    distance = analysis.mean(results.edited_distance, bounds=BOUNDS["distance"])
    write_summary(options, summary, measured.left_out, distance.attrs)
    draw_states(results, options)
    draw_edits(results, options)


def of_edits(results: xr.Dataset, options: Options) -> dict[str, Any]:
    """Compare the edits with the clean run and with each other."""
    random = results.set.str.startswith(RANDOM).values
    out: dict[str, Any] = {}
    for to in options.to:
        at = results.sel(to=to, drop=True)
        for name in [n for n in OUTCOMES if f"clean_{n}" in results]:
            edited, bounds = at[f"edited_{name}"].astype(float), BOUNDS[name]
            placebo = edited.isel(set=random).mean("set")
            largest, matched = (edited.sel(set=one, drop=True) for one in (LARGEST, MATCHED))
            words = f"{name}, channels set to {to}"
            out[f"{words}: largest minus random"] = headline(analysis.effect(largest, placebo, bounds=bounds))
            out[f"{words}: largest minus same variance"] = headline(
                analysis.effect(largest, matched, bounds=bounds)
            )
            out[f"{words}, by set"] = headline(analysis.mean(edited, bounds=bounds))
            if name != "distance":
                clean = at[f"clean_{name}"].astype(float)
                out[f"{words}, minus the clean run, by set"] = headline(
                    analysis.effect(edited, clean, bounds=bounds)
                )
        out[f"how far the state is moved, channels set to {to}, by set"] = headline(analysis.mean(at.taken))
    largest_sets = results.chosen.sel(set=LARGEST).values.reshape(-1, options.k).tolist()
    shared = [len({*chosen} & {*largest_sets[0]}) / options.k for chosen in largest_sets]
    out["largest channels of the first run"] = largest_sets[0]
    out["share of a run's largest channels that are also the first run's"] = float(np.mean(shared))
    return out


def of_states(results: xr.Dataset) -> dict[str, Any]:
    """Say by layer, over the steps, what the largest channels carry, and what is left of a state without them."""
    out: dict[str, Any] = {
        f"massive channels (over {TIMES:g} times the median), most in a state": int(results.massive.max()),
        "largest channel, times the median, by layer": by_layer(results.largest_to_median),
    }
    words = {"energy_share": "share of the energy", "variance_share": "share of the variance over tokens"}
    for name, text in words.items():
        out[f"{text} in the largest channels, by layer"] = by_layer(results[name])
    for name, text in {"same_map": "correlation of the energy of tokens", "cka": "CKA"}.items():
        for which in WITHOUT:
            found = by_layer(results[name].sel(without=which, drop=True))
            out[f"{text}, with and without the {which} channels, by layer"] = found
    return out


def by_layer(values: xr.DataArray) -> Any:
    """Return the mean over steps by layer, with a band over the layers, of the samples that were measured everywhere."""
    whole = np.isfinite(values).all([d for d in values.dims if d != "sample"]).values
    if whole.sum() < 2:
        return {
            "not measured": f"{int(whole.sum())} samples have finite values everywhere, and an interval needs 2"
        }
    means = values.isel(sample=whole).mean("step")
    rows = headline(analysis.mean(means, along="layer", bounds=BOUNDS["distance"]))
    left_out = int((~whole).sum())
    return {"samples without a finite value, left out": left_out, "by layer": rows} if left_out else rows


def draw_states(results: xr.Dataset, options: Options) -> None:
    """Draw what the largest channels carry, and what is left of a state without them, by layer and step."""
    shares = {"energy": results.energy_share, "variance over tokens": results.variance_share}
    left = {
        f"{text}, {which}": results[name].sel(without=which, drop=True)
        for name, text in (("same_map", "map of energy (correlation)"), ("cka", "CKA"))
        for which in WITHOUT
    }
    source = f"{options.source}, {results.sizes['sample']} samples"
    for file, panels, label, title in (
        ("shares", shares, "share", f"What the {options.k} largest channels carry · {source}"),
        ("without", left, "with against without", f"A state without {options.k} channels · {source}"),
    ):
        maps = {name: v.mean(("sample", "seed")).transpose("layer", "step") for name, v in panels.items()}
        stacked = xr.concat(
            [m.rename(file) for m in maps.values()], xr.Variable("of", np.array(list(maps), TEXT))
        )
        plot.save(
            plot.heatmap(stacked, value_label=label, title=title),
            options.out / f"{file}_by_layer_and_step.png",
        )


def draw_edits(results: xr.Dataset, options: Options) -> None:
    """Draw the outcomes of the edits by set of channels, beside the clean run."""
    for name in [n for n in OUTCOMES if f"clean_{n}" in results]:
        bounds = BOUNDS[name]
        edited = results[f"edited_{name}"].astype(float)
        lines = {
            f"set to {to}": analysis.mean(edited.sel(to=to, drop=True), bounds=bounds) for to in options.to
        }
        clean = analysis.mean(results[f"clean_{name}"].astype(float), bounds=bounds)
        figure = plot.curves(
            family("edit", lines),
            "set",
            value_label=OUTCOMES[name],
            title=f"{options.k} channels of one layer edited · {options.source}",
            reference=clean,
            marks=True,
        )
        plot.save(figure, options.out / f"{name}_by_set.png")


if __name__ == "__main__":
    run_script(main, Options)
