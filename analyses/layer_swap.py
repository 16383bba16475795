"""In which layer, at which site and step does the answer stand? Swap states between two samples, in both directions.

The paper's latent swapping (arXiv 2603.16870), graded. While the run of A is made, what a layer holds is replaced by what it
holds in the run of B, from the same noise at the same step; and the other way round. A and B are two prompts on one scene
(`circle`), two scenes of a task, two samples of a benchmark's task, or two pictures of your own (--image, --donor-image).

How far that goes (`leaning`): with z_A, z_B the ends of the clean runs, (d(x, z_A) - d(x, z_B)) / d(z_A, z_B), d over all
latents but a given first frame. -1 is A's, 1 is B's. Of the last latents, and of x0 at the swapped step (of several the last),
where a clean run does not lean to -1 either: read it against `leaning_x0_clean`. Where there is a scorer, beside it: flips (the
video solves B), keeps (it solves A), neither. And how far each arm moves the latents right after its last swapped step, as a
share of their RMS: a swap that moves them little can turn no answer, whatever the states hold.

`--sites`: `block`, the state after a block; `update`, what the block adds; `self_attn`, `cross_attn`, `ffn`, and what other
sites the model has. Swapping a whole state puts B in from there on: at the last layer, on all branches and steps, that is an
identity (but where the head reads the prompt itself, as FLUX's does), and along the layers it says by where the answer is
settled. Swapping an update or a part of it says what that part carries alone. Other streams (text, sound) are never swapped.

Arms, for each site and layer: all steps, thirds of the steps, thirds of the noise level, one step at a time; on all branches of
guidance, and on the conditional one. Controls, at the first of these places: the run's own states (nothing may change), those of
the same sample from other noise, those that B holds in another layer (random orders in which no layer keeps its own), and a
placebo: a change of every token by as much, in a random direction.

Donors and receivers take every step together, the donors first, layer after layer: of states, one step of one layer (and of the
layers that its controls draw) is held at a time, for the 4 clean rows of a couple and seed.

    python analyses/layer_swap.py --samples 64 --cfg-scale 3 --out runs/layer_swap
    python analyses/layer_swap.py --image cat.png --prompt "..." --donor-image bicycle.png --donor-prompt "..." --paper
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import xarray as xr

import dit_lens as dl
from dit_lens import plot
from dit_lens.engine.batch import Batch
from dit_lens.engine.outcomes import by_sample
from dit_lens.experiments.cost import runs_of_arms
from dit_lens.experiments.couples import KINDS, TWO_PROMPTS, CoupleOptions, check_donor, couples
from dit_lens.experiments.pictures import choose
from dit_lens.experiments.samples import batch_of, pairs_of, steps_of
from dit_lens.experiments.script import run_script
from dit_lens.experiments.study import Measured, study
from dit_lens.experiments.summary import write_summary
from dit_lens.experiments.swap_outcomes import CleanEnds, outcomes_of
from dit_lens.experiments.swap_summary import RATES, SIZES, Told, of_units, told, told_of_leaning
from dit_lens.experiments.swaps import (
    ANOTHER,
    BRANCHES,
    LEVELS,
    OTHER_NOISE,
    PLACEBO,
    ROWS,
    WHERE,
    Swap,
    arm_of,
    branches_of,
    derangements,
    names_in,
    places_of,
    rows_of,
    sites_of,
    swaps_of,
)


@dataclass
class Options(CoupleOptions):
    """Swap states between two samples."""

    task: str = TWO_PROMPTS
    """The task: circle has two prompts on one scene, of others a scene is the donor of another."""
    cfg_scale: float | None = 3.0
    """Guidance scale. Over 1 there are two branches, and swapping one is not swapping both."""
    sites: str = "block"
    """What is swapped: block, update (what a block adds), or other sites of the model: block,self_attn,cross_attn,ffn."""
    layers: str = "all"
    """Layers to swap: all, auto (5 of them), or a list such as 0,4,9."""
    where: str = ",".join(WHERE)
    """Where along the steps: whole (all), thirds (of them), sigma (thirds of the noise level), step (each of --map-steps)."""
    branches: str = ",".join(BRANCHES)
    """On all branches of guidance, on the conditional one alone (cond), or each."""
    map_steps: str = "auto"
    """Steps that are swapped alone: all, auto (5 of them), or a list such as 0-9."""
    orders: int = 3
    """Random orders of the layers for the control with another layer's states, drawn by --draw."""
    out: Path = Path("runs/layer_swap")

    PAPER: ClassVar[dict[str, Any]] = {
        "steps": 50,
        "sites": "block",
        "layers": "all",
        "where": "step",
        "map_steps": "0",
    }


