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
- same variance: for each of these another channel whose variance over tokens is nearest: set to its mean, it moves the state as
  far. Set to 0 it does not: that takes its mean away, too, and the means of the largest channels are larger;
- random: k others, `--random-sets` times. It moves the state less; the summary says by how much each edit does, under either.

What comes out is compared with the clean run: score, and distance of the last latents.

    python analyses/massive_channels.py --task maze --samples 32 --out runs/massive_channels
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr

import dit_lens as dl
from dit_lens import analysis, plot
from dit_lens.analysis.massive import (
    TIMES,
)
from dit_lens.analysis.statistics import NO_BOUNDS
from dit_lens.engine.batch import Batch
from dit_lens.engine.outcomes import by_sample, outcomes
from dit_lens.engine.sweep import run_arms
from dit_lens.errors import TaskError
from dit_lens.experiments.channel_states import (
    LARGEST,
    MATCHED,
    RANDOM,
    WITHOUT,
    ChannelStates,
    sets_of,
    settle,
)
from dit_lens.experiments.clean_states import look_at_states
from dit_lens.experiments.compared_tokens import refuse_few_tokens
from dit_lens.experiments.cost import runs_of_arms
from dit_lens.experiments.options import StudyOptions
from dit_lens.experiments.outcomes import BOUNDS, OUTCOMES, family, headline
from dit_lens.experiments.pictures import choose
from dit_lens.experiments.primary import primary_outcome
from dit_lens.experiments.samples import batch_of, pairs_of, steps_of
from dit_lens.experiments.script import run_script
from dit_lens.experiments.study import Measured, study
from dit_lens.experiments.summary import write_summary
from dit_lens.models.options import Unset

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
    refuse_few_tokens(options.cka_tokens)
    lens = options.load()
    choose(options.layers, lens.layers, "layers")
    choose(options.vis_steps, steps_of(options, lens), "vis-steps")
    if not 0 <= layer_of(lens, options) < lens.layers:
        raise TaskError(f"--edit-layer {options.edit_layer}: there are the layers 0 to {lens.layers - 1}.")
    channels = channels_of(lens)
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


def channels_of(lens: dl.Lens) -> int:
    """Return how many channels a state has."""
    return lens.family.anatomy.channels(next(iter(lens.dits.values())))


def layer_of(lens: dl.Lens, options: Options) -> int:
    """Return the layer whose channels are edited."""
    return lens.layers // 2 if options.edit_layer is None else options.edit_layer


def cost(batch: Batch, lens: dl.Lens, options: Options) -> float:
    """Return how many whole runs there are of a pair: one to find the channels, the clean one, and one for each edit."""
    edit = settle([0], options.to[0], layer_of(lens, options))
    return 1 + runs_of_arms(batch, [[edit]] * (len(sets_of(options.random_sets)) * len(options.to)))


def measure(lens: dl.Lens, samples: list[dl.Sample], options: Options) -> xr.Dataset:
    """Look at the channels of every pair's clean run, and edit some of them."""
    pairs = pairs_of(samples, options)
    batch = batch_of(lens, pairs, options)
    states = ChannelStates(
        batch,
        channels_of(lens),
        steps=choose(options.vis_steps, batch.steps, "vis-steps"),
        layers=choose(options.layers, lens.layers, "layers"),
        edited=layer_of(lens, options),
        k=options.k,
        tokens=options.cka_tokens,
        draw=options.draw,
    )
    look_at_states(batch, list(range(batch.steps)), states.watched, states.look)
    sets = [states.sets(pair, options.random_sets) for pair in range(len(pairs))]
    layer, names = layer_of(lens, options), sets_of(options.random_sets)

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
            find = partial(analysis.effect, largest, placebo, bounds=bounds)
            is_primary = name == "distance" and to == "mean"
            out[f"{words}: largest minus random"] = primary_outcome(find) if is_primary else headline(find())
            out[f"{words}: largest minus same variance"] = headline(
                analysis.effect(largest, matched, bounds=bounds)
            )
            out[f"{words}, by set"] = headline(analysis.mean(edited, bounds=bounds))
            if name != "distance":
                clean = at[f"clean_{name}"].astype(float)
                out[f"{words}, minus the clean run, by set"] = headline(
                    analysis.effect(edited, clean, bounds=bounds)
                )
        out[f"how far the state is moved, channels set to {to}, by set"] = headline(
            analysis.mean(at.taken, bounds=BOUNDS["distance"])
        )
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
    rows = headline(analysis.mean(means, along="layer", bounds=NO_BOUNDS))
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
