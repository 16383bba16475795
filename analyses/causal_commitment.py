"""When is the answer settled? Forks: the noise is drawn anew at a step, and what was believed is kept.

At step s the latents become (1 - sigma_s) x0 + sigma_s eps, with x0 of the step before and other noise eps (`dl.renoise`);
the run then goes on. Where the answer is settled, it comes out the same whatever the noise: P(same answer), over `--forks`
of each run, and how many bits the forks' answers still hold. An answer that merely stays the same from step to step
(`emergent.py`) is no proof of that.

Beside it:

- chance: how often two independent runs of a sample, with other noise from the start, give one answer;
- the null: the ideal denoiser, which knows all right answers of the scene and computes nothing, forked likewise (for tasks
  whose answers are enumerable);
- the same noise again: a fork that is made twice has to give one answer, or nothing here means anything.

The commitment is the noise level where P(same answer) passes halfway between chance and 1, and stays there: where the mean of
same - (1 + chance) / 2 over samples passes 0, in which a sample weighs by how often two of its runs differ.

    python analyses/causal_commitment.py --task latin --samples 32 --out runs/causal_commitment
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

import dit_lens as dl
from dit_lens import analysis, plot
from dit_lens.engine.batch import Batch
from dit_lens.engine.outcomes import by_sample, outcomes
from dit_lens.engine.sweep import run_arms
from dit_lens.errors import TaskError
from dit_lens.experiments.cost import runs_of_arms
from dit_lens.experiments.crossings import committed
from dit_lens.experiments.options import StudyOptions
from dit_lens.experiments.outcomes import headline
from dit_lens.experiments.pictures import choose
from dit_lens.experiments.samples import at_latents, batch_of, pairs_of, require_scorer, require_two_steps
from dit_lens.experiments.script import run_script
from dit_lens.experiments.study import Measured, study
from dit_lens.experiments.summary import write_summary
from dit_lens.plan.plan import Placed
from dit_lens.tasks.pairs import label


@dataclass
class Options(StudyOptions):
    """Fork runs, and see when their answer is settled."""

    seeds: int = 3
    """Noise seeds of each sample, 2 or more: chance is what they have in common."""
    forks: int = 4
    """Forks of each run at each step."""
    at: str = "auto"
    """Steps at which runs fork, from 1 on: all, auto (7 of them), or a list such as 1,4,9."""
    out: Path = Path("runs/causal_commitment")


def main(options: Options) -> int:
    """Fork, compare answers, draw, save."""
    if options.seeds < 2 or options.forks < 2:
        raise TaskError(f"--seeds {options.seeds} --forks {options.forks}: give 2 or more of each.")
    require_scorer(options)
    lens = options.load()
    require_two_steps(options, lens)
    measured = study(
        options,
        "causal_commitment",
        lens,
        lambda part: measure(lens, part, options),
        runs=lambda batch: runs_of_arms(batch, arms_of(batch, options)[1]),
    )
    conclude(measured, options)
    return measured.exit_code


def measure(lens: dl.Lens, samples: list[dl.Sample], options: Options) -> xr.Dataset:
    """Run every pair, and its forks; compare their answers with the pair's own."""
    pairs = pairs_of(samples, options)
    batch = batch_of(lens, pairs, options)
    steps, arms = arms_of(batch, options)
    clean, ended = run_arms(batch, [*arms, arms[0]], progress="forks")
    judged = outcomes(batch, ended, clean)
    if "answer" not in judged:
        raise TaskError(
            "A fork is compared by the answer that a scorer reads: the samples of this task have none."
        )
    alone = outcomes(batch, clean[None], clean).isel(arm=0)
    shape = len(steps), options.forks, len(pairs)
    answers, again = judged.answer.values[:-1].reshape(shape), judged.answer.values[-1]
    data = {
        "same": (("at", "pair"), (answers == alone.answer.values).mean(1)),
        "bits": (("at", "pair"), bits(answers)),
        "solved": (("at", "pair"), judged.solved.values[:-1].reshape(shape).mean(1)),
        "clean_solved": ("pair", alone.solved.values),
        "same_noise": ("pair", again == answers[0, 0]),
    }
    coords = {"at": steps, "sigma": ("at", [batch.sigmas[s] for s in steps])}
    out = by_sample(xr.Dataset(data, coords), pairs)
    out["chance"] = "sample", [agreement(row) for row in by_sample(alone, pairs).answer.values]
    ideal = ideal_forks(lens, batch, steps, options)
    return xr.merge([out, ideal], compat="override", join="exact")


def arms_of(batch: Batch, options: Options) -> tuple[list[int], list[list[Placed]]]:
    """Return the steps at which runs fork, and the forks at each."""
    steps = choose(options.at, batch.steps, "at", auto=7, first=1)
    return steps, [[fork(batch, m, step)] for step in steps for m in range(options.forks)]


def fork(batch: Batch, number: int, step: int) -> Placed:
    """Return a fork of a run at a step, by its number."""
    return Placed(dl.renoise(seed=1 + number), at_latents(batch.fixed_frames, step=step))


