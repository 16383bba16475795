"""Does a model give up a wrong answer that it was committed to? And does it hold several answers at once?

Two readings of what the model believes (x0) at every step of clean runs:

1. Revision, on tasks whose complete answers can be wrong (maze, loop, arrows, latin, queens, tictac, odd). Committed is a run to
   a complete answer that stands with a margin (all that it uses over 0.6 of its strength, all else below 0.4) for 2 steps running
   or more. Of the runs that were committed to a wrong answer: how many end at a right one, at another wrong one, at it, at none;
   and so of those that were committed to a right one. A part of an answer is none, so that one that is still being made is no
   revision.
2. Superposition, on tasks with several candidates (choose, loop, latin, queens, apart: the right answers; tictac, odd, pattern:
   wrong ones too). x0 is fitted by a mixture of the candidates' latents: how many bits the weights hold, how much of the squared
   distance to the nearest candidate the mixture takes away, and how far the weights are from the posterior of the candidates
   given what the step starts from.

Nulls, from the same noise: the ideal denoiser, which knows all right answers and computes nothing. It holds several answers,
and they become one; it is never committed to a wrong one, but where a blend of right answers reads as one, which the summary
counts. Of tictac, odd and pattern the null of superposition takes all candidates for equally likely. Floors: how often the
right video, after the codec, is read as a complete right answer; and how many bits the weights have where there is one answer
alone, at the end of the runs, and in right videos that are a frame late. Entropy is steep at 0: only bits over these say that
there are several answers.

    python analyses/revision.py --task latin --samples 64 --out runs/revision
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

import dit_lens as dl
from dit_lens import analysis, plot
from dit_lens.analysis.mixture import APART, apart, bits, divergence
from dit_lens.engine.batch import Batch
from dit_lens.engine.outcomes import by_sample
from dit_lens.errors import TaskError
from dit_lens.experiments.options import StudyOptions
from dit_lens.experiments.outcomes import headline
from dit_lens.experiments.primary import primary_outcome
from dit_lens.experiments.samples import batch_of, given_frames, pairs_of, require_scorer, require_two_steps
from dit_lens.experiments.script import run_script
from dit_lens.experiments.steps import clean_steps
from dit_lens.experiments.study import Measured, study
from dit_lens.experiments.summary import write_summary
from dit_lens.tasks.complete import complete_answer, require_complete
from dit_lens.tasks.rivals import rival_answers

Latents = list[np.ndarray]
"""By step, [row, channel, frame, y, x] in float64."""


@dataclass
class Options(StudyOptions):
    """Read complete answers and mixtures of answers off x0."""

    out: Path = Path("runs/revision")


def main(options: Options) -> int:
    """Run, read, compare, draw, save."""
    require_scorer(options)
    refusals = reasons(dl.tasks.make(options.task, options.scene))
    if len(refusals) == 2:
        raise TaskError(f"--task {options.task}: {' '.join(refusals.values())}")
    lens = options.load()
    require_two_steps(options, lens)
    measured = study(
        options, "revision", lens, lambda part: measure(lens, part, options), runs=lambda batch: 1.0
    )
    conclude(measured, options, refusals)
    return measured.exit_code


def reasons(sample: dl.Sample) -> dict[str, str]:
    """Return why a task's samples say nothing of revision, or of superposition; empty where they do."""
    found = {}
    for name, asks in (("revision", require_complete), ("superposition", rival_answers)):
        try:
            asks(sample)
        except TaskError as error:
            found[name] = str(error)
    return found


