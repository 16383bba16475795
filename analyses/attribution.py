"""Which states carry one answer over into another? Attribution patching over sites, layers and steps, with its check.

Two samples A and B, from the same noise: two prompts on one scene (`circle`), or two scenes of a task. Of each run the metric is
how far its last latents x have come from its own end to the other's, z_own to z_other:

    m(x) = (x - z_own) . (z_other - z_own) / |z_other - z_own|^2        0 at its own end, 1 at the other's

What m gains if the other run's state is patched in is estimated at every site, layer, step, branch and token at once, by its
gradient through all later steps (`batch.attribute`; Nanda 2023, arXiv 2310.10348), or with `--integrate N` by integrated
gradients. m is the straight measure beside `dl.analysis.leaning`, whose distance has no gradient at a run's own end.

- Check: `--check` states, and as many single tokens, drawn at random and patched in truth. The primary outcome is the rank
  correlation of states; a map whose states do not rank is no map. The slope says of what size estimates are: 1 is right.
- Control, the pair swapped: B into A beside A into B. Two maps of one model should agree; their rank correlation says how far.
- Control, random weights: the same command with `--weights random`, or `shuffled`.

    python analyses/attribution.py --samples 16 --sites block,self_attn,cross_attn,ffn --out runs/attribution
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from scipy.stats import spearmanr
from torch import Tensor

import dit_lens as dl
from dit_lens import analysis, plot
from dit_lens.analysis.leaning import SAME
from dit_lens.engine.batch import Batch
from dit_lens.engine.outcomes import by_sample
from dit_lens.errors import TaskError
from dit_lens.experiments.couples import TWO_PROMPTS, Couple, CoupleOptions, check_donor, couples
from dit_lens.experiments.outcomes import headline
from dit_lens.experiments.pictures import choose
from dit_lens.experiments.samples import batch_of, given_frames, pairs_of
from dit_lens.experiments.script import run_script
from dit_lens.experiments.steps import clean_steps
from dit_lens.experiments.study import Measured, study
from dit_lens.experiments.summary import write_summary
from dit_lens.experiments.swaps import names_in
from dit_lens.families.latents import apart
from dit_lens.plan.digests import digest
from dit_lens.tasks.pairs import Pair, label

UNBOUNDED = (-np.inf, np.inf)
RANKS = (-1.0, 1.0)
CHECKS = ("spearman", "slope", "spearman_whole", "slope_whole")
"""What the check says, by the name that attributions have for it."""


@dataclass
class Options(CoupleOptions):
    """Attribute the way from one answer to another to states."""

    task: str = TWO_PROMPTS
    """The task: circle has two prompts on one scene, of others a scene is the other one of another."""
    sites: str = "block,self_attn,cross_attn,ffn"
    """Where states are read; other sites of the model may be named."""
    layers: str = "all"
    """Layers: all, auto (5 of them), or a list such as 0,4,9."""
    map_steps: str = "auto"
    """Steps whose states are attributed: all, auto (5 of them), or a list such as 0-9."""
    check: int = 24
    """States, and single tokens, that are patched in truth for each run, drawn by --draw."""
    integrate: int = 0
    """Nodes of integrated gradients. 0: the gradient at the run's own states."""
    by_blocks: bool = False
    """Hold a block's input alone for the backward pass: for large models."""
    out: Path = Path("runs/attribution")


def main(options: Options) -> int:
    """Attribute every couple, both ways; check; draw; save."""
    check_donor(options)
    if options.check < 3 or options.integrate < 0:
        raise TaskError(f"--check {options.check} --integrate {options.integrate}: give 3, and 0, or more.")
    lens = options.load()
    names_in(options.sites, [*lens.sites], "sites")
    choose(options.layers, lens.layers, "layers")
    choose(options.map_steps, options.steps or lens.family.call.default_steps, "map-steps")
    drawn = couples(options, lens)
    measured = study(
        options,
        "attribution",
        lens,
        lambda part: measure(lens, part, options),
        runs=lambda batch: runs_of(lens, batch, options),
        drawn=drawn,
    )
    conclude(measured, options)
    return measured.exit_code


