"""Does memory grow with the number of steps? What recording all layers of 10 and of 100 steps takes.

    python benchmarks/memory.py [--steps 10 100] [--rounds 6]

Each run is a process of its own; full states of all layers go into a store. The official-style hook, which
keeps them, is beside it. Medians over the rounds with their 95% intervals.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from arms import median_interval


@dataclass
class Options:
    """Options of the benchmark."""

    steps: tuple[int, ...] = (10, 100)
    rounds: int = 6


def main(options: Options) -> None:
    """Print the peaks, and what an additional step costs."""
    for arm in ("bare", "ours: full states", "official-style hook"):
        peaks = {steps: [peak(arm, steps) for _ in range(options.rounds)] for steps in options.steps}
        shown = [
            "{} steps {:.1f} MB [{:.1f}, {:.1f}]".format(s, *median_interval(of)) for s, of in peaks.items()
        ]
        first, last = options.steps[0], options.steps[-1]
        grown = [(b - a) / (last - first) for a, b in zip(peaks[first], peaks[last], strict=True)]
        slope = "{:.3f} MB a step [{:.3f}, {:.3f}]".format(*median_interval(grown))
        print(f"{arm:20s} n={options.rounds}: {', '.join(shown)}; {slope}", flush=True)


def peak(arm: str, steps: int) -> float:
    """Return the growth of memory in a process that runs one arm once, in MB."""
    overhead = Path(__file__).with_name("capture_overhead.py")
    command = [sys.executable, str(overhead), "--arm", arm, "--steps", str(steps)]
    command += ["--model", "organism-v1", "--frames", "13"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return float(out.strip().splitlines()[-1])


if __name__ == "__main__":
    main(tyro.cli(Options))
