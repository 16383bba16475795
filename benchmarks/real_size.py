"""What does capture cost at the size that people study? Parity, labels, memory and time, written to a page.

    python benchmarks/real_size.py [--models wan2.2 ltx2.3] [--steps 2] [--rounds 3] [--out docs/performance.md]

DiTs have the published configuration and random weights: cost does not depend on what was learned. On a GPU:
bf16, all layers, the published size of the video. Elsewhere: float32, the same width, few layers and few tokens,
so that it runs at all; the page says so. Text encoders and codecs are small (their cost is not what is asked).
"""

from __future__ import annotations

import gc
import json
import platform
import random
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from PIL import Image
from tqdm import tqdm

import dit_lens as dl
from arms import Arms, growth, new_folder
from real_models import MODELS, Model, Size
from recorder import Recorder, energy_of


@dataclass
class Options:
    """Options of the benchmark; their defaults follow the model and the device."""

    models: tuple[str, ...] = tuple(MODELS)
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    layers: int | None = None
    """Blocks of each DiT; all of them on a GPU, 2 elsewhere."""
    frames: int | None = None
    height: int | None = None
    width: int | None = None
    steps: int = 2
    rounds: int = 3
    store: Path = Path("runs/real_size")
    """Folder that stores are made in. It is removed in the end, so it must not exist."""
    out: Path | None = None
    """Page to write; the figures go beside it as JSON."""

    @property
    def full(self) -> bool:
        """Whether models have their full size."""
        return self.device.startswith("cuda")

    @property
    def dtype(self) -> torch.dtype:
        """Number type of the models: bf16 is far slower than float32 on CPUs."""
        return torch.bfloat16 if self.full else torch.float32

    def size(self, model: Model) -> Size:
        """Return the size that a model is measured at."""
        layers, frames, height, width = model.full if self.full else model.small
        return Size(
            self.layers or layers,
            self.frames or frames,
            self.height or height,
            self.width or width,
            self.device,
            self.dtype,
        )


ENERGY = "ours: energy of all layers"


def peaks(work: Callable[[], Any], options: Options) -> dict[str, float]:
    """Return what a run takes at most: GB of host memory gained, GB on the device in all."""
    if options.full:
        torch.cuda.reset_peak_memory_stats()
    host = growth(work) / 1e3
    return {"host_GB": host, "device_GB": torch.cuda.max_memory_allocated() / 1e9 if options.full else 0.0}


def measure(name: str, options: Options) -> dict[str, Any]:
    """Build a model, check it, and time all ways to capture, interleaved."""
    model = MODELS[name]
    size = options.size(model)
    lens = dl.Lens(model.build(size))
    image = Image.new("RGB", (size.width, size.height), (90, 120, 60))
    sample = dl.Sample(prompt="solve the maze", image=image, num_frames=size.frames)
    arms = Arms(lens, sample, options.store, steps=options.steps, cfg_scale=lens.family.call.default_cfg)
    recorder = Recorder(lens.pipe, model)
    recorder.watch(arms.bare)
    ways = ways_of(arms, recorder)
    run = ways[ENERGY]()
    compared = recorder.agrees(run)
    memory = {way: peaks(work, options) for way, work in ways.items()}
    seconds = times(ways, options)
    return {
        "title": model.title,
        "size": [size.frames, size.height, size.width],
        "layers": lens.layers,
        "published_layers": model.full[0],
        "parameters": sum(p.numel() for dit in lens.dits.values() for p in dit.parameters()),
        "grids": {stream: run[energy_of(stream)].shape[-3:] for stream in lens.family.anatomy.sites},
        "compared": compared,
        "experts": sorted({expert for _, _, expert in recorder.calls}),
        "refused": recorder.refused,
        "arms": {way: ratios(taken, seconds["bare"]) | memory[way] for way, taken in seconds.items()},
    }


def ways_of(arms: Arms, recorder: Recorder) -> dict[str, Callable[[], Any]]:
    """Return the ways to capture; each takes all streams of the model."""
    streams = list(arms.lens.family.anatomy.sites)
    middle = arms.lens.layers // 2
    official = "official-style hook" + (", made to pick the state" if recorder.refused else "")
    return {
        "bare": arms.bare,
        f"{official}, first call of a step": lambda: arms.official(branches=2),
        "plain hook: energy": arms.plain_energy,
        ENERGY: lambda: arms.ours([(dl.energy, dl.at(stream=s)) for s in streams]),
        "ours: full states of one layer": lambda: arms.ours(
            [(dl.hidden, dl.at(stream=s, layer=middle)) for s in streams]
        ),
    }


