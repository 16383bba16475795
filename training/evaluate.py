"""Measure the organism: solve rates by task and number of steps, and what x0 holds along the run.

Usage: python training/evaluate.py [--n 200] [--out docs/organism.json]

Samples of one task go through the model as one batch: the pipeline's own units prepare each, and `model_fn`
and the scheduler run the loop once for all. Rates come with Wilson 95% intervals. The slow tasks come first.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from tqdm import tqdm

from dit_lens import tasks
from dit_lens.experiments.summary import rate
from dit_lens.families.diffsynth.wan import WAN, arguments, expert_of
from dit_lens.models import organism
from dit_lens.models.organism.loading import load
from dit_lens.tasks.canvas import EVAL_SEED
from dit_lens.tasks.explore import candidates
from dit_lens.tasks.sample import Sample

SETS = {
    "maze": tasks.maze,
    "maze4": partial(tasks.maze, size=4),
    "loop": tasks.loop,
    "choose": tasks.choose,
    "circle": tasks.circle,
    "pattern": tasks.pattern,
    "occlude": tasks.occlude,
}


@dataclass
class Args:
    """Options of the evaluation."""

    n: int = 200
    """Samples a task."""
    steps: tuple[int, ...] = (1, 4, 20)
    cfg_scale: float = 1.0
    batch: int = 50
    workers: int = 2
    """Processes, a task each at a time."""
    tasks: tuple[str, ...] = tuple(SETS)
    model: str = "organism"
    """An organism's name."""
    folder: Path = organism.FOLDER
    """Where its files are."""
    out: Path | None = None
    """Write the figures here, as JSON."""
    card: Path | None = None
    """Page whose table, between the marks `<!-- results -->` and `<!-- end -->`, is replaced."""


