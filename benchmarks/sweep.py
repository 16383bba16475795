"""What do batches and shared beginnings save? A sweep over noise arms, against one run for each arm.

    python benchmarks/sweep.py [--samples 8] [--rounds 6] [--out benchmarks/sweep.json]

Arms: all those of `analyses/noise_sensitivity.py` (a step each, and a frame each at two scales), on 6x6 mazes.
Naive: for every arm and the clean run, one run of the bare pipeline, on one sample; that leaves the edits out, so it is
the least that the naive form takes. Then the same by `lens.run` with the edits, and `run_arms` on all samples together.
Medians over the rounds with their 95% intervals; a ratio is within a round.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from tqdm import tqdm

import dit_lens as dl
from arms import median_interval
from dit_lens.engine.sweep import run_arms
from dit_lens.experiments.options import StudyOptions
from dit_lens.experiments.samples import draw
from dit_lens.plan.plan import Placed

SWEEP, PIPELINE, RUN = "sweep", "bare pipeline, a run an arm", "lens.run, a run an arm"


@dataclass
class Options:
    """Options of the benchmark."""

    samples: int = 8
    steps: int = 20
    rounds: int = 6
    out: Path | None = None


def noise_arms(steps: int, frames: int) -> list[list[Placed]]:
    """Return a noise arm for each step, and two for each frame."""
    arms = [[Placed(dl.add_noise(scale=1.0), dl.at(site="latents", step=s + 1))] for s in range(steps - 1)]
    for scale in (1.0, 0.5):
        arms += [
            [Placed(dl.add_noise(scale=scale), dl.at(site="latents", frame=f, step="1-"))]
            for f in range(frames)
        ]
    return arms


def timed(work: Callable[[], Any]) -> float:
    """Return how many seconds something takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main(options: Options) -> None:
    """Time the three forms, interleaved; print seconds a sample, and ratios."""
    lens = dl.load("organism-v1")
    samples = list(draw(StudyOptions(samples=options.samples)))
    batch = lens.batch([(s, i) for i, s in enumerate(samples)], steps=options.steps)
    arms = noise_arms(options.steps, batch.noise.shape[2])
    quiet = {"progress_bar_cmd": lambda steps: steps}
    bare = lens.family.call.arguments(samples[0], 0, options.steps, 1.0, quiet)
    lens.pipe(**bare)  # not counted

    def single() -> None:
        for edits in arms:
            lens.run(samples[0], 0, edit=[(e.function, e.place) for e in edits], steps=options.steps)

    def pipeline() -> None:
        for _ in range(1 + len(arms)):
            lens.pipe(**bare)

    forms = {
        SWEEP: (lambda: run_arms(batch, arms), options.samples),
        PIPELINE: (pipeline, 1),
        RUN: (single, 1),
    }
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for _ in tqdm(range(options.rounds), unit="round"):
        for name, (work, samples_done) in forms.items():
            seconds[name].append(timed(work) / samples_done)
    report(options, len(arms), seconds)


def report(options: Options, arms: int, seconds: dict[str, list[float]]) -> None:
    """Print medians with their intervals, and write them as JSON."""
    print(f"{options.samples} samples, {arms} arms, {options.steps} steps, {options.rounds} rounds")
    print("| form | s a sample | 95% interval | ratio | 95% interval |\n|---|---|---|---|---|")
    rows = {}
    for name, taken in seconds.items():
        ratios = [t / s for t, s in zip(taken, seconds[SWEEP], strict=True)]
        rows[name] = {"seconds": median_interval(taken), "ratio": median_interval(ratios)}
        shown = [f"{m:.2f} | {low:.2f} to {high:.2f}" for m, low, high in rows[name].values()]
        print(f"| {name} | {' | '.join(shown)} |")
    if options.out:
        about: dict[str, Any] = {"command": " ".join(["python", *sys.argv]), "rounds": options.rounds}
        about |= {"samples": options.samples, "arms": arms, "steps": options.steps}
        options.out.write_text(json.dumps({**about, "median_and_interval_95": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options))
