"""What does a layer do: from which layer on does a state tell the object that the prompt names from the others?

*Demystifying Video Reasoning* (arXiv 2603.16870) reads roles of layers off maps of energy. Energy of raw states is mostly what
all tokens share, so three numbers stand side by side, each on an object over the same on the background:

- raw: the mean norm of the tokens;
- centred: the same, once the mean over all tokens of the state is taken off;
- variance: the variance over the tokens, summed over channels.

Each of all channels, and without the `--k` channels of the largest mean absolute value of the very state. Objects come from the
scene's masks: a token is an object's from `--threshold` of its pixels on, and background where it is no object's.

`circle` asks for discs or for squares of a scene that holds both, so its prompt names an object. Contrasts of named minus others:

- own prompt: the finding. Its first layer is the first one at which the simultaneous band over layers is off 0.
- other prompt: the same scene, noise and objects under the other prompt, which names the others: the sign has to turn round.
- by the prompt alone: half the difference of these two. What discs and squares differ in by themselves drops out, and so does
  most of what scenes differ in, so that it is off 0 where it is tiny, too: read its size, beside that of random weights.

Nulls, in which nothing should be found: the masks of another scene; the masks moved by half of the board; and the same command
with `--weights random`. Other tasks have no such object: each of theirs is compared with the masks of another scene.

Samples of --eval-root have no masks of their own: `--masks DIR` takes one file each (`dit_lens.experiments.masks` says which).

    python analyses/layer_roles.py --task circle --samples 64 --out runs/layer_roles
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import xarray as xr
from torch import Tensor

import dit_lens as dl
from dit_lens import analysis, plot
from dit_lens.analysis.masked import MEASURES, region_energy
from dit_lens.analysis.massive import largest_channels
from dit_lens.engine.batch import Batch
from dit_lens.engine.outcomes import by_sample
from dit_lens.errors import TaskError
from dit_lens.experiments.clean_states import look_at_states
from dit_lens.experiments.masks import digests, masks_of
from dit_lens.experiments.object_contrasts import (
    ALL,
    LESS,
    PRIMARY,
    against_another_scene,
    at_step,
    complete,
    contrasts,
    of_contrasts,
    summarise,
)
from dit_lens.experiments.object_regions import ELSEWHERE, MOVED, OWN, regions_by_kind
from dit_lens.experiments.options import StudyOptions
from dit_lens.experiments.outcomes import family
from dit_lens.experiments.pictures import choose
from dit_lens.experiments.primary import primary_outcome
from dit_lens.experiments.samples import Drawn, batch_of, draw, pairs_of, scenes
from dit_lens.experiments.script import run_script
from dit_lens.experiments.study import Measured, study
from dit_lens.experiments.summary import write_summary
from dit_lens.models.options import Unset
from dit_lens.tasks.objects import KINDS
from dit_lens.tasks.pairs import label

TEXT = np.dtypes.StringDType()


@dataclass
class Options(StudyOptions):
    """Measure states on objects and elsewhere, layer by layer."""

    task: str = "circle"
    """The task. Of circle the prompt names an object."""
    layers: str = "all"
    """Layers that are measured: all, auto (5 of them), or a list such as 0,4,9."""
    vis_steps: str = "all"
    """Steps that are measured, beside step 0: all, auto (5 of them), or a list such as 0,5,19."""
    k: int = 3
    """How many of a state's largest channels the second measurement leaves out."""
    threshold: float = 0.1
    """Share of a token's pixels from which on it is an object's."""
    masks: Unset[Path] = None
    """Folder of masks, one PNG or NPY for each sample. Default: the masks of the scenes."""
    out: Path = Path("runs/layer_roles")

    AROUND: ClassVar[tuple[str, ...]] = ("masks",)  # what is in the files counts, not where they are