def agreement(answers: Sequence[Any]) -> float:
    """Return how often two of some answers are one."""
    return float(np.mean([a == b for a, b in combinations(answers, 2)]))


def bits(answers: np.ndarray) -> np.ndarray:
    """Return the entropy of the forks' answers, in bits: from [at, fork, pair] to [at, pair]."""

    def entropy(texts: np.ndarray) -> float:
        shares = np.array([*Counter(texts.tolist()).values()]) / len(texts)
        return max(float(-(shares * np.log2(shares)).sum()), 0.0)

    return np.array([[entropy(forks) for forks in at.T] for at in answers])


def ideal_forks(lens: dl.Lens, batch: Batch, steps: list[int], options: Options) -> xr.Dataset:
    """Fork the ideal denoiser from the same noise: P(same answer) [sample, seed, at]; empty where answers are not enumerable."""
    same, answers = np.zeros((len(batch.pairs), len(steps))), np.zeros(len(batch.pairs), int)
    for pair, (sample, seed) in enumerate(batch.pairs):
        try:
            ideal = analysis.ideal_denoiser(sample, lens.encode)
        except TaskError:
            return xr.Dataset()
        noise = batch.noise[pair : pair + 1].double().cpu().numpy()
        beliefs = ideal.run(noise, batch.sigmas)
        own = answers[pair] = nearest(ideal, beliefs[-1])[0]
        for i, step in enumerate(steps):
            sigma = batch.sigmas[step]
            other = fresh_noise(sample, seed, step).standard_normal((options.forks, *noise.shape[1:]))
            ends = ideal.run((1 - sigma) * beliefs[step - 1] + sigma * other, batch.sigmas[step:])[-1]
            same[pair, i] = np.mean(nearest(ideal, ends) == own)
    data = {"ideal_same": (("at", "pair"), same.T), "answer": ("pair", answers)}
    out = by_sample(xr.Dataset(data, {"at": steps}), batch.pairs)
    chance = [agreement(row) for row in out.answer.values.tolist()]
    return out.drop_vars("answer").assign(ideal_chance=("sample", chance))


def fresh_noise(sample: dl.Sample, seed: int, step: int) -> np.random.Generator:
    """Return what the noise of a run's forks at a step is drawn by: the same whatever else is measured, and no other run's."""
    return np.random.default_rng([seed, step, *label(sample).encode()])


def nearest(ideal: analysis.IdealDenoiser, latents: np.ndarray) -> np.ndarray:
    """Return which answer each of some latents is, [row]."""
    off = latents[:, None] - ideal.videos[None]
    return (off.reshape(*off.shape[:2], -1) ** 2).sum(-1).argmin(1)


def conclude(measured: Measured, options: Options) -> None:
    """Say when the answer is settled, beside chance and the null; draw; save."""
    results = measured.results
    chance = analysis.mean(results.chance, bounds=(0, 1))
    same = analysis.mean(results.same, along="at", bounds=(0, 1))
    summary: dict[str, Any] = {
        "samples": results.sizes["sample"],
        "seeds": results.sizes["seed"],
        "forks of each run": options.forks,
        "same answer": headline(same),
        "same answer by chance": headline(chance),
        "commitment": committed(results.same, results.chance, results),
        "bits that the forks' answers hold": headline(
            analysis.mean(results.bits, along="at", bounds=(0, np.log2(options.forks)))
        ),
        "the same noise again gives the same answer": headline(analysis.mean(results.same_noise)),
        "solved, forks minus the run": headline(
            analysis.effect(results.solved, results.clean_solved, along="at", bounds=(0, 1))
        ),
    }
    lines = {"model": results.same}
    if "ideal_same" in results:
        lines["ideal denoiser"] = results.ideal_same
        summary["same answer, ideal denoiser"] = headline(
            analysis.mean(results.ideal_same, along="at", bounds=(0, 1))
        )
        summary["same answer by chance, ideal denoiser"] = headline(
            analysis.mean(results.ideal_chance, bounds=(0, 1))
        )
        summary["commitment, ideal denoiser"] = committed(results.ideal_same, results.ideal_chance, results)
        summary["same answer, model minus ideal denoiser"] = headline(
            analysis.effect(results.same, results.ideal_same, along="at", bounds=(0, 1))
        )
    write_summary(options, summary, measured.left_out, same.attrs)
    both = xr.concat([v.rename("same") for v in lines.values()], xr.Variable("denoiser", list(lines)))
    both["at"].attrs["long_name"] = "noise drawn anew at step"
    figure = plot.curves(
        analysis.mean(both, bounds=(0, 1)),
        "at",
        value_label="P(same answer)",
        title=f"Noise drawn anew at a step · {options.source}",
        reference=chance,
        reference_label="chance",
        marks=True,
        limits=(-0.03, 1.03),
    )
    plot.save(figure, options.out / "same_answer_by_step.png")


if __name__ == "__main__":
    run_script(main, Options)
