"""Does memory grow with the number of steps? What recording all layers of 10 and of 100 steps takes.

    python benchmarks/memory.py [--steps 10 100]

Each run is a process of its own; full states of all layers go into a store. The official-style hook, which
keeps them, is beside it.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass
class Options:
    """Options of the benchmark."""

    steps: tuple[int, ...] = (10, 100)


def main(options: Options) -> None:
    """Print the peaks, and what an additional step costs."""
    overhead = Path(__file__).with_name("capture_overhead.py")
    for arm in ("bare", "ours: full states", "official-style hook"):
        peaks = []
        for steps in options.steps:
            command = [sys.executable, str(overhead), "--arm", arm, "--steps", str(steps)]
            out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            peaks.append(float(out.strip().splitlines()[-1]))
        grown = (peaks[-1] - peaks[0]) / (options.steps[-1] - options.steps[0])
        shown = ", ".join(f"{s} steps {p:.0f} MB" for s, p in zip(options.steps, peaks, strict=True))
        print(f"{arm:22s} {shown}: {grown:.2f} MB a step")


if __name__ == "__main__":
    main(tyro.cli(Options))