def main(options: Options) -> int:
    """Run all swaps on every couple, in both directions; say how far they go; draw, save."""
    options = options.with_preset()
    check_donor(options)
    names_in(options.where, WHERE, "where")
    names_in(options.branches, BRANCHES, "branches")
    lens = options.load()
    sites_of(options.sites, list(lens.sites))
    choose(options.layers, lens.layers, "layers")
    choose(options.map_steps, steps_of(options, lens), "map-steps")
    drawn = couples(options, lens)
    measured = study(
        options,
        "layer_swap",
        lens,
        lambda part: measure(lens, part, options),
        runs=lambda batch: runs_of(lens, batch, options),
        drawn=drawn,
        least=1,  # of one couple, its noise seeds are what an interval is over
    )
    conclude(measured, options, drawn.alone)
    return measured.exit_code


def measure(lens: dl.Lens, part: list[dl.Sample], options: Options) -> xr.Dataset:
    """Swap in every couple, site after site and layer after layer, and read what that comes to."""
    pairs = pairs_of(part, options)
    batch = batch_of(lens, rows_of(pairs), options)
    ends = CleanEnds.of(batch, all(sample.scorer is not None for sample, _ in batch.pairs))
    sites, layers = sites_of(options.sites, list(lens.sites)), choose(options.layers, lens.layers, "layers")
    orders = derangements(layers, options.orders, options.draw)
    by_site = []
    for site in sites:
        by_layer = []
        for i, layer in enumerate(layers):
            swaps = arms_of(batch, layer, [order[i] for order in orders], options)
            by_layer.append(outcomes_of(ends, site, layer, swaps))
        by_site.append(xr.concat(by_layer, xr.Variable("layer", layers)))
    text = np.dtypes.StringDType()
    data = xr.concat(by_site, xr.Variable("site", np.array(sites, text))).merge(ends.clean())
    data["from_layer"] = ("order", "layer"), np.array(orders, int).reshape(len(orders), len(layers))
    data = data.assign_coords(
        arm=np.array([swap.name for swap in swaps], text),
        last_step=("arm", [swap.steps[-1] for swap in swaps]),
        direction=np.array(directions(options), text),
    )
    donors = np.array([sample.both[1].id for sample in part], text)
    return by_sample(data, pairs).assign(donor=("sample", donors))


def arms_of(batch: Batch, layer: int, others: list[int], options: Options) -> list[Swap]:
    """Return the arms of one layer; `others` are the layers of the control, one for each order."""
    steps = choose(options.map_steps, batch.steps, "map-steps")
    places = places_of(names_in(options.where, WHERE, "where"), steps, batch.sigmas)
    return swaps_of(layer, others, places, branches_of(batch, options.branches))


def runs_of(lens: dl.Lens, batch: Batch, options: Options) -> float:
    """Return how many whole runs a couple and a noise seed cost."""
    layers = choose(options.layers, lens.layers, "layers")
    others = [order[0] for order in derangements(layers, options.orders, options.draw)]
    site = sites_of(options.sites, list(lens.sites))
    arms = [arm_of(swap, site[0], layers[0], {}) for swap in arms_of(batch, layers[0], others, options)]
    edited = 2 * (runs_of_arms(batch, arms) - 1)
    return ROWS + len(site) * len(layers) * (ROWS + edited)


def directions(options: Options) -> tuple[str, str]:
    """Return what is swapped into what: into A, and into B."""
    a, b = KINDS if options.draws_scenes and options.task == TWO_PROMPTS else ("A", "B")
    return f"{b} into {a}", f"{a} into {b}"


