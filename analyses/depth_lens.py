"""What does each layer already know? Read x0 out of every layer's states, as if the network ended there.

The head that follows the last block reads the states after every block, on every guidance branch. This gives
a velocity, so an x0, per layer and step, which is decoded, scored, and compared with the final x0. At the last layer it
is the model's own x0, exactly.

What a plain readout can and cannot show: the head was trained on the last layer's states alone. Where it reads
an answer from an earlier layer, the layer holds the answer, and writes it as the last layer does. Where the head reads
none, the layer may hold the answer in another basis. The tuned readout (Belrose et al. 2023, arXiv 2303.08112)
first maps the states by one affine map per layer, fitted by ridge regression to the last layer's states on
training scenes (seeds below 1,000,000), here used on others. A benchmark (--eval-root) has no training scenes:
it gets the plain readout.

Memory. States are held for as many layers at a time as fit into --memory, with the sums of their fits: a state of
Wan 14B (32,760 tokens x 5,120 channels, bfloat16) is 0.34 GB for each row and branch, a fit 0.42 GB for each expert. So
with --block 1, guidance and two experts a layer takes 1.5 GB, and 8 GB fit 4 layers with the last: 10 passes over the
scenes, one for every 4 layers. The finished maps are 0.1 GB each, 8 GB for 39 layers of two experts; what is read out, 8 MB
for each row, step, layer and readout. --layers and --vis-steps make all of it less.

    python analyses/depth_lens.py --task maze --samples 32 --out runs/depth_lens
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from tqdm import tqdm

import dit_lens as dl
from dit_lens import analysis, plot
from dit_lens.analysis.affine import AffineFit
from dit_lens.engine.batch import Batch
from dit_lens.engine.outcomes import by_sample, outcomes
from dit_lens.engine.stepped import Stepped
from dit_lens.experiments.cost import announce_fit
from dit_lens.experiments.options import Count, StudyOptions
from dit_lens.experiments.outcomes import BOUNDS, headline
from dit_lens.experiments.pictures import choose
from dit_lens.experiments.samples import (
    batch_of,
    folder_of,
    noise_seeds,
    pairs_of,
    steps_of,
    training_samples,
)
from dit_lens.experiments.samples import draw as draw_samples
from dit_lens.experiments.script import run_script
from dit_lens.experiments.study import Measured, once, study
from dit_lens.experiments.summary import write_summary
from dit_lens.tasks.pairs import label

Maps = Mapping[tuple[str, int], tuple[Tensor, Tensor]]
"""Weight [channel, channel] and bias [channel] by (expert, layer)."""


@dataclass
class Options(StudyOptions):
    """Read every layer out."""

    samples: Count = None
    """How many samples: scenes of --task (default: 32), or the first of --eval-root (default: all)."""
    layers: str = "all"
    """Layers to read out: all, auto (5 of them), or a list such as 0,4,9. The last is always among them."""
    vis_steps: str = "auto"
    """Steps to read out at: all, auto (6 of them), or a list such as 0-4,19."""
    tuning_scenes: int = 64
    """Training scenes that the tuned readout is fitted on. 0 leaves it out."""
    ridge: float = 1e-3
    """Strength of the ridge regression, as a share of the states' variance."""
    memory: float = 8.0
    """GB that states and sums may take, at least those of one layer. Layers that do not fit take another pass."""
    sheets: int = 4
    """Samples whose readouts are drawn."""
    out: Path = Path("runs/depth_lens")

    DEFAULT_SAMPLES: ClassVar[int] = 32
    AROUND: ClassVar[tuple[str, ...]] = ("sheets", "memory")


def main(options: Options) -> int:
    """Fit the maps, read out every sample, draw, save."""
    if not options.ridge >= 0:
        raise dl.TaskError(f"--ridge {options.ridge}: give 0 or more.")
    lens = options.load()
    layers = sorted({*choose(options.layers, lens.layers, "layers"), lens.layers - 1})
    choose(options.vis_steps, steps_of(options, lens), "vis-steps", auto=6)
    fit, maps = None, {}
    if options.tuning_scenes and options.draws_scenes:
        if len(layers) < 2:
            raise dl.TaskError(
                f"--layers {options.layers}: a tuned readout is fitted on layers below the last; give one, or --tuning-scenes 0."
            )
        scenes = training_samples(options, options.tuning_scenes)
        fit = once(options, "maps", lens, scenes, lambda: tune(lens, scenes, layers, options))
        maps = as_maps(fit)
    measured = study(
        options,
        "depth_lens",
        lens,
        lambda part: measure(lens, part, layers, maps, options),
        fit,
        runs=lambda batch: runs_of(batch, layers, options),
    )
    conclude(measured, options)
    shown = [s for s in draw_samples(options, lens) if label(s) in measured.results.sample]
    for sample in shown[: options.sheets]:
        read = once(
            options,
            f"sheet-{sample.task}-{sample.id}",
            lens,
            [sample],
            lambda sample=sample: sheet(lens, sample, layers, maps, options),
            fit,
        )
        draw(read, folder_of(options.out, sample))
    return measured.exit_code


