"""Measure the organism: solve rates by task and number of steps, and what x0 holds along the run.

Usage: python training/evaluate.py [--n 200] [--out docs/organism.json]

Samples of one task go through the model as one batch: the pipeline's own units prepare each, and `model_fn` and the
scheduler run the loop once for all. Rates come with Wilson 95% intervals.
"""

from __future__ import annotations

import json
import subprocess
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
from dit_lens.families.wan import arguments
from dit_lens.models import organism
from dit_lens.tasks.canvas import EVAL_SEED
from dit_lens.tasks.sample import Sample
from dit_lens.tasks.trail import trail_strength

SETS = {
    "circle": tasks.circle,
    "maze4": partial(tasks.maze, size=4),
    "pattern": tasks.pattern,
    "occlude": tasks.occlude,
    "choose": tasks.choose,
    "loop": tasks.loop,
    "maze": tasks.maze,
}


@dataclass
class Args:
    """Options of the evaluation."""

    n: int = 200
    """Samples a task."""
    steps: tuple[int, ...] = (1, 4, 20)
    cfg_scale: float = 1.0
    batch: int = 50
    tasks: tuple[str, ...] = tuple(SETS)
    weights: Path = organism.WEIGHTS
    out: Path | None = None
    """Write the figures here, as JSON."""


def wilson(k: int, n: int) -> tuple[float, float]:
    """Return the Wilson 95% interval of a rate (Wilson 1927)."""
    z, p = 1.959964, k / n
    middle, half = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)


@torch.no_grad()
def generate(pipe: Any, samples: Sequence[Sample], steps: int, cfg_scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Generate a batch, seed i for sample i.

    Returns:
        Frames [sample, time, height, width, rgb] of the video, and of x0 at step 0.
    """
    pipe.scheduler.set_timesteps(steps, shift=5.0)
    prepared = [_prepare(pipe, sample, seed) for seed, sample in enumerate(samples)]
    latents, context, empty, y = (torch.cat(parts) for parts in zip(*prepared, strict=True))
    first = latents
    for i, timestep in enumerate(pipe.scheduler.timesteps):
        call = partial(pipe.model_fn, dit=pipe.dit, latents=latents, timestep=timestep.expand(len(latents)), y=y)
        v = call(context=context)
        if cfg_scale != 1:
            v0 = call(context=empty)
            v = v0 + cfg_scale * (v - v0)
        if i == 0:
            first = pipe.scheduler.step(v, timestep, latents, to_final=True)
        latents = pipe.scheduler.step(v, timestep, latents)
    return _frames(pipe, latents), _frames(pipe, first)


def _prepare(pipe: Any, sample: Sample, seed: int) -> tuple[torch.Tensor, ...]:
    given = arguments(sample, seed, 1, 1.0, {})
    shared = {k: given[k] for k in ("input_image", "height", "width", "num_frames", "seed", "tiled")}
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
    words = [prompt.process(pipe, text, True)["context"] for text in (given["prompt"], given["negative_prompt"])]
    return noise, *words, image


def _frames(pipe: Any, latents: torch.Tensor) -> np.ndarray:
    video = pipe.vae.decode(latents).permute(0, 2, 3, 4, 1)
    return ((video + 1) * 127.5).clamp(0, 255).to(torch.uint8).numpy()


def candidates(sample: Sample, frames: np.ndarray) -> int:
    """Count the answers that a decoded x0 shows at all: goals, or routes, with a trail of at least 15% on their own part."""
    options = sample.scorer.keywords  # type: ignore[union-attr]
    strength = trail_strength(frames[-1], options["size"])
    if "routes" in options:
        own = [r - frozenset.union(*(o for o in options["routes"] if o is not r)) for r in options["routes"]]
        return sum(float(np.mean([strength[e] for e in part])) > 0.15 for part in own)
    return sum(max(s for e, s in strength.items() if goal in e) > 0.15 for goal in options["goals"])


def measure(pipe: Any, name: str, args: Args) -> dict[str, Any]:
    """Measure one task."""
    samples = [SETS[name](EVAL_SEED + i) for i in range(args.n)]
    out: dict[str, Any] = {"n": args.n, "rates": {}}
    for steps in args.steps:
        solved, answers, firsts, shown = 0, [], 0, []
        for start in range(0, args.n, args.batch):
            part = samples[start : start + args.batch]
            videos, x0 = generate(pipe, part, steps, args.cfg_scale)
            for sample, video, early in zip(part, videos, x0, strict=True):
                score = sample.score(video)
                solved += score.solved
                firsts += sample.score(early).solved
                answers.append(score.answer)
                if name in ("choose", "loop") and steps == max(args.steps):
                    shown.append(candidates(sample, early))
        out["rates"][str(steps)] = {"solved": solved, "rate": solved / args.n, "interval": wilson(solved, args.n)}
        if steps == max(args.steps):
            out["x0_at_step_0"] = {"solved": firsts, "rate": firsts / args.n, "interval": wilson(firsts, args.n)}
        if shown:
            several = sum(c > 1 for c in shown)
            out["several_candidates_at_step_0"] = {
                "count": several, "rate": several / args.n, "interval": wilson(several, args.n)
            }
    if name in ("choose", "loop"):
        out["varies_with_seed"] = vary(pipe, samples[: min(50, args.n)], max(args.steps), args.cfg_scale)
    return out


def vary(pipe: Any, samples: Sequence[Sample], steps: int, cfg_scale: float, seeds: int = 8) -> dict[str, Any]:
    """Count the scenes in which different seeds give different right answers."""
    varied = 0
    for sample in samples:
        videos, _ = generate(pipe, [sample] * seeds, steps, cfg_scale)
        scores = [sample.score(v) for v in videos]
        varied += len({s.answer for s in scores if s.solved}) > 1
    interval = wilson(varied, len(samples))
    return {"n": len(samples), "seeds": seeds, "count": varied, "rate": varied / len(samples), "interval": interval}


def main(args: Args) -> None:
    """Measure all tasks, print a table, write the JSON."""
    pipe = organism.pipeline(args.weights)
    results: dict[str, Any] = {}
    start = time.time()
    for name in tqdm(args.tasks, desc="tasks"):
        results[name] = measure(pipe, name, args)
        rates = "  ".join(
            f"{s} steps {r['rate']:.3f} [{r['interval'][0]:.3f}, {r['interval'][1]:.3f}]"
            for s, r in results[name]["rates"].items()
        )
        tqdm.write(f"{name:8s} n={args.n}  {rates}")
        rest = {k: round(v["rate"], 3) for k, v in results[name].items() if isinstance(v, dict) and "rate" in v}
        tqdm.write(f"         {rest}")
    if args.out:
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
        about = {"command": " ".join(["python", *sys.argv]), "commit": commit, "seconds": round(time.time() - start)}
        args.out.write_text(json.dumps({**about, "cfg_scale": args.cfg_scale, "tasks": results}, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Args))
