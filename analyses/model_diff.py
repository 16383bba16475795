"""In which layers and steps do two models of one architecture differ, and does what one holds change the other's answer?

A base model and its LoRA, two checkpoints, a model and its distilled version: `--model` and `--other` (or `--other-lora`,
`--other-weights` of the same model), from the same noise and prompts, with the same schedule. Other architectures are refused.

1. States: debiased CKA, the relative norm of the difference, and that of the difference of the token means, per layer and step.
   Each model runs its own course, so differences add up along the steps; and the other model takes each step from the latents of
   the first, where only the weights differ. Floors beside it: two noise seeds of one scene, and two scenes, in the first model.
2. Patches: what the other model holds after a layer, at every step, is put into the run of the first (`dl.patch(...,
   other_model=True)`). How far does it go to the other model's end (`dl.analysis.leaning`, from -1 to 1), and does it take over
   its answer? Controls: its own states (nothing may change), and those that it holds itself from other noise.
3. `--strengths`: the LoRA of `--other-lora` at several strengths: how far each goes from the first model's end to the other's.

    python analyses/model_diff.py --model organism-base --other-lora puzzles --strengths 0 0.5 1 --task maze
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

import dit_lens as dl
from dit_lens import analysis, plot
from dit_lens.engine.batch import Batch
from dit_lens.engine.outcomes import by_sample
from dit_lens.errors import TaskError
from dit_lens.experiments.model_pairs import (
    OTHER_MODEL,
    OTHER_SEED,
    OWN,
    SOURCES,
    Course,
    compared,
    leaning,
    patched,
    refuse_strangers,
    rows_of,
)
from dit_lens.experiments.options import StudyOptions
from dit_lens.experiments.outcomes import headline
from dit_lens.experiments.pictures import choose
from dit_lens.experiments.samples import batch_of, pairs_of
from dit_lens.experiments.script import run_script
from dit_lens.experiments.study import Measured, study
from dit_lens.experiments.summary import write_summary
from dit_lens.models.options import ModelOptions, Unset


@dataclass
class Options(StudyOptions):
    """Compare two models of one architecture."""

    other: Unset[str] = None
    """The other model, as --model. Default: the same, with --other-lora or --other-weights."""
    other_lora: Unset[str] = None
    """LoRA of the other model, as --lora."""
    other_weights: Unset[str] = None
    """Weights of the other model, as --weights."""
    layers: str = "auto"
    """Layers that are compared and patched: all, auto (5 of them), or a list such as 0,4,9."""
    at_steps: str = "auto"
    """Steps at which states are compared: all, auto (5 of them), or a list such as 0-9. Patches are at all steps."""
    strengths: tuple[float, ...] = ()
    """Factors of --other-lora, such as 0 0.5 1: a model for each is held beside the two."""
    out: Path = Path("runs/model_diff")

    def others(self, alpha: float | None = None) -> ModelOptions:
        """Return the options of the other model, with a factor of its LoRA."""
        same = {f.name: getattr(self, f.name) for f in fields(ModelOptions)}
        made = ModelOptions(**same)
        return replace(
            made,
            model=self.other or self.model,
            lora=self.other_lora,
            weights=self.other_weights or "trained",
            high_noise_lora=None,
            low_noise_lora=None,
            lora_alpha=self.lora_alpha if alpha is None else alpha,
        )


def main(options: Options) -> int:
    """Run both models, compare, patch, draw, save."""
    refuse(options)
    lens, other = options.load(), options.others().load()
    refuse_strangers(lens, other)
    choose(options.layers, lens.layers, "layers")
    steps = [each.family.call.default_steps for each in (lens, other)]
    if options.steps is None and steps[0] != steps[1]:
        raise TaskError(
            f"The models take {steps[0]} and {steps[1]} steps: give --steps, one number for both."
        )
    choose(options.at_steps, options.steps or steps[0], "at-steps")
    strong = [options.others(alpha).load() for alpha in options.strengths]
    measured = study(
        options,
        "model_diff",
        lens,
        lambda part: measure([lens, other, *strong], part, options),
        runs=lambda batch: runs_of(lens, batch, options),
    )
    conclude(measured, options)
    return measured.exit_code


def refuse(options: Options) -> None:
    """Refuse what names no second model, before anything is loaded.

    Raises:
        TaskError: it names the option.
    """
    if options.other is None and options.other_lora is None and options.other_weights is None:
        raise TaskError("Name the other model: --other, --other-lora or --other-weights.")
    if options.strengths and options.other_lora is None:
        raise TaskError("--strengths goes with --other-lora: they are factors of that LoRA.")
    if len({*options.strengths}) < len(options.strengths) or not all(map(np.isfinite, options.strengths)):
        raise TaskError(f"--strengths {options.strengths}: give each number once.")


def measure(lenses: list[dl.Lens], samples: list[dl.Sample], options: Options) -> xr.Dataset:
    """Run the models from the same noise, compare their states, and put those of the second into the first."""
    pairs = pairs_of(samples, options)
    batch, other = (batch_of(lens, rows_of(pairs), options) for lens in lenses[:2])
    if list(batch.sigmas) != list(other.sigmas) or not bool(torch.equal(batch.noise, other.noise)):
        raise TaskError(
            "The two models start from other noise, or have other noise levels: compare models of one schedule."
        )
    layers = choose(options.layers, lenses[0].layers, "layers")
    own, its = Course.of(batch, layers), Course.of(other, layers)
    steps = choose(options.at_steps, batch.steps, "at-steps")
    parts = [compared(batch, other, own, its, layers, steps), patched(batch, other, own, its, layers)]
    if options.strengths:
        parts.append(strengths(lenses[2:], pairs, own, its, options))
    return by_sample(xr.merge(parts, compat="override", join="exact"), pairs)


def strengths(
    lenses: list[dl.Lens], pairs: list[Any], own: Course, its: Course, options: Options
) -> xr.Dataset:
    """Run the LoRA at several strengths: how far each leans from the first model's end to the other's."""
    lean, solved = [], []
    for lens in lenses:
        batch = batch_of(lens, pairs, options)
        ends = Course.of(batch, []).ends
        lean.append(leaning(ends, own.ends[::2], its.ends[::2], batch))
        if all(sample.scorer is not None for sample, _ in pairs):
            solved.append(
                [s.score(batch.decode(x[None])[0]).solved for (s, _), x in zip(pairs, ends, strict=True)]
            )
    data: dict[str, Any] = {"leaning_by_strength": (("strength", "pair"), np.stack(lean))}
    data |= {"solved_by_strength": (("strength", "pair"), np.array(solved))} if solved else {}
    return xr.Dataset(data, {"strength": list(options.strengths)})


def runs_of(lens: dl.Lens, batch: Batch, options: Options) -> float:
    """Return how many whole runs a pair costs: of both models from two noises, and of the patches."""
    layers = choose(options.layers, lens.layers, "layers")
    steps = choose(options.at_steps, batch.steps, "at-steps")
    # Clean rows come again beside the patches.
    return 4 + 2 * len(steps) / batch.steps + 2 + len(SOURCES) * len(layers) + len(options.strengths)


def conclude(measured: Measured, options: Options) -> None:
    """Say where the models differ, and what patches come to; draw; save."""
    results = measured.results
    cka = analysis.mean(results.cka, along=["layer", "step"], bounds=(-np.inf, np.inf))
    summary: dict[str, Any] = {
        "samples": results.sizes["sample"],
        "seeds": results.sizes["seed"],
        "distance of the clean ends": headline(analysis.mean(results.apart)),
        "own states, largest change of a latent": float(results.change.sel(source=OWN).max()),
        "cka": tables(cka),
    }
    for name in ("difference", "mean_difference"):
        summary[f"{name}, share of the first model's norm"] = tables(analysis.mean(results[name]))
    for name, words in (("cka_seed", "of two noise seeds"), ("cka_scene", "of two scenes")):
        floor = results[name].dropna("sample", how="any")
        if floor.sizes["sample"] > 1:
            summary[f"cka {words} in the first model"] = headline(
                analysis.mean(floor, bounds=(-np.inf, np.inf))
            )
    summary |= of_patches(results, options)
    write_summary(options, summary, measured.left_out, cka.attrs)
    figure = plot.heatmap(
        cka.transpose("course", "layer", "step"),
        value_label="CKA",
        title=f"Alike in two models · {options.source}",
    )
    plot.save(figure, options.out / "cka.png")


def tables(found: xr.Dataset) -> dict[str, Any]:
    """Return what `analysis.mean` found on [course, layer, step] as plain data, a table for each course."""
    return {course: headline(found.sel(course=course, drop=True)) for course in found.course.values.tolist()}


def of_patches(results: xr.Dataset, options: Options) -> dict[str, Any]:
    """Say how far patches and strengths go towards the other model, and whether its answer comes; draw."""
    summary: dict[str, Any] = {}
    is_defined = results.leaning.notnull().all([dim for dim in results.leaning.dims if dim != "sample"])
    defined = results.isel(sample=is_defined.values)
    summary["leaning is defined for"] = f"{defined.sizes['sample']} of {results.sizes['sample']}"
    if defined.sizes["sample"] < 2:
        return summary | {"no leaning": "the two models' clean runs end alike: there is nothing to lean to"}
    means = analysis.mean(defined.leaning, along=["source", "layer"], bounds=(-1, 1))
    other, seed = (defined.leaning.sel(source=source, drop=True) for source in (OTHER_MODEL, OTHER_SEED))
    summary["leaning"] = headline(means)
    against = analysis.effect(other, seed, along="layer", bounds=(-1, 1))
    summary[f"leaning, {OTHER_MODEL} minus {OTHER_SEED}"] = headline(against)
    figure = plot.curves(
        means.transpose("source", "layer"),
        "layer",
        value_label="leaning to the other model's end",
        title=f"States put in after a layer · {options.source}",
        limits=(-1.05, 1.05),
        marks=True,
    )
    plot.save(figure, options.out / "leaning_by_layer.png")
    if "leaning_by_strength" in results:
        summary["leaning, by strength of the LoRA"] = headline(
            analysis.mean(defined.leaning_by_strength, along="strength", bounds=(-1, 1))
        )
    return summary | (of_answers(results) if "solved" in results else {})


def of_answers(results: xr.Dataset) -> dict[str, Any]:
    """Say how often each model is right, and how often the other model's answer is taken over where theirs differ."""
    summary: dict[str, Any] = {
        "solved, first model": headline(analysis.mean(results.clean_solved)),
        "solved, other model": headline(analysis.mean(results.other_solved)),
        "solved under patches, minus clean": headline(
            analysis.effect(results.solved, results.clean_solved, along=["source", "layer"], bounds=(0, 1))
        ),
    }
    if "solved_by_strength" in results:
        found = analysis.mean(results.solved_by_strength, along="strength", bounds=(0, 1))
        summary["solved, by strength of the LoRA"] = headline(found)
    differing = results.others.where(results.differs.astype(bool)).mean("seed").dropna("sample", how="all")
    summary["samples in which the two models' answers differ"] = differing.sizes["sample"]
    if differing.sizes["sample"] > 1:
        taken = analysis.mean(differing, along=["source", "layer"], bounds=(0, 1))
        summary["the other model's answer comes, where they differ"] = headline(taken)
    return summary


if __name__ == "__main__":
    run_script(main, Options)