def main(options: Options) -> int:
    """Measure every sample under its prompts, compare, draw, save."""
    if options.k < 1 or not 0 < options.threshold <= 1:
        raise TaskError(
            f"--k {options.k} --threshold {options.threshold}: give a k of 1 or more, and a share over 0 and up to 1."
        )
    if not options.draws_scenes and options.masks is None:
        raise TaskError(
            "--eval-root and --image have no masks of their own: give --masks DIR, with one PNG or NPY for each sample."
        )
    if options.masks is not None and not options.masks.is_dir():
        raise TaskError(f"--masks {options.masks}: there is no such folder.")
    lens = options.load()
    # A picture that is asked both questions is one scene: it is measured under both prompts anyway.
    drawn = (
        Drawn(scenes(options, pictures=True), options.changes)
        if options.draws_scenes
        else draw(options, lens)
    )
    samples = list(drawn)
    files = {} if options.masks is None else digests(samples, options.masks)
    names = sorted({name for sample in samples for name in masks_of(sample, options.masks)})
    measured = study(
        options,
        "layer_roles",
        lens,
        lambda part: measure(lens, part, options, names, files),
        runs=lambda batch: (
            (1 + has_other_prompt(options)) * (1 + places(lens, batch, options)[0][-1]) / batch.steps
        ),
        drawn=drawn,
    )
    conclude(measured, options)
    return measured.exit_code


def has_other_prompt(options: Options) -> bool:
    """Say whether the samples have another prompt on the same scene."""
    return options.draws_scenes and options.task == "circle" and options.masks is None


def places(lens: dl.Lens, batch: Batch, options: Options) -> tuple[list[int], list[int]]:
    """Return the steps and the layers that are measured; step 0 is always among them."""
    steps = sorted({0, *choose(options.vis_steps, batch.steps, "vis-steps")})
    return steps, choose(options.layers, lens.layers, "layers")