def measure(lens: dl.Lens, samples: list[dl.Sample], options: Options) -> xr.Dataset:
    """Run every pair; read what x0 holds at every step, and what the nulls hold from the same noise."""
    pairs = pairs_of(samples, options)
    batch = batch_of(lens, pairs, options)
    starts, beliefs = [], []
    for _, start, now in clean_steps(batch):
        starts.append(start.double().cpu().numpy())
        beliefs.append(now.x0.double().cpu().numpy())
    refusals = reasons(samples[0])
    parts = [] if "revision" in refusals else [read_answers(lens, batch, beliefs)]
    parts += [] if "superposition" in refusals else [weigh(lens, batch, starts, beliefs)]
    out = by_sample(xr.merge(parts, compat="override", join="exact"), pairs)
    return out.assign_coords(step=np.arange(batch.steps), sigma=("step", list(batch.sigmas)))


# ---- revision


def read_answers(lens: dl.Lens, batch: Batch, beliefs: Latents) -> xr.Dataset:
    """Read the complete answer of x0 [pair, step] of the model and of the ideal denoiser, and whether it is right."""
    columns: dict[str, list[Any]] = {name: [] for name in ("answer", "right", "ideal_answer", "ideal_right")}
    floor = []
    for pair, (sample, _) in enumerate(batch.pairs):
        ideal = analysis.ideal_denoiser(sample, lens.encode)
        noise = batch.noise[pair : pair + 1].double().cpu().numpy()
        own = [x0[pair : pair + 1] for x0 in beliefs]
        for prefix, course in (("", own), ("ideal_", ideal.run(noise, batch.sigmas))):
            texts = [complete_answer(sample, decode(batch, x0)) for x0 in course]
            columns[f"{prefix}answer"].append(texts)
            columns[f"{prefix}right"].append([text in ideal.texts for text in texts])
        truths = [decode(batch, video[None]) for video in ideal.videos]
        floor.append(
            np.mean([complete_answer(sample, v) == t for v, t in zip(truths, ideal.texts, strict=True)])
        )
    text = np.dtypes.StringDType()
    data = {
        name: (("pair", "step"), np.array(rows, text if name.endswith("answer") else bool))
        for name, rows in columns.items()
    }
    return xr.Dataset({**data, "truth_read": ("pair", np.array(floor))})


def decode(batch: Batch, latents: np.ndarray) -> np.ndarray:
    """Decode the latents of one row [1, channel, frame, y, x] to frames [time, height, width, rgb]."""
    return batch.decode(torch.from_numpy(latents).to(batch.noise))[0]


# ---- superposition


def weigh(lens: dl.Lens, batch: Batch, starts: Latents, beliefs: Latents) -> xr.Dataset:
    """Fit x0 by the candidates at every step, [pair, step]; NaN of samples whose candidates' weights are not told apart."""
    steps, pairs = batch.steps, len(batch.pairs)
    names = ("bits", "explained", "single", "mixed", "null_bits", "posterior_bits", "divergence", "wrong")
    # A first frame that is given to the model says nothing of an answer.
    drawn = slice(max(given_frames(sample) for sample, _ in batch.pairs), None)
    by_step = {name: np.full((pairs, steps), np.nan) for name in names}
    by_pair = {
        name: np.full(pairs, np.nan) for name in ("same_pick", "chance_pick", "late_bits", "most_bits")
    }
    for pair, (sample, _) in enumerate(batch.pairs):
        null, right = candidates(sample, lens)
        if apart(null.videos) < APART:
            continue
        known = null.videos[:, :, drawn]
        fit = analysis.mixture(np.stack([x0[pair][:, drawn] for x0 in beliefs]), known)
        posterior = np.concatenate(
            [null.weights(x[pair : pair + 1], s) for x, s in zip(starts, batch.sigmas, strict=True)]
        )
        noise = batch.noise[pair : pair + 1].double().cpu().numpy()
        course = analysis.mixture(
            np.concatenate(null.run(noise, batch.sigmas))[:, :, drawn], known
        ).weight.values
        found = {
            **{name: fit[name].values for name in ("bits", "explained", "single", "mixed")},
            "null_bits": bits(course),
            "posterior_bits": bits(posterior),
            "divergence": divergence(fit.weight.values, posterior),
            "wrong": np.nan if right.all() else fit.weight.values[:, ~right].sum(1),
        }
        for name, values in found.items():
            by_step[name][pair] = values
        by_pair["same_pick"][pair] = fit.weight.values[-1].argmax() == course[-1].argmax()
        by_pair["chance_pick"][pair] = (null.prior**2).sum()
        by_pair["late_bits"][pair] = late_bits(sample, lens, known, drawn)
        by_pair["most_bits"][pair] = np.log2(len(known))
    return xr.Dataset(
        {n: (("pair", "step"), v) for n, v in by_step.items()} | {n: ("pair", v) for n, v in by_pair.items()}
    )