def measure(lens: dl.Lens, part: list[dl.Sample], options: Options) -> xr.Dataset:
    """Attribute every couple and noise seed, both ways."""
    pairs = pairs_of(part, options)
    batch = batch_of(lens, both_rows(pairs), options)
    for _, _, now in clean_steps(batch):
        ends = apart(now.latents)["video"]
    measured = []
    for n in range(len(pairs)):
        own, other = 2 * n, 2 * n + 1
        ways = [one_way(lens, batch, ends, *rows, options) for rows in ((own, other), (other, own))]
        measured.append(
            xr.concat(ways, xr.Variable("direction", np.array(DIRECTIONS, np.dtypes.StringDType())))
        )
    return by_sample(xr.concat(measured, "pair"), pairs)


DIRECTIONS = ("B into A", "A into B")


def both_rows(pairs: list[Pair]) -> list[Pair]:
    """Return the rows of couples and noise seeds: A and B of each, side by side."""
    return [(sample, seed) for couple, seed in pairs for sample in _couple(couple).both]


def _couple(sample: Any) -> Couple:
    assert isinstance(sample, Couple)
    return sample


def one_way(lens: dl.Lens, batch: Batch, ends: Tensor, own: int, other: int, options: Options) -> xr.Dataset:
    """Attribute the way of one row's end to the other's; all is NaN where both ends are one."""
    steps = choose(options.map_steps, batch.steps, "map-steps")
    layers = choose(options.layers, lens.layers, "layers")
    sites = names_in(options.sites, [*lens.sites], "sites")
    place = dl.at(step=steps, layer=layers)
    size = float(max(ends[own].norm(), ends[other].norm()))
    coords = {"site": np.array(sites, np.dtypes.StringDType()), "step": steps, "layer": layers}
    way = way_to(ends[own], ends[other], given_frames(batch.pairs[own][0]))
    if float(way.norm()) <= SAME * size:
        data = {"gain": (tuple(coords), np.full([len(c) for c in coords.values()], np.nan))}
        return xr.Dataset({**data, **dict.fromkeys(CHECKS, np.nan)}, coords)
    # Places of its own for each run: an interval over runs then holds what other places would have said.
    drawn = digest([options.draw, [label(batch.pairs[row][0]) for row in (own, other)], batch.pairs[own][1]])
    found = batch.attribute(
        way_along(ends[own], way),
        sites,
        clean=other,
        corrupt=own,
        place=place,
        until=-1,
        check=options.check,
        integrate=options.integrate,
        seed=int(drawn[:8], 16),
        by_blocks=options.by_blocks,
    )
    totals = [
        found[s].sum([dim for dim in found[s].dims if dim not in ("step", "layer")]).values for s in sites
    ]
    data = {"gain": (tuple(coords), np.stack(totals))}
    checked = {name: ("check", found[f"{name}_whole"].values) for name in ("estimate", "exact")}
    return xr.Dataset(data, coords).assign({name: found.attrs[name] for name in CHECKS}).assign(checked)


def way_to(own: Tensor, other: Tensor, given: int) -> Tensor:
    """Return the difference of two ends [channel, frame, y, x], without first frames that are given: no patch moves them."""
    way = (other - own).double()
    way[:, : min(given, way.shape[1] - 1)] = 0
    return way


def way_along(own: Tensor, way: Tensor) -> Any:
    """Return the metric m: how far latents have come along the way from one end to the other, 0 to 1."""
    square = (way**2).sum()

    def share(x: Tensor) -> Tensor:
        return ((x - own).double() * way).sum() / square

    return share


def runs_of(lens: dl.Lens, batch: Batch, options: Options) -> float:
    """Return about how many whole runs a couple and a noise seed cost; a backward pass counts as two forwards."""
    steps = choose(options.map_steps, batch.steps, "map-steps")
    sites, branches = names_in(options.sites, [*lens.sites], "sites"), len(batch.layout.branches)
    later = np.array([batch.steps - step for step in steps]) / batch.steps
    places = len(sites) * len(choose(options.layers, lens.layers, "layers")) * branches
    estimate = 3.0 + 2.0 + len(steps) / batch.steps
    if options.integrate:
        estimate = 2.0 + places * (options.integrate + 1) * 4 * float(later.sum())
    return 2.0 + 2 * (estimate + 2 * options.check * float(later.mean()))


# ---- what it comes to


