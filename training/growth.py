"""Draw what an organism answers along its training, from evaluations of the weights that `train.py --kept` left.

Usage: python training/growth.py docs/organism/growth/*.json --out docs/organism/growth.png
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from matplotlib.figure import Figure

from dit_lens.experiments.summary import rate

LINES = {("1 step", "answered"): "C1-", ("20 steps", "answered"): "C0-", ("20 steps", "solved"): "C0:"}
"""Run and outcome of each line, and how it is drawn."""
WORDS = {"answered": "answer right", "solved": "solved"}


@dataclass
class Args:
    """What is drawn where."""

    results: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Files of `evaluate.py` for weights that were kept; their names end in the step, as in full.100.json."""
    out: Path = Path("growth.png")


def step_of(path: Path) -> int:
    """Return the step of the training that a file is about.

    Raises:
        ValueError: its name does not say it.
    """
    _, _, step = path.stem.rpartition(".")
    if not step.isdigit():
        raise ValueError(f"{path} does not say the step: call it NAME.STEP.json.")
    return int(step)


def main(args: Args) -> None:
    """Draw a panel for each set of scenes."""
    measured = {
        step: json.loads(path.read_text()) for step, path in sorted((step_of(p), p) for p in args.results)
    }
    names = list(next(iter(measured.values()))["sets"])
    columns = min(len(names), 3)
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(3.6 * columns, 2.7 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axis, name in zip(axes.flat, names, strict=False):
        _draw(axis, {step: one["sets"][name] for step, one in measured.items()})
        axis.set(title=name, xscale="log", ylim=(-0.03, 1.03))
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[-1]:
        axis.set(xlabel="step of the training")
    for axis in axes[:, 0]:
        axis.set(ylabel=f"share of {next(iter(measured.values()))['n']} scenes")
    axes.flat[0].legend(frameon=False, fontsize=8, loc="upper left")
    figure.savefig(args.out, dpi=110)


def _draw(axis: Any, outcomes: dict[int, Any]) -> None:
    """Draw a set's rates by step, each with Wilson's 95% interval."""
    for (run, outcome), style in LINES.items():
        rates = [rate(labels[run][outcome]) for labels in outcomes.values()]
        low, high = np.array([r["interval_95"] for r in rates]).T
        steps = list(outcomes)
        axis.plot(
            steps, [r["rate"] for r in rates], style, marker=".", lw=1.4, label=f"{WORDS[outcome]}, {run}"
        )
        if outcome == "answered":
            axis.fill_between(steps, low, high, color=style[:2], alpha=0.15, lw=0)


if __name__ == "__main__":
    main(tyro.cli(Args))