def late_bits(sample: dl.Sample, lens: dl.Lens, known: np.ndarray, drawn: slice) -> float:
    """Return the bits of what holds one answer: the right videos a frame late, on average. Weights are never exactly 0 and 1."""
    late = [np.concatenate([a.video[:1], a.video[:-1]]) for a in sample.answers]
    latents = np.stack([lens.encode(video).permute(3, 0, 1, 2).double().cpu().numpy() for video in late])
    return float(analysis.mixture(latents[:, :, drawn], known).bits.mean())


def candidates(sample: dl.Sample, lens: dl.Lens) -> tuple[analysis.IdealDenoiser, np.ndarray]:
    """Return the denoiser that knows a sample's candidates by their shares, and which of them are right."""
    rivals, right = rival_answers(sample), {answer.text for answer in sample.answers}
    null = analysis.ideal_denoiser(sample, lens.encode, rivals)
    return null, np.array([text in right for text in null.texts])


# ---- what it comes to


def conclude(measured: Measured, options: Options, refusals: dict[str, str]) -> None:
    """Summarise what is measured of revision and of superposition; draw; save."""
    results = measured.results
    summary: dict[str, Any] = {"samples": results.sizes["sample"], "seeds": results.sizes["seed"]}
    attrs: dict[str, Any] = {}
    for name, of_part in (("revision", of_revision), ("superposition", of_superposition)):
        if name in refusals:
            summary[f"{name} not measured"] = refusals[name]
        else:
            part, attrs = of_part(results, options)
            summary |= part
    write_summary(options, summary, measured.left_out, attrs)


