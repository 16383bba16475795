"""What do the states of a layer say of the answer, at which step, and does the run need what they say?

A linear probe reads one token and says whether the answer takes its cell: is the cell of a maze on the path, does the object
get a ring, is the goal gone to (`dit_lens.experiments.token_questions`). It is fitted at each layer and step, on the last latent
frame, and read on scenes that it was not fitted on (`--folds`; scenes of one picture are in one fold). The measure is balanced
accuracy within a run: whoever says the same of all cells gets one half. Beside it

- selectivity: the same probe on a control task, a random label for every place of the board (Hewitt & Liang 2019,
  arXiv 1909.03368): what is left is not the probe's own memory;
- what is known without the layer: probes on the input of layer 0, on x_s, on the first frame around the cell, on the cell's place
  alone, and the ideal denoiser, which knows all right answers and x_s (of a task with one answer it is always right);
- transfer: the probe of one step, read at another.

Then the direction is taken away in all tokens at every step (`dl.ablate(to="token_mean", direction=...)`), in one layer, and in
all that are probed: does the answer change? It is the difference of the means of a yes and a no, without which no linear probe
reads more than chance (Belrose et al. 2023, arXiv 2306.03819), and beside it the probe's own, which leaves others. Placebos
change every token by as much along another direction: a random one, or that of the control task. What a new probe still reads
after the cut, at the same layer and step, stands beside it.

Labels are what the run's own video shows (`--label shown`), or the right answer where there is one alone (`--label right`, which
an untrained model can be asked, too: `--weights random`).

    python analyses/probes.py --task maze --samples 64 --out runs/probes
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import xarray as xr

import dit_lens as dl
from dit_lens import analysis, plot
from dit_lens.errors import TaskError
from dit_lens.experiments.cost import runs_of_arms
from dit_lens.experiments.options import StudyOptions
from dit_lens.experiments.outcomes import family, headline
from dit_lens.experiments.pictures import choose
from dit_lens.experiments.probe_cuts import MEANS, MEANS_PLACEBO, PROBE, PROBE_PLACEBO, arms_of, cuts
from dit_lens.experiments.samples import batch_of, draw, pairs_of, require_scorer
from dit_lens.experiments.script import run_script
from dit_lens.experiments.study import Measured, once, study
from dit_lens.experiments.summary import write_summary
from dit_lens.experiments.token_probes import ACCURACIES, DIRECTIONS, fit
from dit_lens.experiments.token_questions import question_of
from dit_lens.experiments.token_states import FEATURES, read_tokens
from dit_lens.tasks.pairs import label


@dataclass
class Options(StudyOptions):
    """Probe the states of tokens, and take away what the probes read."""

    layers: str = "auto"
    """Layers that are probed: all, auto (5 of them), or a list such as 0,4,9."""
    at_steps: str = "auto"
    """Steps at which they are probed: all, auto (5 of them), or a list such as 0-9."""
    label: Literal["shown", "right"] = "shown"
    """What is asked for: what the run's own video shows, or the right answer, where there is one alone."""
    folds: int = 4
    """Parts of the scenes; a scene is read by a probe fitted on the other parts."""
    controls: int = 2
    """Control tasks, of which the mean is reported."""
    cut: bool = True
    """Take the probes' directions away from the runs, beside placebos."""
    out: Path = Path("runs/probes")


def main(options: Options) -> int:
    """Read, fit, cut, draw, save."""
    refuse(options)
    lens = options.load()
    choose(options.layers, lens.layers, "layers")
    choose(options.at_steps, options.steps or lens.family.call.default_steps, "at-steps")
    asked = replace(options, out=options.out / "states")
    read = study(asked, "probes, states", lens, lambda part: measure(lens, part, options), runs=lambda _: 1.0)
    present = {*read.results.sample.values.tolist()}
    samples = [sample for sample in draw(options, lens) if label(sample) in present]
    probes = once(options, "probes", lens, samples, lambda: fitted(options), using=named(read.results))
    probes = probes[
        sorted(map(str, probes.data_vars))
    ]  # a store lists them in any order, and the order is part of a key
    measured = study(
        options,
        "probes",
        lens,
        lambda part: of_part(lens, part, probes, options),
        using=probes,
        runs=(lambda batch: runs_of_arms(batch, arms_of(batch, probes, options.draw)))
        if options.cut
        else None,
    )
    conclude(Measured(measured.results, {**read.left_out, **measured.left_out}), options)
    return max(read.exit_code, measured.exit_code)


