"""What does capture cost? The bare pipeline against what a user could do, interleaved in one run, as ratios.

    python benchmarks/capture_overhead.py [--rounds 7] [--steps 20] [--clock cpu] [--out benchmarks/capture_overhead.json]

Arms: the bare pipeline; `lens.run` without records and without a store; the official-style hook
(`.detach().cpu().float()` of every block, kept in memory); a plain hook that keeps the energy alone, and one that saves
every state to a file by numpy, both without labels; nnsight's cache of every block; ours: energy of all layers into a store;
full states of all layers into a store; and a batch of four seeds on fewer steps, whose ratio is to the bare pipeline on as
many steps. Each round runs all arms in a shuffled order, in one process for the times, in a process of its own for the
memory (`--arm`). A ratio is the median over the rounds of the arm's time to the bare pipeline's in the same round.

`--clock cpu` takes the CPU time of the whole process, the writer's thread included, with one thread of torch: what else
the machine does counts less than on the clock on the wall.
"""

from __future__ import annotations

import json
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

import dit_lens as dl
from arms import Arms, growth, median_interval, new_folder
from dit_lens.tasks.canvas import EVAL_SEED

BATCH_SEEDS, BATCH_STEPS = 4, 8
BATCH = f"batch of {BATCH_SEEDS} seeds, {BATCH_STEPS} steps (per run)"


@dataclass
class Options:
    """Options of the benchmark."""

    model: str = "organism"
    frames: int = 25
    """Of the maze's video."""
    rounds: int = 7
    steps: int = 20
    cfg_scale: float = 3.0
    """Over 1, so that both branches run."""
    clock: Literal["wall", "cpu"] = "wall"
    """Time on the wall, or CPU time of the whole process."""
    threads: int = 0
    """Torch threads. Default: torch's own; 1 with `--clock cpu`."""
    store: Path = Path("runs/bench")
    """Folder that stores are made in. It is removed in the end, so it must not exist."""
    arm: str | None = None
    """Run one arm once, and print how much memory it took (used by the benchmark itself)."""
    out: Path | None = None


def arms_of(options: Options) -> dict[str, Callable[[], Any]]:
    """Return the ways to capture, by name."""
    lens, sample = dl.load(options.model), dl.tasks.maze(EVAL_SEED, num_frames=options.frames)
    arms = Arms(lens, sample, options.store, steps=options.steps, cfg_scale=options.cfg_scale)
    return {
        "bare": arms.bare,
        "lens.run without records": arms.without_records,
        "official-style hook": arms.official,
        "plain hook: energy": arms.plain_energy,
        "plain hook: a file a state": arms.plain_files,
        "nnsight cache": arms.nnsight_cache,
        "ours: energy": lambda: arms.ours([dl.energy]),
        "ours: full states": lambda: arms.ours([dl.hidden]),
        BATCH: lambda: arms.batch(BATCH_SEEDS, BATCH_STEPS),
    }


def peak(options: Options, arm: str) -> float:
    """Return the growth of memory in a process that runs one arm once, in MB."""
    command = [sys.executable, __file__, "--arm", arm, "--steps", str(options.steps)]
    command += ["--model", options.model, "--frames", str(options.frames)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return float(out.strip().splitlines()[-1])


def main(options: Options) -> None:
    """Time all arms, interleaved; print a table; write JSON."""
    if threads := options.threads or (1 if options.clock == "cpu" else 0):
        import torch

        torch.set_num_threads(threads)
    arms = arms_of(options)
    if options.arm:
        arms["bare"]()
        print(growth(arms[options.arm]))
        return
    new_folder(options.store)
    try:
        report(options, measure(options, arms))
    finally:
        shutil.rmtree(options.store, ignore_errors=True)


def measure(options: Options, arms: dict[str, Callable[[], Any]]) -> dict[str, dict[str, Any]]:
    """Time all arms in a shuffled order, round after round; return a row of figures for each."""
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    for work in arms.values():
        work()  # not counted
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(options.rounds):
        order = list(arms)
        random.shuffle(order)
        for name in order:
            start = clock()
            arms[name]()
            seconds[name].append(clock() - start)
    seconds[BATCH] = [taken / BATCH_SEEDS for taken in seconds[BATCH]]
    rows = {}
    for name, taken in seconds.items():
        share = BATCH_STEPS / options.steps if name == BATCH else 1.0  # of the bare pipeline's steps
        ratios = sorted(t / (b * share) for t, b in zip(taken, seconds["bare"], strict=True))
        median, lower, upper = median_interval(ratios)
        rows[name] = {
            "median_s": statistics.median(taken),
            "ratio_median": median,
            "ratio_interval_95": [lower, upper],
            "ratio_min": ratios[0],
            "ratio_max": ratios[-1],
            "growth_MB": peak(options, name),
        }
    return rows


def report(options: Options, rows: dict[str, dict[str, Any]]) -> None:
    """Print the rows as a table, and write them as JSON."""
    print("| arm | median s | ratio | 95% interval | min | max | memory MB |\n|---|---|---|---|---|---|---|")
    for name, r in rows.items():
        interval = "{:.3f}, {:.3f}".format(*r["ratio_interval_95"])
        ratios = f"{r['ratio_median']:.3f} | {interval} | {r['ratio_min']:.3f} | {r['ratio_max']:.3f}"
        print(f"| {name} | {r['median_s']:.3f} | {ratios} | {r['growth_MB']:.0f} |")
    if options.out:
        about: dict[str, Any] = {"command": " ".join(["python", *sys.argv]), "clock": options.clock}
        about |= {"rounds": options.rounds, "steps": options.steps}
        options.out.write_text(json.dumps({**about, "arms": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options))
