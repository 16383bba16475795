"""Is it enough to look early? Several seeds run to an early step, one is picked there, and only that one goes on.

N seeds to step s cost N (s + 1) of the S steps of a run, and the one that goes on costs S - s - 1 more:
(N (s + 1) + S - s - 1) / S runs in all. What x0 shows at step s decides who goes on:

- agreement: a seed whose answer is the most frequent among the N; nothing is known of the right one;
- sharpness: the seed whose last frame of x0 has the most contrast from pixel to pixel;
- a verifier: a seed whose answer is right there, where one is, else the one of the best score. It knows the truth, as a
  checker of legal moves would; what it reads is x0 of step s, not the end.

Beside these, at their costs: one run picked at random; of N whole runs the most frequent answer, and the best by the
verifier. A null says what early looking is worth without anything to see: at step s the answers are read, and the pick is
drawn at random.

    python analyses/early_selection.py --task maze --samples 64 --seeds 4 --at 0,2,5 --out runs/early_selection
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
from dit_lens.engine.outcomes import by_sample, outcomes
from dit_lens.errors import TaskError
from dit_lens.experiments.options import StudyOptions
from dit_lens.experiments.outcomes import headline
from dit_lens.experiments.picks import agreed, sharpness
from dit_lens.experiments.pictures import choose
from dit_lens.experiments.primary import primary_outcome
from dit_lens.experiments.samples import batch_of, pairs_of, require_scorer, steps_of
from dit_lens.experiments.script import run_script
from dit_lens.experiments.study import Measured, study
from dit_lens.experiments.summary import write_summary

PICKS = ("agreement", "sharpness", "verifier", "random")


@dataclass
class Options(StudyOptions):
    """Run several seeds to an early step, and go on with one."""

    seeds: int = 4
    """Noise seeds of each sample, of which one goes on."""
    at: str = "auto"
    """Steps at which one is picked: all, auto (5 of them), or a list such as 0,2,5."""
    out: Path = Path("runs/early_selection")


def main(options: Options) -> int:
    """Run, pick, compare, draw, save."""
    if options.seeds < 2:
        raise TaskError(f"--seeds {options.seeds}: one of 2 or more is picked.")
    require_scorer(options)
    lens = options.load()
    choose(options.at, steps_of(options, lens), "at")
    measured = study(
        options, "early_selection", lens, lambda part: measure(lens, part, options), runs=lambda batch: 1.0
    )
    conclude(measured, options)
    return measured.exit_code


def measure(lens: dl.Lens, samples: list[dl.Sample], options: Options) -> xr.Dataset:
    """Run every seed to its end; judge x0 at the chosen steps, and pick there."""
    pairs = pairs_of(samples, options)
    batch = batch_of(lens, pairs, options)
    steps = choose(options.at, batch.steps, "at")
    x, seen = batch.noise, {}
    for step in range(batch.steps):
        now = batch.step(step, x)
        x = now.latents
        if step in steps:
            seen[step] = now.x0
    stacked = torch.stack([*seen.values(), x])
    judged = by_sample(outcomes(batch, stacked, x), pairs)
    if "answer" not in judged:
        raise TaskError("A pick is judged by a scorer: the samples of this task have none.")
    early, final = judged.isel(arm=slice(0, -1)), judged.isel(arm=-1)
    sharp = np.array([sharpness(batch, x0) for x0 in seen.values()]).reshape(len(steps), len(samples), -1)
    picked = picks(early, sharp)
    out = {}
    for name in ("solved", "score"):
        values = final[name].values.astype(float)  # [sample, seed]
        chosen = np.array([[values[np.arange(len(values)), rows] for rows in at] for at in picked])
        chosen = np.concatenate([chosen, np.broadcast_to(values.mean(1), (len(steps), 1, len(values)))], 1)
        out[name] = ("at", "pick", "sample"), chosen
        out[f"whole_{name}"] = ("whole", "sample"), whole_runs(final, name)
    count, last = options.seeds, batch.steps
    cost = [(count * (s + 1) + last - s - 1) / last for s in steps]
    text = np.dtypes.StringDType()
    coords = {
        "at": steps,
        "sigma": ("at", [batch.sigmas[s] for s in steps]),
        "cost": ("at", cost),
        "pick": np.array(PICKS, text),
        "whole": np.array(["one run", "majority of whole runs", "best of whole runs"], text),
        "whole_cost": ("whole", [1.0, count, count]),
        "sample": judged.sample,
    }
    return xr.Dataset(out, coords).transpose("sample", ...)


def picks(early: xr.Dataset, sharp: np.ndarray) -> np.ndarray:
    """Return the seed that each way but the random one picks, [at, pick, sample]."""
    answers, right, score = (early[name].values for name in ("answer", "solved", "score"))
    rows = []
    for step in range(len(answers)):
        frequent = [agreed(row.tolist()) for row in answers[step]]
        best = (right[step] * 2.0 + score[step]).argmax(1)
        rows.append([frequent, sharp[step].argmax(1), best])
    return np.array(rows)


def whole_runs(final: xr.Dataset, name: str) -> np.ndarray:
    """Return what comes of one run, of the most frequent answer of all whole runs, and of the best of them, [way, sample]."""
    values, answers = final[name].values.astype(float), final.answer.values
    first = [agreed(row.tolist()) for row in answers]
    return np.array([values.mean(1), values[np.arange(len(values)), first], values.max(1)])


def conclude(measured: Measured, options: Options) -> None:
    """Compare every pick with one run and with whole runs, paired; draw; save."""
    results = measured.results
    summary: dict[str, Any] = {
        "samples": results.sizes["sample"],
        "seeds": options.seeds,
        "cost in runs": dict(zip(results["at"].values.tolist(), results.cost.values.tolist(), strict=True)),
        "cost in runs, whole": dict(
            zip(results.whole.values.tolist(), results.whole_cost.values.tolist(), strict=True)
        ),
    }
    for name in ("solved", "score"):
        by_pick = results[name].transpose("sample", "pick", "at")
        summary[name] = headline(analysis.mean(by_pick, bounds=(0, 1)))
        summary[f"{name}, whole runs"] = headline(analysis.mean(results[f"whole_{name}"], bounds=(0, 1)))
        for whole in results.whole.values.tolist():
            against = results[f"whole_{name}"].sel(whole=whole, drop=True)
            difference = analysis.effect(by_pick, against, bounds=(0, 1), along=["pick", "at"])
            summary[f"{name}, picked minus {whole}"] = headline(difference)
    agreement = results.solved.sel(pick="agreement", drop=True).isel(at=0, drop=True)
    one_run = results.whole_solved.sel(whole="one run", drop=True)
    name = f"primary: solved, picked by agreement at step {int(results['at'][0])}, minus one run"
    summary[name] = primary_outcome(partial(analysis.effect, agreement, one_run, bounds=(0, 1)))
    write_summary(options, summary, measured.left_out, difference.attrs)
    means = analysis.mean(results.solved.transpose("sample", "pick", "at"), bounds=(0, 1))
    sigma = results.sigma.drop_vars(["cost"], errors="ignore")
    means["at"].attrs["long_name"] = "picked at step"
    figure = plot.curves(
        means.assign_coords(sigma=sigma).drop_vars("cost", errors="ignore"),
        "at",
        value_label="solved (share)",
        title=f"Of {options.seeds} seeds one goes on, picked at a step · {options.source}",
        reference=analysis.mean(results.whole_solved.isel(whole=0, drop=True), bounds=(0, 1)),
        reference_label="one run",
        marks=True,
        limits=(-0.03, 1.03),
    )
    plot.save(figure, options.out / "solved_by_step.png")


if __name__ == "__main__":
    run_script(main, Options)
