"""What does each layer already know? Read x0 out of every layer's states, as if the network ended there.

The head that follows the last block is put on the states after every block, on every guidance branch, and gives
a velocity, so an x0, per layer and step: decoded, scored, and compared with the final x0. At the last layer that
is the model's own x0, exactly.

What a plain readout can and cannot show: the head was trained on the last layer's states alone. Where it reads
an answer from an earlier layer, the answer is there, and written as the last layer writes it. Where it reads
none, the layer may hold the answer in another basis. The tuned readout (Belrose et al. 2023, arXiv 2303.08112)
first maps the states by one affine map per layer, fitted by ridge regression to the last layer's states on
training scenes (seeds below 1,000,000), here used on others.

    python analyses/depth_lens.py --task maze --samples 32 --out runs/depth_lens
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
import xarray as xr
from torch import Tensor

import dit_lens as dl
from dit_lens import analysis, plot, report, study
from dit_lens.analysis.affine import AffineFit
from dit_lens.batch import Batch
from dit_lens.forward import Stepped

Maps = Mapping[tuple[str, int], tuple[Tensor, Tensor]]
"""Weight [channel, channel] and bias [channel] by (expert, layer)."""


@dataclass
class Options(study.Options):
    """Read every layer out."""

    samples: int = 32
    layers: str = "all"
    """Layers to read out: all, auto (5 of them), or such as 0,4,9; the last is always among them."""
    vis_steps: str = "auto"
    """Steps to read out at: all, auto (6 of them), or such as 0-4,19."""
    tuning_scenes: int = 64
    """Training scenes that the tuned readout is fitted on; 0 leaves it out."""
    ridge: float = 1e-3
    """Strength of the ridge regression, as a share of the states' variance."""
    sheets: int = 4
    """Samples whose readouts are drawn."""
    out: Path = Path("runs/depth_lens")


def main(options: Options) -> int:
    """Fit the maps, read out every sample, draw, save."""
    lens = dl.load(options.model)
    layers = sorted({*report.choose(options.layers, lens.layers, "layers"), lens.layers - 1})
    maps = tune(lens, layers, options) if options.tuning_scenes else {}
    results, code = study.study(
        options, "depth_lens", lens, lambda part: measure(lens, part, layers, maps, options)
    )
    conclude(results, options)
    sheets(lens, layers, maps, options)
    return code


def watched(batch: Batch, layers: list[int]) -> list[tuple[str, str, int]]:
    """Return the states that a readout needs."""
    return [("block", branch, layer) for branch in batch.layout.branches for layer in layers]


def tune(lens: dl.Lens, layers: list[int], options: Options) -> dict[tuple[str, int], tuple[Tensor, Tensor]]:
    """Fit, for each layer but the last, an affine map to the last layer's states; over all steps and branches."""
    scenes = study.training_samples(options, options.tuning_scenes)
    fits: dict[tuple[str, int], AffineFit] = {}
    for start in range(0, len(scenes), options.block):
        batch = lens.batch(
            [(s, i) for i, s in enumerate(scenes[start : start + options.block], start)],
            options.steps,
            options.cfg_scale,
            options.at_once,
        )
        x = batch.noise
        for step in range(batch.steps):
            out = batch.step(step, x, watch=watched(batch, layers))
            for (_, branch, layer), states in out.states.items():
                target = out.states["block", branch, layers[-1]].flatten(0, 3).float().cpu().numpy()
                tokens = states.flatten(0, 3).float().cpu().numpy()
                fit = fits.setdefault(
                    (batch.expert(step), layer), AffineFit(tokens.shape[1], target.shape[1], options.ridge)
                )
                fit.add(tokens, target)
            x = out.latents
    maps = {}
    for place, fit in fits.items():
        if place[1] != layers[-1]:
            weight, bias = fit.solve()
            maps[place] = torch.from_numpy(weight).float(), torch.from_numpy(bias).float()
    return maps


def read_out(batch: Batch, step: int, x: Tensor, out: Stepped, layer: int, maps: Maps) -> Tensor:
    """Return x0 [row, channel, frame, y, x] as if the network ended after a layer, guidance included."""
    velocities = {}
    for branch in batch.layout.branches:
        states = out.states["block", branch, layer]
        if (batch.expert(step), layer) in maps:
            weight, bias = (p.to(states) for p in maps[batch.expert(step), layer])
            states = states @ weight + bias
        dit = batch.lens.dits[batch.expert(step)]
        given = batch.keywords(branch) | {"latents": x, "timestep": batch.scheduler.timesteps[step]}
        velocities[branch] = batch.lens.family.readout(dit, states.flatten(1, 3), given)
    velocity = batch.guide(velocities)
    return batch.lens.family.x0(batch.scheduler, x, velocity, step)