def refuse(options: Options) -> None:
    """Refuse what cannot be probed, before anything is loaded.

    Raises:
        TaskError: it names the option.
    """
    require_scorer(options)
    question_of(options.task)
    if options.folds < 2 or options.controls < 1:
        raise TaskError(
            f"--folds {options.folds} --controls {options.controls}: give 2 folds and 1 control task at least."
        )
    samples = list(draw(options))
    if len(samples) < 2 * options.folds:
        raise TaskError(
            f"--samples {len(samples)}: --folds {options.folds} takes {2 * options.folds} at least."
        )
    if options.label == "right" and any(len(sample.answers) > 1 for sample in samples):
        raise TaskError(
            f"--label right: scenes of {options.task} have several right answers; take --label shown."
        )


def named(read: xr.Dataset) -> xr.Dataset:
    """Return what was read with a key of its content: other states make other probes."""
    values = [read[name].values for name in sorted(map(str, read.data_vars))]
    return read.assign_attrs(key=hashlib.sha256(b"".join(one.tobytes() for one in values)).hexdigest())


def fitted(options: Options) -> xr.Dataset:
    """Fit the probes to what was read."""
    read = xr.open_zarr(options.out / "states" / "results.zarr", consolidated=False).load()
    return fit(read, options.folds, options.controls, options.draw)


def measure(lens: dl.Lens, samples: list[dl.Sample], options: Options) -> xr.Dataset:
    """Run every pair clean, and read its tokens."""
    batch = batch_of(lens, pairs_of(samples, options), options)
    layers = choose(options.layers, lens.layers, "layers")
    steps = choose(options.at_steps, batch.steps, "at-steps")
    return read_tokens(lens, batch, question_of(options.task), layers, steps, options.label)


def of_part(lens: dl.Lens, samples: list[dl.Sample], probes: xr.Dataset, options: Options) -> xr.Dataset:
    """Return what the probes say of some samples, and what cuts come to."""
    said = probes.sel(sample=[label(sample) for sample in samples]).drop_vars(DIRECTIONS)
    if not options.cut:
        return said
    batch = batch_of(lens, pairs_of(samples, options), options)
    return xr.merge([said, cuts(batch, probes, options.draw)], compat="override", join="exact")


