"""How does the answer depend on the number of denoising steps? The paper's distillation study.

Every sample is generated with each number of steps, from the same noise; with few steps a model that works its
answer out along them has less room to.

    python analyses/step_count.py --task maze --samples 64 --counts 1 2 4 8 20 --out runs/step_count
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
import xarray as xr
from tqdm import tqdm

import dit_lens as dl
from dit_lens import study


@dataclass
class Options(study.Options):
    """Vary the number of steps."""

    counts: tuple[int, ...] = (1, 2, 4, 8, 12, 20, 40)
    """Numbers of steps."""
    out: Path = Path("runs/step_count")


def main(options: Options) -> int:
    """Generate with every number of steps, compare, draw, save."""
    lens = dl.load(options.model)
    results, code = study.study(options, "step_count", lens, lambda part: measure(lens, part, options))
    study.compare(results, "steps", f"Number of steps · {options.task}", options)
    return code


def measure(lens: dl.Lens, samples: list[dl.Sample], options: Options) -> xr.Dataset:
    """Judge the video of every number of steps; the distance is to that of the most."""
    batches = {
        n: lens.batch(study.pairs_of(samples, options), n, options.cfg_scale, options.at_once)
        for n in options.counts
    }
    ended = {}
    for n, batch in tqdm(batches.items(), desc="number of steps", leave=False):
        x = batch.noise
        for step in range(n):
            x = batch.step(step, x).latents
        ended[n] = x
    most = max(options.counts)
    found = study.outcomes(batches[most], torch.stack(list(ended.values())), ended[most])
    return study.by_sample(found.rename(arm="steps").assign_coords(steps=list(ended)), samples, options)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