def watched(batch: Batch, layers: list[int]) -> list[tuple[str, str, int]]:
    """Return the states that a readout needs."""
    return [("block", branch, layer) for branch in batch.layout.branches for layer in layers]


def passes(batch: Batch, layers: list[int], options: Options, fits: bool = False) -> list[list[int]]:
    """Cut layers into as many as fit into memory at a time: their states, and with `fits` sums and the last layer's states."""
    place = ("block", batch.layout.branches[0], layers[0])
    state = batch.step(0, batch.noise[:1], rows=[0], watch=[place]).states[place]
    states = state.nbytes * len(batch.pairs) * len(batch.layout.branches)
    sums = 16 * state.shape[-1] ** 2 * len(batch.layout.experts) if fits else 0
    most = max(1, int((options.memory * 1e9 - states * fits) // (states + sums)))
    return [layers[i : i + most] for i in range(0, len(layers), most)]


def runs_of(batch: Batch, layers: list[int], options: Options) -> float:
    """Return how many whole runs a pair costs: at a step that is read out, layers that do not fit take the step again."""
    steps = choose(options.vis_steps, batch.steps, "vis-steps", auto=6)
    return 1 + (len(passes(batch, layers, options)) - 1) * len(steps) / batch.steps


def tune(lens: dl.Lens, scenes: list[dl.Sample], layers: list[int], options: Options) -> xr.Dataset:
    """Fit, for each layer but the last, an affine map to the last layer's states; over all steps and branches.

    Returns:
        `weight` [expert, layer, channel, target] and `bias` [expert, layer, target].
    """
    announce_fit(
        "the maps of depth_lens",
        lens,
        scenes,
        options,
        lambda batch: len(passes(batch, layers[:-1], options, fits=True)),
    )
    pairs = [(s, i) for i, s in enumerate(scenes)]
    parts = [pairs[i : i + options.block] for i in range(0, len(pairs), options.block)]
    first = batch_of(lens, parts[0], options)
    maps = {}
    for group in passes(first, layers[:-1], options, fits=True):
        fits: dict[tuple[str, int], AffineFit] = {}
        for part in tqdm(parts, desc=f"fitting layers {group[0]} to {group[-1]}", leave=False):
            batch = batch_of(lens, part, options)
            add(fits, batch, group, layers[-1], options.ridge)
        maps |= {place: fit.solve() for place, fit in fits.items()}
    experts = np.array(sorted({expert for expert, _ in maps}), np.dtypes.StringDType())
    weight, bias = (np.array([[maps[e, i][k] for i in layers[:-1]] for e in experts], "f4") for k in (0, 1))
    dims = ("expert", "layer", "channel", "target")
    return xr.Dataset(
        {"weight": (dims, weight), "bias": ((*dims[:2], "target"), bias)},
        {"expert": experts, "layer": layers[:-1]},
    )


def add(
    fits: dict[tuple[str, int], AffineFit], batch: Batch, group: list[int], last: int, ridge: float
) -> None:
    """Run a batch, and add the states of a few layers, with the last layer's, to their fits."""
    x = batch.noise
    for step in range(batch.steps):
        out = batch.step(step, x, watch=watched(batch, [*group, last]))
        for branch in batch.layout.branches:
            target = out.states.pop(("block", branch, last)).flatten(0, 3).float().cpu().numpy()
            for layer in group:
                tokens = out.states.pop(("block", branch, layer)).flatten(0, 3).float().cpu().numpy()
                place = batch.expert(step), layer
                fits.setdefault(place, AffineFit(tokens.shape[1], target.shape[1], ridge)).add(tokens, target)
        x = out.latents


def as_maps(fit: xr.Dataset) -> Maps:
    """Return what was fitted by (expert, layer)."""
    return {
        (expert, layer): tuple(torch.from_numpy(fit[n].values[e, i]) for n in ("weight", "bias"))
        for e, expert in enumerate(fit.expert.values.tolist())
        for i, layer in enumerate(fit.layer.values.tolist())
    }


def read_out(batch: Batch, step: int, x: Tensor, out: Stepped, layer: int, maps: Maps) -> Tensor:
    """Return x0 [row, channel, frame, y, x] as if the network ended after a layer, guidance included."""
    states = {branch: out.states["block", branch, layer] for branch in batch.layout.branches}
    if (batch.expert(step), layer) in maps:
        weight, bias = maps[batch.expert(step), layer]
        states = {branch: h @ weight.to(h) + bias.to(h) for branch, h in states.items()}
    return batch.readout(step, states, x)


def read_all(
    batch: Batch, layers: list[int], steps: list[int], maps: Maps, options: Options
) -> tuple[dict[tuple[int, str, int], Tensor], Tensor]:
    """Run a batch; return x0 of every (step, readout, layer), [row, channel, frame, y, x], and the last latents."""
    kinds = {"plain": {}, "tuned": maps} if maps else {"plain": {}}
    groups = passes(batch, layers, options)
    x, read = batch.noise, {}
    for step in range(batch.steps):
        for group in groups if step in steps else [[]]:
            out = batch.step(step, x, watch=watched(batch, group))
            for kind, layer in product(kinds, group):
                read[step, kind, layer] = read_out(batch, step, x, out, layer, kinds[kind])
        x = out.latents
    return {place: read[place] for place in product(steps, kinds, layers)}, x


def measure(
    lens: dl.Lens, samples: list[dl.Sample], layers: list[int], maps: Maps, options: Options
) -> xr.Dataset:
    """Read out every layer at the chosen steps: scores, and the distance to the final x0."""
    pairs = pairs_of(samples, options)
    batch = batch_of(lens, pairs, options)
    steps = choose(options.vis_steps, batch.steps, "vis-steps", auto=6)
    read, ended = read_all(batch, layers, steps, maps, options)
    judged = outcomes(batch, torch.stack(list(read.values())), ended)
    kinds = list(dict.fromkeys(kind for _, kind, _ in read))
    coords = {"step": steps, "readout": np.array(kinds, np.dtypes.StringDType()), "layer": layers}
    data = xr.Dataset(
        {
            n: ((*coords, "pair"), v.values.reshape(len(steps), len(kinds), len(layers), -1))
            for n, v in judged.items()
        },
        {**coords, "sigma": ("step", [batch.sigmas[s] for s in steps])},
    )
    return by_sample(data, pairs)


LABELS = {
    "solved": "solved (share)",
    "score": "score",
    "distance": "RMS distance to the final latents",
}


def conclude(measured: Measured, options: Options) -> None:
    """Summarise per (layer, step), the gain of tuning, draw, save."""
    results = measured.results
    summary = {"samples": results.sizes["sample"], "seeds": results.sizes["seed"]}
    for name in [n for n in ("solved", "score", "distance") if n in results]:
        values = results[name].astype(float)
        means = analysis.mean(values, bounds=BOUNDS.get(name))
        summary[name] = {str(r): headline(means.sel(readout=r, drop=True)) for r in results.readout.values}
        if results.sizes["readout"] > 1:
            gain = analysis.effect(
                values.sel(readout="tuned", drop=True),
                values.sel(readout="plain", drop=True),
                bounds=BOUNDS.get(name),
                along=["layer", "step"],
            )
            summary[f"tuned minus plain, {name}"] = headline(gain)
        title = f"Read out of every layer · {options.source}, {results.sizes['sample']} samples"
        figure = plot.heatmap(
            means["mean"].transpose("readout", "layer", "step"), value_label=LABELS[name], title=title
        )
        plot.save(figure, options.out / f"{name}.png")
    write_summary(options, summary, measured.left_out, means.attrs)


def sheet(lens: dl.Lens, sample: dl.Sample, layers: list[int], maps: Maps, options: Options) -> xr.Dataset:
    """Decode what is read out of every layer of one run: its last `frame`, and whether it is `solved`."""
    pair = sample, noise_seeds(sample, options)[0]
    batch = batch_of(lens, [pair], options)
    steps = choose(options.vis_steps, batch.steps, "vis-steps", auto=6)
    read, _ = read_all(batch, layers, steps, maps, options)
    frames, solved = {}, {}
    for place, x0 in read.items():
        video = batch.decode(x0)[0]
        frames[place] = video[-1]
        solved[place] = sample.scorer is not None and sample.score(video).solved
    kinds = list(dict.fromkeys(kind for _, kind, _ in read))
    coords = {"step": steps, "readout": np.array(kinds, np.dtypes.StringDType()), "layer": layers}
    shape = tuple(map(len, coords.values()))
    pictures = np.array(list(frames.values()))
    data = {"frame": ((*coords, "height", "width", "rgb"), pictures.reshape(*shape, *pictures.shape[1:]))}
    if sample.scorer is not None:
        data["solved"] = (tuple(coords), np.array(list(solved.values())).reshape(shape))
    title = f"last frame · {sample.task} {sample.id}"
    return xr.Dataset(data, {**coords, "sigma": ("step", [batch.sigmas[s] for s in steps])}, {"title": title})


def draw(read: xr.Dataset, folder: Path) -> None:
    """Draw a sheet for each readout."""
    for kind in read.readout.values.tolist():
        one = read.sel(readout=kind).transpose("layer", "step", ...)
        figure = plot.depth_sheet(
            one.frame.values,
            one.layer.values.tolist(),
            one.step.values.tolist(),
            solved=one.solved.values if "solved" in one else None,
            sigmas=one.sigma.values.tolist(),
            title=f"{kind} readout of every layer, {read.attrs['title']}",
        )
        plot.save(figure, folder / f"depth_{kind}.png")


if __name__ == "__main__":
    run_script(main, Options)