def conclude(measured: Measured, options: Options, alone: Sequence[str] = ()) -> None:
    """Say how far swaps go, of all couples, and how often they flip the answer, of those that are solved; draw; save."""
    results, units = of_units(measured.results)
    summary = counts(measured.results) | {"intervals are over": units}
    if "sigma" in options.where and (
        empty := [level for level in LEVELS if not any(str(n).startswith(level) for n in results.arm.values)]
    ):
        summary["no step is in the"] = empty
    summary |= {"samples without another of their shape in their task": list(alone)} if alone else {}
    # Arms that move the latents unequally have unequal leverage, whatever the states hold.
    movement = told(results.movement, "movement of the latents right after, share of their RMS", SIZES)
    summary |= movement.summary
    bootstrap: dict[str, Any] = {}
    is_defined = results.leaning.notnull().all([dim for dim in results.leaning.dims if dim != "sample"])
    defined = results.isel(sample=is_defined.values)
    summary["leaning is defined for"] = f"{defined.sizes['sample']} of {results.sizes['sample']}"
    if defined.sizes["sample"]:
        said = told_of_leaning(defined)
        summary, bootstrap = summary | said.summary, dict(said.by_arm.attrs)
        draw(said, "leaning", (-1.05, 1.05), options)
    else:
        summary["no leaning"] = "the clean runs of A and B end alike: there is nothing to lean to"
        print(summary["no leaning"])
    if "right" in results:
        summary |= of_answers(results, options)
    write_summary(options, summary, measured.left_out, bootstrap)


def counts(results: xr.Dataset) -> dict[str, Any]:
    """Return what the summary says of all couples."""
    first = str(results.arm.values[0])
    place = "all steps" if first == "all branches" else first
    return {
        "couples": results.sizes["sample"],
        "seeds": results.sizes["seed"],
        "distance of the clean ends of A and B": float(results.apart.mean()),
        "own states, largest change of a latent": float(results.own_change.max()),
        "controls are at": place,
        "orders of the layers in the control": results.sizes["order"],
        "layers that the states came from, by order": results.from_layer.values.tolist(),
    }


def of_answers(results: xr.Dataset, options: Options) -> dict[str, Any]:
    """Return how often the answer flips, of couples that are solved clean both ways and whose answers differ."""
    solved, confused = results.right.all(("seed", "direction")), results.confused.any(("seed", "direction"))
    chosen = results.isel(sample=(solved & ~confused).values)
    total, count = results.sizes["sample"], chosen.sizes["sample"]
    summary: dict[str, Any] = {
        "solved clean under both": int(solved.sum()),
        "of these, one video solves both": int((solved & confused).sum()),
    }
    if count < 2:
        reason = f"{count} of {total} couples are solved under both, by videos that differ, and an interval needs 2"
        print(f"no flip rates: {reason}")
        return summary | {"no flip rates": f"{reason}: take more --samples, or more --steps"}
    flips = told(chosen.flip.astype(float), "flips", RATES)
    for name, values in (("keeps", chosen.kept), ("neither", ~(chosen.flip | chosen.kept))):
        summary |= told(values.astype(float), name, RATES).summary
    draw(flips, "flips", (-0.03, 1.03), options)
    return summary | flips.summary


def draw(said: Told, name: str, limits: tuple[float, float], options: Options) -> None:
    """Draw an outcome by layer, by third of the steps and of the noise level, and the layer x step map, a site each."""
    arms = said.by_arm.arm.values.tolist()
    controls, first = (OTHER_NOISE, PLACEBO, ANOTHER), arms[0]
    of_first = (first, "conditional branch", f"{first}, conditional branch")
    # Of one's own states the summary has the number: nothing changes.
    groups = {
        "by_layer": [n for n, arm in enumerate(arms) if arm in (*of_first, *controls)],
        "by_third": [n for n, arm in enumerate(arms) if "third" in arm and "conditional" not in arm],
    }
    for site in said.by_arm.site.values.tolist():
        title = f"Swapping {site} between two samples \u00b7 {options.source}"
        suffix = "" if said.by_arm.sizes["site"] == 1 else f"_{site}"
        for group, chosen in groups.items():
            if chosen and "low" in said.by_arm:
                part = said.by_arm.sel(site=site, drop=True).isel(arm=chosen)
                figure = plot.curves(part, "layer", value_label=name, title=title, limits=limits, marks=True)
                plot.save(figure, options.out / f"{name}_{group}{suffix}.png")
        if said.by_step is not None:
            values = said.by_step["mean"].sel(site=site, drop=True)
            bounds = (0.0, 1.0) if name == "flips" else (-1.0, 1.0)
            figure = plot.heatmap(
                values, value_label=name, title=f"{title}, one step", limits=bounds, diverging=bounds[0] < 0
            )
            plot.save(figure, options.out / f"{name}_one_step{suffix}.png")


if __name__ == "__main__":
    run_script(main, Options)