def ratios(taken: list[float], bare: list[float]) -> dict[str, float]:
    """Return the median time, and what it is of the bare pipeline's in the same round."""
    of_bare = sorted(t / b for t, b in zip(taken, bare, strict=True))
    return {
        "median_s": statistics.median(taken),
        "ratio_median": statistics.median(of_bare),
        "ratio_min": of_bare[0],
        "ratio_max": of_bare[-1],
    }


def times(ways: dict[str, Callable[[], Any]], options: Options) -> dict[str, list[float]]:
    """Time all ways in a shuffled order, round after round."""
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in tqdm(range(options.rounds), desc="rounds"):
        for way in random.sample(list(ways), len(ways)):
            start = time.perf_counter()
            ways[way]()
            if options.full:
                torch.cuda.synchronize()
            seconds[way].append(time.perf_counter() - start)
            shutil.rmtree(options.store, ignore_errors=True)
    return seconds


def page(models: list[dict[str, Any]], options: Options) -> str:
    """Return the page."""
    device = torch.cuda.get_device_name() if options.full else f"CPU ({platform.machine()})"
    lines = [
        "# Performance at real size"
        if options.full
        else "# Performance: the models' own width, at a reduced size",
        "",
        f"Made by `python {' '.join(sys.argv)}`; the figures are in [performance.json](performance.json).",
        f"{device}, {options.dtype}, torch {torch.__version__}; {options.steps} steps, both guidance branches;",
        f"{options.rounds} rounds, all arms interleaved in a shuffled order, ratios to the bare pipeline of the same round",
        "(median, least, most). Random weights: what capture costs does not depend on them.",
    ]
    if not options.full:
        lines += [
            "",
            "**Not at full size.** No GPU was at hand: the width is the models' own, but layers and tokens (of video, sound",
            "and text) are few, so that it runs at all. Parity and labels are checked as they are on a GPU; times, ratios",
            "and memory say nothing of full size. On a GPU the same command makes this page at full size.",
        ]
    return "\n".join([*lines, *(line for model in models for line in section(model, options))]) + "\n"


def section(model: dict[str, Any], options: Options) -> list[str]:
    """Return the lines on one model."""
    frames, height, width = model["size"]
    tokens = ", ".join(
        f"{np.prod(grid):,} of {stream} ({' x '.join(map(str, grid))})"
        for stream, grid in model["grids"].items()
    )
    lines = [
        "",
        f"## {model['title']}",
        "",
        f"Experts that ran: {', '.join(model['experts'])}; {model['layers']} of {model['published_layers']} layers each, "
        f"{model['parameters'] / 1e9:.2f} G parameters in all;",
        f"{frames} frames of {height}x{width}; tokens: {tokens}.",
        "",
        f"Parity and labels: all {model['compared']} energy maps (step, branch, layer, stream) are, bit for bit, what plain",
        "hooks saw in the bare pipeline under the label that `model_fn` was given. Every arm captures all streams.",
    ]
    if model["refused"]:
        lines += [
            "",
            "Released tools call `output.detach().cpu().float()` on what a block returns, which fails on this model",
            f"(`{model['refused']}`): their hook is made to pick the state here.",
        ]
    lines += [
        "",
        "| arm | median s | ratio | min | max | host memory gained, GB | device memory, GB |",
        "|---|---|---|---|---|---|---|",
    ]
    for way, r in model["arms"].items():
        ratio = f"{r['ratio_median']:.3f} | {r['ratio_min']:.3f} | {r['ratio_max']:.3f}"
        device = f"{r['device_GB']:.1f}" if options.full else "-"
        lines.append(f"| {way} | {r['median_s']:.2f} | {ratio} | {r['host_GB']:.2f} | {device} |")
    return lines


def main(options: Options) -> None:
    """Measure every model; print the page, or write it."""
    models = []
    new_folder(options.store)
    try:
        for name in options.models:
            models.append(measure(name, options))
            gc.collect()  # a model and its hooks refer to each other; the next one needs the room
    finally:
        shutil.rmtree(options.store, ignore_errors=True)
    text = page(models, options)
    print(text)
    if options.out:
        options.out.write_text(text)
        settings = {k: str(v) for k, v in asdict(options).items()}
        data = {"settings": settings, "models": models}
        options.out.with_suffix(".json").write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options))