@torch.no_grad()
def generate(
    pipe: Any, samples: Sequence[Sample], steps: int, cfg_scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """Generate a batch, seed i for sample i.

    Returns:
        Frames [sample, time, height, width, rgb] of the video, and of x0 at step 0.
    """
    pipe.scheduler.set_timesteps(steps, shift=5.0)
    prepared = [_prepare(pipe, sample, seed) for seed, sample in enumerate(samples)]
    latents, context, empty, y = (torch.cat(parts) for parts in zip(*prepared, strict=True))
    first = latents
    for i, timestep in enumerate(pipe.scheduler.timesteps):
        dit = WAN.anatomy.dits(pipe)[expert_of(pipe, float(timestep), {"switch_DiT_boundary": 0.875})]
        call = partial(pipe.model_fn, dit=dit, latents=latents, timestep=timestep.expand(len(latents)), y=y)
        v = call(context=context)
        if cfg_scale != 1:
            v0 = call(context=empty)
            v = v0 + cfg_scale * (v - v0)
        if i == 0:
            first = pipe.scheduler.step(v, timestep, latents, to_final=True)
        latents = pipe.scheduler.step(v, timestep, latents)
    return _frames(pipe, latents), _frames(pipe, first)


def _prepare(pipe: Any, sample: Sample, seed: int) -> tuple[torch.Tensor, ...]:
    keywords = arguments(sample, seed, 1, 1.0, {})
    shared = {k: keywords[k] for k in ("input_image", "height", "width", "num_frames", "seed", "tiled")}
    units = {type(u).__name__: u for u in pipe.units}
    blank = {"rand_device": "cpu", "vace_reference_image": None, "animate2_reference_video": None}
    noise = units["WanVideoUnit_NoiseInitializer"].process(
        pipe, **{k: shared[k] for k in ("height", "width", "num_frames", "seed")}, **blank
    )["noise"]
    prompt = units["WanVideoUnit_PromptEmbedder"]
    image = units["WanVideoUnit_ImageEmbedderVAE"].process(
        pipe,
        **{k: shared[k] for k in ("input_image", "num_frames", "height", "width", "tiled")},
        end_image=None,
        tile_size=None,
        tile_stride=None,
    )["y"]
    words = [
        prompt.process(pipe, text, True)["context"]
        for text in (keywords["prompt"], keywords["negative_prompt"])
    ]
    return noise, *words, image


def _frames(pipe: Any, latents: torch.Tensor) -> np.ndarray:
    video = pipe.vae.decode(latents).permute(0, 2, 3, 4, 1)
    return ((video + 1) * 127.5).clamp(0, 255).to(torch.uint8).numpy()


def measure(name: str, args: Args) -> dict[str, Any]:
    """Measure one task: rates by number of steps, and what x0 holds at step 0."""
    torch.set_num_threads(1)
    pipe = load(args.model, folder=args.folder).pipe
    samples = [SETS[name](EVAL_SEED + i) for i in range(args.n)]
    out: dict[str, Any] = {}
    for steps in args.steps:
        solved, early_solved, several = [], [], []
        for start in range(0, args.n, args.batch):
            part = samples[start : start + args.batch]
            for sample, video, early in zip(part, *generate(pipe, part, steps, args.cfg_scale), strict=True):
                solved.append(sample.score(video).solved)
                early_solved.append(sample.score(early).solved)
                if name in ("choose", "loop"):
                    several.append(candidates(sample, early) > 1)
        out[f"solved, {steps} steps"] = rate(solved)
    out["x0 at step 0 right"] = rate(early_solved)
    if name in ("choose", "loop"):
        out["x0 at step 0 shows several answers"] = rate(several)
        out["answer varies with the seed"] = vary(pipe, samples[: min(50, args.n)], args)
    if 1 in args.steps and len(args.steps) > 1:
        out["gain"] = gain(out[f"solved, {args.steps[-1]} steps"], out["solved, 1 steps"])
    return out


def gain(many: dict[str, Any], one: dict[str, Any]) -> dict[str, Any]:
    """Return the difference of two rates, with its 95% interval (Newcombe 1998, method 10)."""
    a, b, (al, ah), (bl, bh) = many["rate"], one["rate"], many["interval_95"], one["interval_95"]
    low = a - b - ((a - al) ** 2 + (bh - b) ** 2) ** 0.5
    high = a - b + ((ah - a) ** 2 + (b - bl) ** 2) ** 0.5
    return {"n": many["n"], "rate": a - b, "interval_95": [low, high]}


def vary(pipe: Any, samples: Sequence[Sample], args: Args, seeds: int = 8) -> dict[str, Any]:
    """Say in how many scenes different seeds give different right answers."""
    varied = []
    for sample in samples:
        videos, _ = generate(pipe, [sample] * seeds, args.steps[-1], args.cfg_scale)
        varied.append(len({s.answer for s in map(sample.score, videos) if s.solved}) > 1)
    return rate(varied) | {"seeds": seeds}


def table(results: dict[str, dict[str, Any]]) -> str:
    """Return the results as a table in markdown."""
    lines = ["| task | figure | rate | 95% interval | n |", "|---|---|---|---|---|"]
    for task, figures in results.items():
        for name, f in figures.items():
            low, high = f["interval_95"]
            name = "gain of the most steps over the fewest" if name == "gain" else name
            lines.append(f"| `{task}` | {name} | {f['rate']:.3f} | {low:.3f} to {high:.3f} | {f['n']} |")
    return "\n".join(lines)


def main(args: Args) -> None:
    """Measure all tasks, print a table, write the JSON."""
    start = time.time()
    with torch.multiprocessing.get_context("spawn").Pool(args.workers) as pool:
        work = pool.imap(partial(measure, args=args), args.tasks)
        results = dict(zip(args.tasks, tqdm(work, total=len(args.tasks), desc="tasks"), strict=True))
    print(table(results))
    if args.card:
        before, _, rest = args.card.read_text().partition("<!-- results -->")
        after = rest.partition("<!-- end -->")[2]
        args.card.write_text(f"{before}<!-- results -->\n{table(results)}\n<!-- end -->{after}")
    if args.out:
        about = {
            "command": " ".join(["python", *sys.argv]),
            **load(args.model, folder=args.folder).info,
            "seconds": round(time.time() - start),
        }
        args.out.write_text(
            json.dumps({**about, "cfg_scale": args.cfg_scale, "tasks": results}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main(tyro.cli(Args))