def measure(
    lens: dl.Lens, samples: list[dl.Sample], options: Options, names: list[str], files: dict[str, str]
) -> xr.Dataset:
    """Run every pair under its prompts, and measure its states in the regions of every kind of masks.

    Args:
        lens: the model.
        samples: of one shape.
        options: of the script.
        names: of the objects of all samples.
        files: hash of each mask file by sample: another file makes another result.
    """
    pairs = pairs_of(samples, options)
    prompts = {label(s): prompts_of(s, options) for s in samples}
    batch = batch_of(lens, [(one, seed) for s, seed in pairs for one in prompts[label(s)]], options)
    steps, layers = places(lens, batch, options)
    kinds = [OWN, MOVED, *([ELSEWHERE] if options.masks is None else [])]
    regions = {
        label(s): regions_by_kind(s, kinds, names, batch.grid, options.threshold, options.masks)
        for s in samples
    }
    values = measure_states(batch, [regions[label(s)] for s, _ in batch.pairs], steps, layers, options.k)
    count = len(batch.pairs) // len(pairs)
    dims = ("pair", "prompt", "step", "branch", "layer", "channels", "measure", "masks", "object")
    values = values.reshape(len(pairs), count, *values.shape[1:6], len(kinds), len(names) + 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        over_background = values[..., :-1] / values[..., -1:]
    data = {name: (dims[:6] + dims[7:], over_background[..., i, :, :]) for i, name in enumerate(MEASURES)}
    own = np.stack([regions[label(s)][0].sum((1, 2, 3)) for s, _ in pairs])
    data["tokens"] = (("pair", "region"), own)
    labels = {
        "prompt": ["own", "other"][:count],
        "branch": list(batch.layout.branches),
        "channels": [ALL, LESS],
        "masks": kinds,
        "object": names,
        "region": [*names, "background"],
    }
    coords = {dim: np.array(texts, TEXT) for dim, texts in labels.items()}
    sigma = ("step", [batch.sigmas[step] for step in steps])
    return by_sample(xr.Dataset(data, {**coords, "step": steps, "layer": layers, "sigma": sigma}), pairs)


def prompts_of(sample: dl.Sample, options: Options) -> list[dl.Sample]:
    """Return a sample, and where its task has another prompt on the same scene, the sample that names the other objects."""
    if not has_other_prompt(options):
        return [sample]
    (kind,) = (kind for kind in KINDS if kind not in sample.prompt)
    other = dl.tasks.circle(int(sample.id), kind=kind, num_frames=sample.num_frames)
    return [sample, other.with_(**options.changes)]


def measure_states(
    batch: Batch, regions: Sequence[np.ndarray], steps: list[int], layers: list[int], k: int
) -> np.ndarray:
    """Run all rows, and measure their states with all channels and without the k largest.

    Returns:
        [row, step, branch, layer, channels, measure, region], the regions of all kinds of masks side by side.
    """
    shape = len(steps), len(batch.layout.branches), len(layers), 2, len(MEASURES)
    flat = [one.reshape(-1, int(np.prod(batch.grid))) for one in regions]
    values = np.full((len(flat), *shape, len(flat[0])), np.nan)

    def look(row: int, at: tuple[int, int, int], tokens: Tensor) -> None:
        inside = torch.from_numpy(flat[row]).to(tokens)
        left = torch.ones(tokens.shape[1], dtype=torch.bool)
        left[largest_channels(tokens.abs().mean(0).double().cpu().numpy(), k).tolist()] = False
        less = tokens[:, left.to(tokens.device)]
        values[row][at] = [region_energy(part, inside) for part in (tokens, less)]

    look_at_states(batch, steps, layers, look)
    return values


def conclude(measured: Measured, options: Options) -> None:
    """Say from which layer on the named object is told from the others, beside the controls; draw; save."""
    results = measured.results.isel(branch=0)
    steps = sorted({0, int(results.step.values[-1])})
    named, objects = contrasts(results, "centred", ALL), against_another_scene(results)
    counted = results.tokens.mean(("sample", "seed"))
    primary = of_primary(named[PRIMARY]) if named else {"not measured": "no prompt names an object"}
    summary = {
        "samples": results.sizes["sample"],
        "seeds": results.sizes["seed"],
        "weights": options.weights,
        "branch": str(results.branch.values),
        "largest channels left out": options.k,
        "share of a token's pixels": options.threshold,
        "tokens": dict(zip(counted.region.values.tolist(), counted.values.tolist(), strict=True)),
        "centred, named minus others, step 0": primary,
        **(of_contrasts(results, steps) if named else {}),
        "centred, on an object minus on the masks of another scene": {
            f"step {step}": {name: at_step(values, step) for name, values in objects.items()}
            for step in steps
        },
    }
    summaries = [summarise(v.isel(step=0), "layer") for v in (*named.values(), *objects.values())]
    attrs = next((one.attrs for one in summaries if one is not None), None)
    write_summary(options, summary, measured.left_out, attrs)
    draw_objects(results, options)
    draw_contrasts(named, steps, options)


def of_primary(values: xr.DataArray) -> dict[str, Any]:
    """Return the primary outcome, [sample, seed, step, layer], at step 0, tested by its band over the layers."""
    found = at_step(values, 0)
    if "not measured" in found:
        return found
    at_first = values.sel(step=0, drop=True)
    find = partial(analysis.mean, at_first, along="layer", bounds=(-np.inf, np.inf))
    return {**primary_outcome(find), **found}


def draw_objects(results: xr.Dataset, options: Options) -> None:
    """Draw the layer x step maps of the centred energy on every object."""
    values = results.centred.sel(channels=ALL, prompt="own", masks=OWN, drop=True)
    means = {
        name: one.mean(("sample", "seed"))
        for name in values.object.values.tolist()
        if (one := complete(values.sel(object=name, drop=True))).sizes["sample"]
    }
    if not means:
        return
    maps = xr.concat(list(means.values()), xr.Variable("object", np.array(list(means), TEXT)))
    figure = plot.heatmap(
        maps.transpose("object", "layer", "step"),
        value_label="centred energy, object over background",
        title=f"Centred energy on objects · {options.source}, {results.sizes['sample']} samples",
    )
    plot.save(figure, options.out / "centred_by_layer_and_step.png")


def draw_contrasts(named: dict[str, xr.DataArray], steps: Sequence[int], options: Options) -> None:
    """Draw named minus others: by layer and step, and against the layer beside the controls."""
    summaries = {name: one for name, v in named.items() if (one := summarise(v, "layer", "step")) is not None}
    if PRIMARY not in summaries:
        return
    value_label = "centred energy over background,\nnamed minus others"
    title = f"The named object against the others · {options.source}"
    map_of = summaries[PRIMARY].transpose("layer", "step")
    figure = plot.heatmap(map_of, value_label=value_label, title=title, diverging=True)
    plot.save(figure, options.out / "named_minus_others.png")
    for step in steps:
        lines = {name: summarise(named[name].sel(step=step), "layer") for name in summaries}
        curves = family("contrast", {name: line for name, line in lines.items() if line is not None})
        figure = plot.curves(curves, "layer", value_label=value_label, title=f"{title} · step {step}")
        plot.save(figure, options.out / f"named_minus_others_step_{step:03d}.png")


if __name__ == "__main__":
    run_script(main, Options)
