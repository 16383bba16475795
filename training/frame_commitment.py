"""When is each frame settled? The step from which on the agent stands where it ends up standing, frame by frame.

Usage:
    python training/frame_commitment.py --n 32 --out docs/organism/frame_commitment

A model that reasons along its frames settles early frames before late ones; one that reasons along its steps settles all
of them at once. So `causal`, whose tokens see past frames alone, is the control beside `full`. What is read is the cell of
the agent in each frame of the decoded x0 of each step; a frame that shows none, or several, has none. A run's slope is that
of the line through its frames' steps, times the length of the video: how many steps later the last frame is settled than
the first.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
import xarray as xr
from matplotlib.figure import Figure
from numpy.typing import NDArray
from tqdm import tqdm

import dit_lens as dl
from dit_lens import tasks
from dit_lens.tasks import conduct
from dit_lens.tasks.canvas import CELL, EVAL_SEED, Canvas
from dit_lens.tasks.sample import Sample

TASKS = {"choose": {"size": 6, "num_frames": 25}, "arrows": {"depth": 16}}


@dataclass
class Args:
    """What is run, and where the results go."""

    names: tuple[str, ...] = ("full", "causal")
    """Organisms."""
    n: int = 32
    """Scenes of each task."""
    steps: int = 20
    out: Path = Path("frame_commitment")
    """Without an ending: `.json` and `.png` are written."""


def main(args: Args) -> None:
    """Run, print a line for each organism and task, and draw them."""
    results, lines = [], {}
    for task, options in TASKS.items():
        samples = [tasks.make(task, EVAL_SEED + number, **options) for number in range(args.n)]
        for name in args.names:
            settled = commitments(dl.load(f"organism-{name}"), samples, args.steps)
            result = {"organism": name, "task": samples[0].task, "options": options, **summary(settled)}
            print(json.dumps(result))
            results.append(result)
            lines[task, name] = settled
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    draw(lines, args.out.with_suffix(".png"))


def commitments(lens: dl.Lens, samples: list[Sample], steps: int) -> xr.DataArray:
    """Return the step from which on each frame is settled, [sample, frame]; NaN where the last step shows no agent."""
    cells = [[] for _ in samples]
    for start in tqdm(range(0, len(samples), 8), desc=samples[0].task):
        part = samples[start : start + 8]
        batch = lens.batch([(sample, start + i) for i, sample in enumerate(part)], steps=steps)
        latents = batch.noise
        for step in range(batch.steps):
            out = batch.step(step, latents)
            latents = out.latents
            for i, video in enumerate(batch.decode(out.x0)):
                cells[start + i].append(places(video, part[i]))
    answers = xr.DataArray(np.array(cells), dims=("sample", "step", "frame")).assign_coords(
        step=range(steps), frame=range(samples[0].num_frames)
    )
    settled = dl.analysis.commitment(answers.transpose("sample", "frame", "step"))["commitment"]
    return settled.where(answers.isel(step=-1) != "")


def places(video: NDArray[np.uint8], sample: Sample) -> list[str]:
    """Return the cell of the agent in each frame; empty where there is no one agent."""
    board = _board(sample)
    seen = [conduct.see(frame, board) for frame in video]
    return [f"{int(s.at[1] // CELL)} {int(s.at[0] // CELL)}" if s.is_one else "" for s in seen]


def _board(sample: Sample) -> Canvas:
    """Return the first frame in [0, 1], with floor where the agent stands."""
    board = np.asarray(sample.image, np.float32) / 255
    board[sample.masks["agent"][0]] = tasks.canvas.FLOOR
    return board


def summary(settled: xr.DataArray) -> dict[str, Any]:
    """Return the slopes' mean with its 95% interval, over runs that show an agent in half of their frames or more."""
    length = settled.sizes["frame"] - 1
    read = settled.isel(frame=slice(1, None))  # the first frame is given
    kept = read.sel(sample=read.notnull().mean("frame") >= 0.5)
    slope = kept.polyfit("frame", 1, skipna=True)["polyfit_coefficients"].sel(degree=1) * length
    mean = dl.analysis.mean(slope.drop_vars("degree"))
    return {
        "runs": settled.sizes["sample"],
        "n": kept.sizes["sample"],
        "steps later at the end": round(float(mean["mean"]), 3),
        "interval": [round(float(mean[side]), 3) for side in ("low", "high")],
        "step of the median frame": round(float(kept.median()), 2),
    }


def draw(lines: dict[tuple[str, str], xr.DataArray], out: Path) -> None:
    """Draw the mean step by frame, a panel for each task."""
    panels = list(dict.fromkeys(task for task, _ in lines))
    figure = Figure(figsize=(4.4 * len(panels), 3.2), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)
    for axis, panel in zip(axes[0], panels, strict=True):
        for (task, name), settled in lines.items():
            if task == panel:
                settled.isel(frame=slice(1, None)).mean("sample").plot(ax=axis, label=name, marker=".", lw=1)
        axis.set(title=panel, xlabel="frame", ylabel="settled from step")
        axis.legend(frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main(tyro.cli(Args))