def conclude(measured: Measured, options: Options) -> None:
    """Say what is read where, beside what it has to beat, and what cuts come to; draw; save."""
    results = measured.results
    counted = results.counted.astype(bool)
    summary: dict[str, Any] = {
        "samples": results.sizes["sample"],
        "seeds": results.sizes["seed"],
        "question": question_of(options.task).about,
        "intervals": "over the scenes that are read, given the probes: what other scenes to fit on would change is not in them",
        "runs that count": f"{int(counted.sum())} of {counted.size}: the answer can be read, with a yes and a no",
    }
    accuracy = {name: by_scene(results, name) for name in (*ACCURACIES, *FEATURES, "ideal", "transfer")}
    grid = analysis.mean(accuracy["state"], along=["layer", "step"], bounds=(0, 1))
    selective = analysis.effect(
        accuracy["state"], accuracy["state_control"], along=["layer", "step"], bounds=(0, 1)
    )
    summary["balanced accuracy"] = headline(grid)
    summary["selectivity"] = headline(selective)
    middle = results.layer.values[results.sizes["layer"] // 2].item()
    summary |= beside(accuracy, middle)
    for name in ("means", "probe"):
        after = analysis.mean(accuracy[f"after_{name}"], bounds=(0, 1))
        summary[f"balanced accuracy of a new probe, {name} cut"] = headline(after)
    at_middle = analysis.mean(accuracy["transfer"].sel(layer=middle), bounds=(0, 1))
    summary[f"transfer from step to step, layer {middle}"] = headline(at_middle)
    summary |= of_cuts(results, options) if "changed" in results else {}
    write_summary(options, summary, measured.left_out, grid.attrs)
    draw_grids({"balanced_accuracy": grid, "selectivity": selective, "transfer": at_middle}, options)
    draw_lines(accuracy, middle, options)


def by_scene(results: xr.Dataset, name: str) -> xr.DataArray:
    """Return an accuracy by scene: the mean over its runs that count; scenes without any are left out."""
    return results[name].where(results.counted.astype(bool)).mean("seed").dropna("sample", how="all")


def beside(accuracy: dict[str, xr.DataArray], middle: int) -> dict[str, Any]:
    """Say what else reads the answer, and what the states of the middle layer, over all steps, read beyond it."""
    out: dict[str, Any] = {}
    states = accuracy["state"].sel(layer=middle, drop=True).mean("step")
    control = accuracy["state_control"].sel(layer=middle, drop=True).mean("step")
    out[f"selectivity, layer {middle}, mean over steps"] = headline(
        analysis.effect(states, control, bounds=(0, 1))
    )
    for name, words in [*FEATURES.items(), ("ideal", "ideal denoiser")][1:]:
        if not accuracy[name].sizes["sample"]:
            out[f"balanced accuracy, {words}"] = (
                "not known: the right answers of these scenes are not enumerable"
            )
            continue
        out[f"balanced accuracy, {words}"] = headline(analysis.mean(accuracy[name], bounds=(0, 1)))
        mean = accuracy[name].mean("step") if "step" in accuracy[name].dims else accuracy[name]
        difference = analysis.effect(states, mean, bounds=(0, 1))
        out[f"states of layer {middle} minus {words}, mean over steps"] = headline(difference)
    return out


def of_cuts(results: xr.Dataset, options: Options) -> dict[str, Any]:
    """Say how often the answer changes under a cut, beside placebos; draw."""
    changed = results.changed.astype(float)
    means = analysis.mean(changed, along=["kind", "place"], bounds=(0, 1))
    figure = plot.curves(
        means.transpose("kind", "place"),
        "place",
        value_label="answers that change (share)",
        title=f"What a probe reads, taken away · {options.source}",
        limits=(-0.03, 1.03),
    )
    plot.save(figure, options.out / "changed_by_cut.png")
    against = {
        f"answers changed, {kind} minus {placebo}": headline(
            analysis.effect(
                changed.sel(kind=kind, drop=True),
                changed.sel(kind=placebo, drop=True),
                along="place",
                bounds=(0, 1),
            )
        )
        for kind, placebo in ((MEANS, MEANS_PLACEBO), (PROBE, PROBE_PLACEBO))
    }
    solved = analysis.effect(results.solved, results.clean_solved, along=["kind", "place"], bounds=(0, 1))
    return {
        "answers changed by cuts": headline(means),
        **against,
        "solved, cut minus clean": headline(solved),
        "distance of the last latents, by cut": headline(analysis.mean(results.distance)),
    }


def draw_grids(grids: dict[str, xr.Dataset], options: Options) -> None:
    """Draw what is read by layer and step, and from step to step."""
    titles = {
        "balanced_accuracy": f"{question_of(options.task).about} Read by a linear probe",
        "selectivity": "Balanced accuracy, minus that of a control task",
        "transfer": "Fitted at a step (rows), read at another",
    }
    for name, grid in grids.items():
        rows = "step" if name == "transfer" else "layer"
        columns = "tested" if name == "transfer" else "step"
        figure = plot.heatmap(
            grid.transpose(rows, columns, missing_dims="ignore"),
            value_label="balanced accuracy",
            title=f"{titles[name]} · {options.source}",
            diverging=name == "selectivity",
            limits=None if name == "selectivity" else (0.5, 1.0),
        )
        plot.save(figure, options.out / f"{name}.png")


def draw_lines(accuracy: dict[str, xr.DataArray], middle: int, options: Options) -> None:
    """Draw the middle layer beside what it has to beat."""
    lines = {f"layer {middle}": accuracy["state"].sel(layer=middle, drop=True)}
    lines |= {"control task": accuracy["state_control"].sel(layer=middle, drop=True)}
    lines |= {FEATURES[name]: accuracy[name] for name in ("input", "latents")}
    if accuracy["ideal"].sizes["sample"]:
        lines["ideal denoiser"] = accuracy["ideal"]
    figure = plot.curves(
        family("reads", {name: analysis.mean(values, bounds=(0, 1)) for name, values in lines.items()}),
        "step",
        value_label="balanced accuracy",
        title=f"{question_of(options.task).about} Layer {middle} and what it has to beat · {options.source}",
        reference=analysis.mean(accuracy["first_frame"], bounds=(0, 1)),
        reference_label="first frame",
        marks=True,
        limits=(0.3, 1.03),
    )
    plot.save(figure, options.out / "beside_by_step.png")


if __name__ == "__main__":
    run_script(main, Options)