def of_revision(results: xr.Dataset, options: Options) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return how many runs are committed, to what, and where they end, for the model and the null; draw it."""
    out: dict[str, Any] = {
        "right video read as its complete answer, after the codec": headline(
            analysis.mean(results.truth_read, bounds=(0, 1))
        )
    }
    lines = {}
    for who, prefix in (("model", ""), ("ideal denoiser", "ideal_")):
        answer, right = results[f"{prefix}answer"], results[f"{prefix}right"].astype(bool)
        found = analysis.revisions(answer, right)
        lines |= {f"{who}, right": right, f"{who}, wrong": (answer != "") & ~right}
        out[f"share of all runs, {who}"] = {name: headline(analysis.mean(found[name])) for name in WHOLE}
        out[f"ends of runs committed to a wrong answer, {who}"] = ends(found, "wrong")
        out[f"ends of runs committed to a right answer, {who}"] = ends(found, "right")
        if not prefix:
            direction = partial(analysis.effect, found.wrong_to_right, found.right_to_wrong)
            out["wrong to right minus right to wrong, of all runs"] = primary_outcome(direction)
    both = xr.concat([v.rename("complete") for v in lines.values()], xr.Variable("answer", list(lines)))
    means = analysis.mean(both.astype(float), bounds=(0, 1), along="step")
    figure = plot.curves(
        means,
        "step",
        value_label="x0 shows a complete answer (share)",
        title=f"Complete answers, read with a margin · {options.source}",
        limits=(-0.02, 1.02),
    )
    plot.save(figure, options.out / "complete_by_step.png")
    return {**out, "complete answers by step": headline(means)}, means.attrs


WHOLE = (
    "committed",
    "committed_wrong",
    "committed_right",
    "wrong_to_right",
    "right_to_wrong",
    "wrong_to_wrong",
)
"""What is counted among all runs."""


def ends(found: xr.Dataset, kind: str) -> dict[str, Any]:
    """Return where the runs end that were committed to a wrong answer, or to a right one. A sample counts once."""
    committed = found[f"committed_{kind}"]
    out: dict[str, Any] = {"runs": int(committed.sum()), "samples": int(committed.any("seed").sum())}
    for end in ("kept", "to_right", "to_wrong", "to_none"):
        rates = found[f"{kind}_{end}"].astype(float).where(committed).mean("seed").dropna("sample")
        if rates.sizes["sample"] < 2:
            out[f"{end}, runs"] = int(found[f"{kind}_{end}"].sum())
        else:
            out[end] = headline(analysis.mean(rates, bounds=(0, 1)))
    return out


def of_superposition(results: xr.Dataset, options: Options) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what the weights of the candidates are, for the model and the null, of samples that tell them; draw it."""
    told = results.isel(sample=results.bits.notnull().all(("seed", "step")).values)
    left = results.sizes["sample"] - told.sizes["sample"]
    out: dict[str, Any] = {"samples whose candidates are mixtures of one another, left out": left}
    if told.sizes["sample"] < 2:
        return {**out, "superposition not measured": "fewer than 2 samples are left"}, {}
    bounds = (0.0, float(told.most_bits.max()))
    lines = {
        "model": told.bits,
        "null, own course": told.null_bits,
        "posterior of the model's x": told.posterior_bits,
    }
    held = xr.concat([v.rename("bits") for v in lines.values()], xr.Variable("weights", list(lines)))
    means = analysis.mean(held, along="step", bounds=bounds)
    out["bits of the weights by step"] = headline(means)
    late = analysis.mean(told.late_bits, bounds=bounds)
    out["bits of right videos a frame late"] = headline(late)
    last = told.bits.isel(step=-1, drop=True)
    for name, other in (
        ("null", told.null_bits),
        ("its own last step", last),
        ("right videos a frame late", told.late_bits),
    ):
        out[f"bits, model minus {name}"] = headline(
            analysis.effect(told.bits, other, along="step", bounds=bounds)
        )
    find = partial(analysis.effect, told.bits, told.null_bits, along="step", bounds=bounds)
    out["bits, model minus null, at any step"] = primary_outcome(find)
    figure = plot.curves(
        means,
        "step",
        value_label="entropy of the weights (bits)",
        title=f"Answers held at once · {options.source}",
        reference=late,
        reference_label="a right video a frame late",
    )
    plot.save(figure, options.out / "bits_by_step.png")
    for name, (label, limits) in LABELS.items():
        if bool(told[name].isnull().any()):  # `wrong`, where all candidates are right
            continue
        by_step = analysis.mean(told[name], bounds=limits, along="step")
        out[f"{label}, by step"] = headline(by_step)
        figure = plot.curves(
            by_step, "step", value_label=label, title=f"Mixture of candidates · {options.source}"
        )
        plot.save(figure, options.out / f"{name}_by_step.png")
    out["ends at the null's pick"] = headline(analysis.mean(told.same_pick))
    out["the same by chance"] = headline(analysis.mean(told.chance_pick, bounds=(0, 1)))
    gain = analysis.effect(told.same_pick, told.chance_pick, bounds=(0, 1))
    return {**out, "ends at the null's pick, minus chance": headline(gain)}, means.attrs


LABELS = {
    "explained": (
        "share of the squared distance to the nearest candidate that a mixture takes away",
        (0.0, 1.0),
    ),
    "divergence": ("divergence of the weights from the posterior (bits)", (0.0, 20.0)),
    "wrong": ("weight of wrong candidates", (0.0, 1.0)),
}
"""What is drawn of the weights by step, with its bounds."""


if __name__ == "__main__":
    run_script(main, Options)