def measure(
    lens: dl.Lens, samples: list[dl.Sample], layers: list[int], maps: Maps, options: Options
) -> xr.Dataset:
    """Read out every layer at the chosen steps: scores, and the distance to the final x0."""
    batch = lens.batch(study.pairs_of(samples, options), options.steps, options.cfg_scale, options.at_once)
    steps = report.choose(options.vis_steps, batch.steps, "vis-steps", auto=6)
    kinds = {"plain": {}, "tuned": maps} if maps else {"plain": {}}
    x, found = batch.noise, []
    for step in range(batch.steps):
        out = batch.step(step, x, watch=watched(batch, layers) if step in steps else [])
        if step in steps:
            found += [read_out(batch, step, x, out, layer, m) for m in kinds.values() for layer in layers]
        x = out.latents
    judged = study.outcomes(batch, torch.stack(found), x)
    shape = (len(steps), len(kinds), len(layers))
    names = ("step", "readout", "layer")
    text = np.dtypes.StringDType()
    coords = {"step": steps, "readout": np.array(list(kinds), text), "layer": layers}
    data = xr.Dataset(
        {n: ((*names, "pair"), v.values.reshape(*shape, -1)) for n, v in judged.items()},
        {**coords, "sigma": ("step", [batch.sigmas[s] for s in steps])},
    )
    return study.by_sample(data, samples, options)


def conclude(results: xr.Dataset, options: Options) -> None:
    """Summarise per (layer, step), the gain of tuning, draw, save."""
    summary = {"samples": results.sizes["sample"], "seeds": results.sizes["seed"]}
    for name in [n for n in ("solved", "score", "distance") if n in results]:
        values = results[name].astype(float)
        means = analysis.mean(values)
        summary[name] = {
            str(r): study.headline(means.sel(readout=r, drop=True)) for r in results.readout.values
        }
        if results.sizes["readout"] > 1:
            gain = analysis.effect(
                values.sel(readout="tuned", drop=True),
                values.sel(readout="plain", drop=True),
                along=["layer", "step"],
            )
            summary[f"tuned minus plain, {name}"] = study.headline(gain)
        title = f"Read out of every layer · {options.task}, {results.sizes['sample']} samples"
        figure = plot.heatmap(
            means["mean"].transpose("readout", "layer", "step"), value_label=name, title=title
        )
        plot.save(figure, options.out / f"{name}.png")
    study.finish(options, summary, means.attrs)


def sheets(lens: dl.Lens, layers: list[int], maps: Maps, options: Options) -> None:
    """Draw what is read out of every layer at the chosen steps, for a few samples."""
    samples = study.samples_of(options)[: options.sheets]
    batch = lens.batch(
        [(s, study.noise_seeds(s, options)[0]) for s in samples],
        options.steps,
        options.cfg_scale,
        options.at_once,
    )
    steps = report.choose(options.vis_steps, batch.steps, "vis-steps", auto=6)
    kinds = {"plain": {}, "tuned": maps} if maps else {"plain": {}}
    x, read = batch.noise, {}
    for step in range(batch.steps):
        out = batch.step(step, x, watch=watched(batch, layers) if step in steps else [])
        for kind, chosen in kinds.items() if step in steps else ():
            for layer in layers:
                read[kind, layer, step] = batch.decode(read_out(batch, step, x, out, layer, chosen))
        x = out.latents
    for kind in kinds:
        for i, sample in enumerate(samples):
            videos = [[read[kind, layer, step][i] for step in steps] for layer in layers]
            solved = None
            if sample.scorer is not None:
                solved = np.array([[sample.score(v).solved for v in row] for row in videos])
            title = f"{kind} readout of every layer, last frame · {sample.task} {sample.id}"
            frames = np.array([[v[-1] for v in row] for row in videos])
            figure = plot.depth_sheet(frames, layers, steps, solved=solved, title=title)
            plot.save(figure, options.out / sample.task / sample.id / f"depth_{kind}.png")


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
