"""What does capture cost? The bare pipeline against what a user could do, interleaved in one run, as ratios.

    python benchmarks/capture_overhead.py [--rounds 7] [--steps 20] [--out benchmarks/capture_overhead.json]

Arms: the bare pipeline; the official-style hook (`.detach().cpu().float()` of every block, kept in memory);
a plain hook that keeps the energy alone, without labels; nnsight's cache of every block; ours: energy of all
layers into a store; full states of all layers into a store. Each round runs all arms in a shuffled order, in
one process for the times, in a process of its own for the memory (`--arm`).
"""

from __future__ import annotations

import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

import dit_lens as dl
from dit_lens.tasks.canvas import EVAL_SEED


@dataclass
class Options:
    """Options of the benchmark."""

    rounds: int = 7
    steps: int = 20
    cfg_scale: float = 3.0
    """Over 1, so that both branches run."""
    threads: int = 0
    """Torch threads; its default unless given."""
    store: Path = Path("runs/bench")
    """Folder that stores are made in, and which is removed in the end."""
    arm: str | None = None
    """Run one arm once, and print how much memory it took (used by the benchmark itself)."""
    out: Path | None = None


class Arms:
    """The ways to capture, each a function that generates one sample."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.lens = dl.load("organism")
        self.sample = dl.tasks.maze(EVAL_SEED)
        self.keywords = self.lens.family.arguments(
            self.sample, 0, options.steps, options.cfg_scale, {"progress_bar_cmd": lambda steps: steps}
        )
        self.arms: dict[str, Callable[[], Any]] = {
            "bare": self.bare,
            "official-style hook": self.official,
            "plain hook: energy": self.plain_energy,
            "nnsight cache": self.nnsight_cache,
            "ours: energy": lambda: self.ours([dl.energy]),
            "ours: full states": lambda: self.ours([dl.hidden]),
        }

    def bare(self) -> Any:
        """The pipeline alone."""
        return self.lens.pipe(**self.keywords)

    def official(self) -> Any:
        """Hooks as released tools have them: every block's output, off the device, as float32, in memory."""
        kept: list[Any] = []

        def hook(_: Any, __: Any, output: Any) -> None:
            kept.append(output.detach().cpu().float())

        handles = [b.register_forward_hook(hook) for b in self.lens.pipe.dit.blocks]
        try:
            return self.bare(), kept
        finally:
            for handle in handles:
                handle.remove()

    def plain_energy(self) -> Any:
        """A hook that computes the energy of every block's tokens, and keeps it in memory without labels."""
        kept: list[Any] = []
        handles = [
            b.register_forward_hook(lambda _, __, output: kept.append(output.norm(dim=-1).cpu()))
            for b in self.lens.pipe.dit.blocks
        ]
        try:
            return self.bare(), kept
        finally:
            for handle in handles:
                handle.remove()

    def nnsight_cache(self) -> Any:
        """Nnsight's own cache of every block's output."""
        from nnsight import NNsight

        from dit_lens.trace import _release

        model = NNsight(self.lens.pipe)
        blocks = [model.dit.blocks[i] for i in range(self.lens.layers)]
        with model.trace(None, fn=lambda _: self.bare()) as tracer:
            cache = tracer.cache(modules=blocks)
        _release(self.lens)
        return cache

    def ours(self, record: list[Any]) -> Any:
        """A traced run into a store, on the disk where a user's would be."""
        self.options.store.mkdir(parents=True, exist_ok=True)
        return self.lens.run(
            self.sample,
            0,
            record=record,
            steps=self.options.steps,
            cfg_scale=self.options.cfg_scale,
            store=tempfile.mkdtemp(dir=self.options.store),
        )


def growth(work: Callable[[], Any]) -> float:
    """Return by how much resident memory rises at most while something runs, in MB, sampled every 2 ms.

    Not the process's own maximum: importing the libraries takes more than a small run, and would hide it.
    """
    start, most, ended = resident(), [0], threading.Event()

    def sample() -> None:
        while not ended.wait(0.002):
            most[0] = max(most[0], resident())

    watcher = threading.Thread(target=sample)
    watcher.start()
    kept = work()
    most[0] = max(most[0], resident())
    ended.set()
    watcher.join()
    del kept
    return (most[0] - start) / 1e6


def resident() -> int:
    """Return the resident memory of this process, in bytes (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak(options: Options, arm: str) -> float:
    """Return the growth of memory in a process that runs one arm once, in MB."""
    command = [sys.executable, __file__, "--arm", arm, "--steps", str(options.steps)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return float(out.strip().splitlines()[-1])


def main(options: Options) -> None:
    """Time all arms, interleaved; print a table; write JSON."""
    if options.threads:
        import torch

        torch.set_num_threads(options.threads)
    arms = Arms(options)
    if options.arm:
        arms.bare()
        print(growth(arms.arms[options.arm]))
        return
    try:
        report(options, measure(options, arms))
    finally:
        shutil.rmtree(options.store, ignore_errors=True)


def measure(options: Options, arms: Arms) -> dict[str, dict[str, float]]:
    """Time all arms in a shuffled order, round after round; return a row of figures for each."""
    for work in arms.arms.values():
        work()  # not counted
    seconds: dict[str, list[float]] = {name: [] for name in arms.arms}
    for _ in range(options.rounds):
        order = list(arms.arms)
        random.shuffle(order)
        for name in order:
            start = time.perf_counter()
            arms.arms[name]()
            seconds[name].append(time.perf_counter() - start)
    rows = {}
    for name, taken in seconds.items():
        ratios = sorted(t / b for t, b in zip(taken, seconds["bare"], strict=True))
        rows[name] = {
            "median_s": statistics.median(taken),
            "ratio_median": statistics.median(ratios),
            "ratio_min": ratios[0],
            "ratio_max": ratios[-1],
            "growth_MB": peak(options, name),
        }
    return rows


def report(options: Options, rows: dict[str, dict[str, float]]) -> None:
    """Print the rows as a table, and write them as JSON."""
    print("| arm | median s | ratio | min | max | memory MB |\n|---|---|---|---|---|---|")
    for name, r in rows.items():
        ratios = f"{r['ratio_median']:.3f} | {r['ratio_min']:.3f} | {r['ratio_max']:.3f}"
        print(f"| {name} | {r['median_s']:.3f} | {ratios} | {r['growth_MB']:.0f} |")
    if options.out:
        about = {"command": " ".join(["python", *sys.argv]), "rounds": options.rounds, "steps": options.steps}
        options.out.write_text(json.dumps({**about, "arms": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options))