def conclude(measured: Measured, options: Options) -> None:
    """Say whether the maps are to be trusted, and what they show; draw; save."""
    results = measured.results
    defined = results.gain.notnull().all([dim for dim in results.gain.dims if dim != "sample"])
    chosen = results.isel(sample=defined.values)
    summary: dict[str, Any] = {
        "couples": results.sizes["sample"],
        "seeds": results.sizes["seed"],
        "couples whose ends differ": chosen.sizes["sample"],
    }
    if chosen.sizes["sample"] < 2:
        summary["not measured"] = "fewer than 2 couples end in two ways: there is no way to attribute"
        print(summary["not measured"])
        write_summary(options, summary, measured.left_out)
        return
    summary |= of_checks(chosen)
    along = [dim for dim in ("step", "layer") if chosen.sizes[dim] > 1]
    gains = analysis.mean(chosen.gain.mean("direction"), bounds=UNBOUNDED, along=along)
    summary["gain to first order" if not options.integrate else "gain, integrated"] = headline(gains)
    summary["largest at"] = largest(chosen.gain.mean("direction"))
    for site in chosen.site.values.tolist():
        figure = plot.heatmap(
            gains.sel(site=site, drop=True).transpose("step", "layer"),
            value_label="estimated gain (share of the way)",
            title=f"What {site} carries over from another answer · {options.source}",
            diverging=True,
        )
        plot.save(figure, options.out / f"gain_{site}.png")
    write_summary(options, summary, measured.left_out, gains.attrs)


def of_checks(chosen: xr.Dataset) -> dict[str, Any]:
    """Return what the checks say, primary first, and how far maps of both directions agree."""
    words = {
        "spearman_whole": "primary: rank correlation with exact patches of whole states",
        "spearman": "rank correlation with exact patches of single tokens",
        "slope_whole": "size of estimates of whole states, in units of exact gains",
        "slope": "size of estimates of single tokens, in units of exact gains",
    }
    out = {words[name]: told(chosen[name], RANKS if "spear" in name else UNBOUNDED) for name in words}
    return out | {"rank correlation of the maps of both directions": told(agreement(chosen.gain), RANKS)}


def told(values: xr.DataArray, bounds: tuple[float, float]) -> Any:
    """Return the mean over couples; those where a value is not defined are left out, and counted."""
    if "direction" in values.dims:
        values = values.mean("direction", skipna=False)
    defined = values.notnull().all("seed")
    kept = values.isel(sample=defined.values)
    if kept.sizes["sample"] < 2:
        return f"not measured: it is defined for {kept.sizes['sample']} couples"
    return {"n": kept.sizes["sample"], **headline(analysis.mean(kept, bounds=bounds))}


def agreement(gain: xr.DataArray) -> xr.DataArray:
    """Return the rank correlation of each couple's two maps [site, step, layer], on [sample, seed]; NaN where one is flat."""
    maps = gain.transpose("sample", "seed", "direction", ...).values
    flat = maps.reshape(*maps.shape[:3], -1)
    values = [[correlation(*ways) for ways in of_couple] for of_couple in flat]
    return xr.DataArray(values, dims=("sample", "seed"), coords={"sample": gain.sample})


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Return the rank correlation of two maps; NaN where one is flat."""
    if len(one) < 3 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return float("nan")
    return float(spearmanr(one, other).statistic)


def largest(gain: xr.DataArray) -> dict[str, Any]:
    """Return where the gain is largest, by site: chosen on every second couple, and told of the others.

    Args:
        gain: [site, step, layer, sample, seed].
    """
    out: dict[str, Any] = {}
    for site in gain.site.values.tolist():
        chosen_on, told_on = (gain.sel(site=site, drop=True).isel(sample=slice(n, None, 2)) for n in (0, 1))
        if told_on.sizes["sample"] < 2:
            out[site] = (
                f"not measured: of {gain.sizes['sample']} couples half choose the place, and it is told of the others"
            )
            continue
        at = chosen_on.mean(("sample", "seed")).argmax(("step", "layer"))
        there = told_on.isel(at)
        place = {name: int(there[name]) for name in ("step", "layer")}
        out[site] = {**place, "n": there.sizes["sample"], **headline(analysis.mean(there, bounds=UNBOUNDED))}
    return out


if __name__ == "__main__":
    run_script(main, Options)
