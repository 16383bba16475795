"""What do batches and shared beginnings save? A sweep over noise arms, against one run for each arm.

    python benchmarks/sweep.py [--samples 8] [--out benchmarks/sweep.json]

Arms: all those of `analyses/noise_sensitivity.py` (a step each, and a frame each at two scales), on 6x6 mazes.
Naive: for every sample and arm, one run of the bare pipeline; that leaves the edits out, so it is the least that
the naive form takes. Then the same by `lens.run` with the edits, on one sample, and `run_arms`.
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

import dit_lens as dl
from dit_lens.engine.sweep import run_arms
from dit_lens.experiments.options import StudyOptions
from dit_lens.experiments.samples import draw
from dit_lens.plan.plan import Placed


@dataclass
class Options:
    """Options of the benchmark."""

    samples: int = 8
    steps: int = 20
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
    """Time the three forms; print seconds a sample, and ratios."""
    lens = dl.load("organism")
    samples = list(draw(StudyOptions(samples=options.samples)))
    batch = lens.batch([(s, i) for i, s in enumerate(samples)], steps=options.steps)
    arms = noise_arms(options.steps, batch.noise.shape[2])
    quiet = {"progress_bar_cmd": lambda steps: steps}
    bare = lens.family.call.arguments(samples[0], 0, options.steps, 1.0, quiet)
    lens.pipe(**bare)  # not counted

    def single() -> None:
        for edits in arms:
            lens.run(samples[0], 0, edit=[(e.function, e.place) for e in edits], steps=options.steps)

    seconds = {
        "sweep": timed(lambda: run_arms(batch, arms)) / options.samples,
        "bare pipeline, a run an arm": timed(lambda: lens.pipe(**bare)) * (1 + len(arms)),
        "lens.run, a run an arm": timed(single),
    }
    print(
        f"{options.samples} samples, {len(arms)} arms, {options.steps} steps\n| form | s a sample | ratio |\n|---|---|---|"
    )
    for name, taken in seconds.items():
        print(f"| {name} | {taken:.2f} | {taken / seconds['sweep']:.2f} |")
    if options.out:
        about = {"command": " ".join(["python", *sys.argv]), "samples": options.samples, "arms": len(arms)}
        options.out.write_text(json.dumps({**about, "seconds_a_sample": seconds}, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options))
