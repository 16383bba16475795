"""Which place carries one answer over into another: site x layer x step x head x frame, by exact patching.

Two samples A and B, from the same noise: two prompts on one scene (`circle`), two scenes of a task, or pictures of your own.
While the run of A is made, what one place holds is replaced by what it holds in the run of B, and the other way round. How far
the last latents x then go over to the other one, the *way*, is (leaning + 1) / 2 (`dl.analysis.leaning`): 0 at the own end, 1
at the other's. `layer_swap.py` swaps whole states along the steps; this is its map of small places:

- whole: every site of --sites, at each layer and each of --map-steps, the value whole;
- heads: each head alone, at the sites of --heads (outputs of heads before their projection);
- frames: each latent frame alone, at the sites of --frames-at.

Null: a placebo at every whole place, a change of every token by as much, in a random direction. Control: the run's own values,
which may change nothing. No double dipping: the place of each kind that goes furthest is chosen on every second couple, and what
is said of it is measured on the others, beside the placebo there.

Of a model for which this takes too long, `attribution.py` estimates the same map by gradients, with a check on random places.

    python analyses/causal_map.py --samples 16 --layers 0-15 --out runs/causal_map
    python analyses/causal_map.py --task maze --samples 16 --sites block,ffn --heads none --frames-at block
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

import dit_lens as dl
from dit_lens import analysis, plot
from dit_lens.engine.batch import Batch
from dit_lens.engine.outcomes import by_sample
from dit_lens.errors import TaskError
from dit_lens.experiments.cost import runs_of_arms
from dit_lens.experiments.couples import TWO_PROMPTS, CoupleOptions, check_donor, couples
from dit_lens.experiments.outcomes import headline
from dit_lens.experiments.pictures import choose
from dit_lens.experiments.primary import primary_outcome
from dit_lens.experiments.samples import batch_of, pairs_of, steps_of
from dit_lens.experiments.script import run_script
from dit_lens.experiments.study import Measured, study
from dit_lens.experiments.summary import write_summary
from dit_lens.experiments.swap_outcomes import CleanEnds, outcomes_of
from dit_lens.experiments.swap_summary import difference, estimate, of_units
from dit_lens.experiments.swaps import (
    OWN,
    PLACEBO,
    ROWS,
    Swap,
    arm_of,
    itself,
    names_in,
    partner,
    rows_of,
    sites_of,
)

WAY = (0.0, 1.0)
KINDS = {"whole": "sites", "head": "heads", "frame": "frames_at"}
"""What is swapped at a time, with the option that names the sites of it."""


@dataclass
class Options(CoupleOptions):
    """Map which places carry one answer over into another."""

    task: str = TWO_PROMPTS
    """The task: circle has two prompts on one scene, of others a scene is the donor of another."""
    cfg_scale: float | None = 3.0
    """Guidance scale. Values are swapped on all branches."""
    sites: str = "block,self_attn,cross_attn,ffn"
    """Sites that are swapped whole, or none."""
    heads: str = "heads,cross_heads"
    """Sites of which each head is swapped alone, or none."""
    frames_at: str = "block"
    """Sites of which each latent frame is swapped alone, or none."""
    layers: str = "auto"
    """Layers to swap: all, auto (5 of them), or a list such as 0,4,9."""
    map_steps: str = "auto"
    """Steps to swap, each alone: all, auto (5 of them), or a list such as 0-9."""
    out: Path = Path("runs/causal_map")


def main(options: Options) -> int:
    """Swap at every place of every couple, in both directions; say where it goes furthest; draw; save."""
    options = options.with_preset()
    check_donor(options)
    lens = options.load()
    sites_by_kind(lens, options)
    choose(options.layers, lens.layers, "layers")
    choose(options.map_steps, steps_of(options, lens), "map-steps")
    measured = study(
        options,
        "causal_map",
        lens,
        lambda part: measure(lens, part, options),
        runs=lambda batch: runs_of(lens, batch, options),
        drawn=couples(options, lens),
        least=1,  # of one couple, its noise seeds are what an interval is over
    )
    conclude(measured, options)
    return measured.exit_code


def sites_by_kind(lens: dl.Lens, options: Options) -> dict[str, list[str]]:
    """Return the sites of every kind of place; a kind without sites is left out.

    Raises:
        TaskError: the model has no such site, one of --heads has no heads, or there is nothing to swap.
    """
    found = {}
    for kind, option in KINDS.items():
        text = getattr(options, option)
        if text.strip() == "none":
            continue
        name = option.replace("_", "-")
        found[kind] = (
            sites_of(text, list(lens.sites)) if kind == "whole" else names_in(text, list(lens.sites), name)
        )
    without = [site for site in found.get("head", []) if not lens.specimen.carried["video", site].heads]
    if without:
        raise TaskError(f"--heads {options.heads}: {', '.join(without)} does not have its heads apart.")
    if not found:
        raise TaskError("--sites none --heads none --frames-at none: there is nothing to swap.")
    return found


def measure(lens: dl.Lens, part: list[dl.Sample], options: Options) -> xr.Dataset:
    """Swap at every place of every couple, and read how far each goes."""
    pairs = pairs_of(part, options)
    batch = batch_of(lens, rows_of(pairs), options)
    ends = CleanEnds.of(batch, is_judged=False)
    layers = choose(options.layers, lens.layers, "layers")
    data = ends.clean()
    for kind, sites in sites_by_kind(lens, options).items():
        for site in sites:
            swaps = swaps_of(lens, batch, kind, site, options)
            by_layer = [
                outcomes_of(ends, site, layer, [replace(swap, layer=layer) for swap in swaps])
                for layer in layers
            ]
            found = xr.concat(by_layer, xr.Variable("layer", layers))
            data = data.merge(arranged(found, kind, site, swaps))
    donors = np.array([sample.both[1].id for sample in part], np.dtypes.StringDType())
    return by_sample(data, pairs).assign(donor=("sample", donors))


def swaps_of(lens: dl.Lens, batch: Batch, kind: str, site: str, options: Options) -> list[Swap]:
    """Return the arms of one kind at one site, of any layer: each step, each part; the placebo of whole values; own values."""
    steps = choose(options.map_steps, batch.steps, "map-steps")
    parts: list[tuple[str, int] | None] = [None]
    if kind == "head":
        parts = [("head", n) for n in range(lens.specimen.carried["video", site].heads)]
    if kind == "frame":
        parts = [("frame", n) for n in range(batch.grid[0])]
    arms = [Swap(f"{step} {part}", partner, 0, (step,), part=part) for step in steps for part in parts]
    if kind == "whole":
        arms += [Swap(f"{PLACEBO} {step}", partner, 0, (step,), is_placebo=True) for step in steps]
    return [*arms, Swap(OWN, itself, 0, (steps[0],), part=parts[-1])]


def arranged(found: xr.Dataset, kind: str, site: str, swaps: list[Swap]) -> xr.Dataset:
    """Return outcomes of one site by step and part in place of arm, under names with kind and site.

    Args:
        found: as `outcomes_of` gives it, [layer, arm, pair, direction].
        kind: of place.
        site: of the model.
        swaps: the arms.
    """
    steps = sorted({swap.steps[0] for swap in swaps})
    out = {f"own_change_{kind}_{site}": found.own_change}
    for name, is_placebo in ((kind, False), (f"{kind}_{PLACEBO}", True)):
        chosen = [n for n, one in enumerate(swaps) if one.is_placebo == is_placebo and one.name != OWN]
        if not chosen:
            continue
        parts = len(chosen) // len(steps)
        dims = ("layer", "step", *([] if kind == "whole" else [dim_of(kind, site)]), "pair", "direction")
        for value in ("leaning", "movement"):
            array = found[value].isel(arm=chosen).transpose("layer", "arm", "pair", "direction").values
            array = array.reshape(
                len(array), len(steps), *([parts] if len(dims) == 5 else []), *array.shape[2:]
            )
            out[f"{value}_{name}_{site}"] = xr.DataArray(
                array, dims=dims, coords={"step": steps, "layer": found.layer}
            )
    return xr.Dataset(out)


def dim_of(kind: str, site: str) -> str:
    """Return the name of the dimension of parts: sites may differ in their number of heads."""
    return f"head_of_{site}" if kind == "head" else kind


def runs_of(lens: dl.Lens, batch: Batch, options: Options) -> float:
    """Return how many whole runs a couple and a noise seed cost."""
    layers, total = choose(options.layers, lens.layers, "layers"), 0.0
    for kind, sites in sites_by_kind(lens, options).items():
        for site in sites:
            swaps = swaps_of(lens, batch, kind, site, options)
            edited = 2 * (runs_of_arms(batch, [arm_of(swap, site, 0, {}) for swap in swaps]) - 1)
            total += len(layers) * (ROWS + edited)
    return ROWS + total


# ---- what is said


def conclude(measured: Measured, options: Options) -> None:
    """Say for every kind and site how far its places go, and which of them goes furthest; draw; save."""
    results, units = of_units(measured.results)
    own = [float(results[name].max()) for name in results if str(name).startswith("own_change")]
    summary: dict[str, Any] = {
        "couples": measured.results.sizes["sample"],
        "seeds": measured.results.sizes["seed"],
        "intervals are over": units,
        "own values, largest change of a latent": max(own),
        "the way": "0: at the own end, 1: at the other's; the mean of both directions",
    }
    maps = maps_of(results)
    for name, (kind, site) in maps.items():
        way = way_of(results, f"{kind}_{site}")
        summary[f"way, {name}"] = headline(estimate(way, WAY, list(along(way))))
        summary[f"furthest, {name}"] = furthest(results, way, site, kind)
        draw(way, name, options)
    whole = {name: site for name, (kind, site) in maps.items() if kind == "whole"}
    for name, site in whole.items():
        way, placebo = (way_of(results, f"{kind}_{site}") for kind in ("whole", f"whole_{PLACEBO}"))
        summary[f"way minus placebo, {name}"] = headline(difference(way, placebo, list(along(way))))
    write_summary(options, summary, measured.left_out)


def maps_of(results: xr.Dataset) -> dict[str, tuple[str, str]]:
    """Return the maps of a study by name: their kinds and sites."""
    found = {}
    for name in map(str, results):
        for kind in KINDS:
            site = name.removeprefix(f"leaning_{kind}_")
            if site != name and not site.startswith(PLACEBO):
                found[f"{site}, each {kind}" if kind != "whole" else site] = kind, site
    return found


def way_of(results: xr.Dataset, name: str) -> xr.DataArray:
    """Return how far places go, [layer, step, (part,) sample, seed], the mean of both directions."""
    way: xr.DataArray = (results[f"leaning_{name}"].mean("direction", skipna=False) + 1) / 2
    return way.isel(sample=way.notnull().all([d for d in way.dims if d != "sample"]).values).rename("way")


def along(way: xr.DataArray) -> tuple[str, ...]:
    """Return the dimensions of the places of a map."""
    return tuple(str(dim) for dim in way.dims if dim not in ("sample", "seed"))


def furthest(results: xr.Dataset, way: xr.DataArray, site: str, kind: str) -> dict[str, Any]:
    """Return the place that goes furthest in every second couple, and how far it goes in the others.

    Args:
        results: of the study.
        way: the map.
        site: of it.
        kind: of place.
    """
    chosen_on, told_on = way.isel(sample=slice(0, None, 2)), way.isel(sample=slice(1, None, 2))
    mean = chosen_on.mean(("sample", "seed"))
    if told_on.sizes["sample"] < 2 or not mean.size:
        return {
            "not measured": f"{way.sizes['sample']} couples: a place is chosen on half of them, and told of the others"
        }
    place = {str(dim): int(n) for dim, n in mean.argmax(...).items()}
    labels = {dim: int(mean[dim][n]) if dim in mean.coords else n for dim, n in place.items()}
    here = told_on.isel(place)
    told = {"place": labels, "chosen on": chosen_on.sizes["sample"], "told of": told_on.sizes["sample"]}
    told |= {"way": headline(analysis.mean(here, bounds=WAY))}
    moved = results[f"movement_{kind}_{site}"].mean("direction").isel(place).sel(sample=here["sample"].values)
    told |= {
        "movement of the latents right after, share of their RMS": headline(
            analysis.mean(moved, bounds=(0, np.inf))
        )
    }
    if kind == "whole":
        placebo = way_of(results, f"whole_{PLACEBO}_{site}").isel(sample=slice(1, None, 2)).isel(place)

        def against(**options: Any) -> xr.Dataset:
            return analysis.effect(here, placebo, bounds=WAY, **options)

        told["way minus placebo"] = primary_outcome(against)
    return told


def draw(way: xr.DataArray, name: str, options: Options) -> None:
    """Draw a map: layer by step; of parts a panel for each step, layer by part."""
    values = way.mean(("sample", "seed"), keep_attrs=True)
    if not way.sizes["sample"]:
        return
    parts = [dim for dim in along(way) if dim not in ("layer", "step")]
    shown = values.transpose("step", "layer", *parts) if parts else values.transpose("layer", "step")
    title = f"Swapping {name} between two samples \u00b7 {options.source}"
    limits = 0.0, max(float(values.max()), 1e-3)  # heads go a small part of the way
    figure = plot.heatmap(shown, value_label="way to the other end", title=title, limits=limits)
    plot.save(figure, options.out / f"{name.replace(', each ', '_by_')}.png")


if __name__ == "__main__":
    run_script(main, Options)
