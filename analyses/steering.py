"""Does a direction between two prompts steer a run from one answer to the other?

At every layer and step, the direction d between two prompts on one picture, from the same noise: the difference of the means, a
linear probe's, or the first principal direction of the differences (`dl.analysis.direction`, `--how`). Of `circle` (`--tokens
objects`) it is of the tokens of an object, from while it is not asked for to while it is. It is fitted on training scenes, none
of them a picture that is steered. Then, while a run is made, `--scales` times d is added to the objects that the other prompt
names, and taken away from those that its own does. With `--tokens all` it is of the mean of all tokens, from prompt A to B, and
added to all of them (of B: taken away); of a picture of your own (--image) that is all there is, fitted from other noise.

It is added after one layer, on the prompt's branch. How far does the run go towards the other prompt's (`dl.analysis.leaning`; -1
is its own, 1 the other's clean end)? Where there is a scorer: flips (the answer that it reads is that
of the other's clean run), keeps, neither. Beside it how far the video moves outside of the target, where the clean ends agree.

Placebos at the same doses, each as long as d at every step: a random direction, d of another layer, and a direction between
prompts that were mixed up (its cosine with d stands in the summary, as does that of two halves of the scenes).

    python analyses/steering.py --samples 32 --out runs/steering
    python analyses/steering.py --image cat.png --prompt "a cat runs" --donor-prompt "a cat sleeps" --seeds 8 --out runs/steering
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr

import dit_lens as dl
from dit_lens import plot
from dit_lens.analysis.direction import How
from dit_lens.engine.batch import Batch
from dit_lens.engine.outcomes import by_sample
from dit_lens.errors import TaskError
from dit_lens.experiments.cost import announce
from dit_lens.experiments.couples import KINDS as PROMPTS
from dit_lens.experiments.couples import TWO_PROMPTS, CoupleOptions, check_donor, couples
from dit_lens.experiments.outcomes import headline
from dit_lens.experiments.pictures import choose
from dit_lens.experiments.prompt_directions import (
    DIRECTION,
    RANDOM,
    SHUFFLED,
    agreement,
    directions_of,
    fit_pairs,
    mean_states,
)
from dit_lens.experiments.samples import batch_of, pairs_of
from dit_lens.experiments.script import run_script
from dit_lens.experiments.steering import doses, steered
from dit_lens.experiments.study import Measured, once, study
from dit_lens.experiments.summary import write_summary
from dit_lens.experiments.swap_summary import LEANING, RATES, difference, estimate, of_units
from dit_lens.experiments.swaps import ROWS, rows_of


@dataclass
class Options(CoupleOptions):
    """Steer runs along a direction between two prompts."""

    task: str = TWO_PROMPTS
    """The task: circle, which has two prompts on one scene. Or --image with --donor-prompt."""
    layers: str = "auto"
    """Layers after which is steered, each alone: all, auto (3 of them), or a list such as 0,4,9."""
    at_steps: str = "all"
    """Steps at which is steered, each with the direction of its own: all, or a list such as 0-4."""
    scales: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    """How many times the direction is added. At 1 the mean state is as that of the other prompt."""
    tokens: Literal["auto", "objects", "all"] = "auto"
    """Tokens that are steered: the objects that a prompt names, or all. Default: objects of circle, all of --image."""
    how: How = "means"
    """How a direction is found: means, probe, or pca."""
    fit: int = 32
    """Scenes that it is fitted on; of --image, noise seeds."""
    out: Path = Path("runs/steering")

    @property
    def at_objects(self) -> bool:
        """Whether objects are steered."""
        return self.tokens == "objects" or (self.tokens == "auto" and self.image is None)


def main(options: Options) -> int:
    """Fit, steer, draw, save."""
    refuse(options)
    lens = options.load()
    layers = choose(options.layers, lens.layers, "layers", auto=3)
    choose(options.at_steps, options.steps or lens.family.call.default_steps, "at-steps")
    drawn = couples(options, lens)
    pairs = fit_pairs(options, drawn, options.fit)

    def make() -> xr.Dataset:
        first = [couple for couple, _ in pairs[: 1 if options.image else options.block]]
        announce("steering, directions", lens, len(pairs), replace(options, seeds=1), lambda _: 2.0, first)
        return mean_states(lens, pairs, options, layers, options.at_objects)

    states = once(options, "directions", lens, [couple for couple, _ in pairs], make)
    directions = directions_of(states.state, options.how, options.draw)
    measured = study(
        options,
        "steering",
        lens,
        lambda part: measure(lens, part, directions, options),
        using=states,
        runs=lambda batch: runs_of(batch, directions, options),
        drawn=drawn,
        least=1,  # of one couple, its noise seeds are what an interval is over
    )
    conclude(measured, states.state, directions, options)
    return measured.exit_code


def refuse(options: Options) -> None:
    """Refuse what has no direction, before anything is loaded.

    Raises:
        TaskError: it names the option.
    """
    check_donor(options)
    if options.eval_root is not None or (options.image is None and options.task != TWO_PROMPTS):
        raise TaskError(
            f"A direction is between two prompts on one picture: take --task {TWO_PROMPTS}, or --image with --donor-prompt."
        )
    if options.donor_image is not None or (
        options.image is not None and options.donor_prompt == options.prompt
    ):
        raise TaskError(
            "--image goes with --donor-prompt alone, and another one than --prompt: what differs is the prompt."
        )
    if options.image is not None and options.tokens == "objects":
        raise TaskError(
            "--tokens objects goes with --task circle: nothing says where the objects of --image are."
        )
    if len({*options.scales}) < len(options.scales) or not all(0 < s < np.inf for s in options.scales):
        raise TaskError(f"--scales {options.scales}: give numbers over 0, each once.")
    if options.fit < 4:
        raise TaskError(f"--fit {options.fit}: give 4 or more, two for each half.")


def measure(lens: dl.Lens, part: list[dl.Sample], directions: xr.DataArray, options: Options) -> xr.Dataset:
    """Steer every couple, in both directions, by every dose."""
    pairs = pairs_of(part, options)
    batch = batch_of(lens, rows_of(pairs), options)
    steps = choose(options.at_steps, batch.steps, "at-steps")
    is_judged = all(sample.scorer is not None for sample, _ in batch.pairs)
    names = np.array(towards(options), np.dtypes.StringDType())
    found = steered(batch, directions, options.scales, steps, options.at_objects, is_judged)
    return by_sample(found.assign_coords(direction=names), pairs)


def runs_of(batch: Batch, directions: xr.DataArray, options: Options) -> float:
    """Return how many whole runs a couple and a noise seed cost: an arm is the clean run up to its first step."""
    first = choose(options.at_steps, batch.steps, "at-steps")[0]
    return ROWS + 2 * len(doses(directions, options.scales)) * (batch.steps - first) / batch.steps


def towards(options: Options) -> tuple[str, str]:
    """Return what is steered to what."""
    a, b = PROMPTS if options.draws_scenes else ("A", "B")
    return f"{a} to {b}", f"{b} to {a}"


def conclude(measured: Measured, states: xr.DataArray, directions: xr.DataArray, options: Options) -> None:
    """Say how far steering goes by dose, beside the placebos; draw; save."""
    results, units = of_units(measured.results)
    summary: dict[str, Any] = {
        "couples": measured.results.sizes["sample"],
        "seeds": measured.results.sizes["seed"],
        "intervals are over": units,
        "the direction is fitted on": f"{options.fit} {'training scenes' if options.image is None else 'other noise seeds'}",
        "share of places where the clean ends differ": float(results.target.mean()),
        **of_directions(states, directions, options),
    }
    is_defined = results.leaning.notnull().all([dim for dim in results.leaning.dims if dim != "sample"])
    defined = results.isel(sample=is_defined.values)
    summary["leaning is defined for"] = f"{defined.sizes['sample']} of {results.sizes['sample']}"
    bootstrap: dict[str, Any] = {}
    if defined.sizes["sample"]:
        said = of_outcome(defined.leaning, "leaning", LEANING, options)
        summary |= said
        far = {name: defined[name].dropna("sample") for name in ("inside", "outside")}
        for name, values in far.items():
            summary |= of_outcome(values, name, (-np.inf, np.inf), options) if values.sizes["sample"] else {}
        bootstrap = dict(estimate(mean_of(defined.leaning), LEANING, ["layer"]).attrs)
    else:
        summary["no leaning"] = "the clean runs of A and B end alike: there is nothing to lean to"
    summary |= of_answers(results, options) if "flip" in results else {}
    write_summary(options, summary, measured.left_out, bootstrap)


def of_directions(states: xr.DataArray, directions: xr.DataArray, options: Options) -> dict[str, Any]:
    """Say how sure the directions are, and how near the one of mixed prompts is to them."""

    def by_layer(values: xr.DataArray) -> dict[str, float]:
        return {
            f"layer {layer}": float(values.sel(layer=layer).mean()) for layer in values.layer.values.tolist()
        }

    squared = (directions**2).sum("channel").sel(kind=DIRECTION, drop=True)
    mixed = directions.sel(kind=directions.kind == SHUFFLED)
    near = (mixed * directions.sel(kind=DIRECTION, drop=True)).sum("channel").mean("kind") / squared
    size = (states**2).sum("channel").mean(("side", "sample")) ** 0.5
    return {
        "cosine of the directions of two halves of what is fitted, mean over steps": by_layer(
            agreement(states, options.how)
        ),
        "cosine of the direction of shuffled labels with the direction, mean over steps": by_layer(near),
        "length of the direction, of that of the mean state": by_layer(squared**0.5 / size),
    }


def mean_of(values: xr.DataArray) -> xr.DataArray:
    """Return outcomes as numbers, the mean of both ways: A to B, and B to A."""
    return values.astype(float).mean("direction")


def of_outcome(
    values: xr.DataArray, name: str, bounds: tuple[float, float], options: Options
) -> dict[str, Any]:
    """Say what an outcome is by dose, and what the direction does beyond the random one; draw, a figure for each layer."""
    both = mean_of(values)
    means = estimate(both, bounds, ["kind", "scale"])
    own, placebo = (both.sel(kind=kind, drop=True) for kind in (DIRECTION, RANDOM))
    against = difference(own, placebo, ["layer", "scale"], bounds)
    labels = {"leaning": "leaning to the other prompt", "flips": "flips (share)"}
    for layer in values.layer.values.tolist() if "low" in means else []:
        figure = plot.curves(
            means.sel(layer=layer, drop=True).transpose("kind", "scale"),
            "scale",
            value_label=labels.get(name, f"RMS distance of the latents, {name} of the target"),
            title=f"Steered after layer {layer} · {options.source}",
            marks=True,
        )
        plot.save(figure, options.out / f"{name}_by_scale_layer_{layer:02d}.png")
    return {name: headline(means), f"{name}, {DIRECTION} minus {RANDOM}": headline(against)}


def of_answers(results: xr.Dataset, options: Options) -> dict[str, Any]:
    """Say how often the answer becomes that of the other's clean run, of couples whose clean answers differ."""
    chosen = results.isel(sample=results.differ.all(("seed", "direction")).values)
    summary: dict[str, Any] = {"couples whose clean answers differ": chosen.sizes["sample"]}
    if chosen.sizes["sample"] < 2:
        return summary | {
            "no flip rates": "an interval needs 2 such couples: take more --samples, or more --steps"
        }
    summary |= of_outcome(chosen.flip, "flips", RATES, options)
    for name, values in (("keeps", chosen.kept), ("neither", ~(chosen.flip | chosen.kept))):
        summary[name] = headline(estimate(mean_of(values), RATES, ["kind", "scale"]))
    return summary


if __name__ == "__main__":
    run_script(main, Options)
