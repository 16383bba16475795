"""How does the answer depend on the number of frames? The paper's frame-count study.

Every sample is generated with each number of frames. A model that was trained on one number is asked here for
what it never saw, where the number is another: a drop away from the trained number says that, too.

    python analyses/frame_count.py --task maze --samples 64 --counts 5 9 13 17 25 --out runs/frame_count
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import tyro
import xarray as xr
from tqdm import tqdm

import dit_lens as dl
from dit_lens import study


@dataclass
class Options(study.Options):
    """Vary the number of frames."""

    counts: tuple[int, ...] = (5, 9, 13, 17, 25)
    """Numbers of frames; models round them to what they take (4k + 1 for Wan)."""
    out: Path = Path("runs/frame_count")


def main(options: Options) -> int:
    """Generate with every number of frames, compare, draw, save."""
    lens = dl.load(options.model)
    results, code = study.study(options, "frame_count", lens, lambda part: measure(lens, part, options))
    study.compare(results, "frames", f"Number of frames · {options.task}", options)
    return code


def measure(lens: dl.Lens, samples: list[dl.Sample], options: Options) -> xr.Dataset:
    """Judge the video of every number of frames."""
    found = []
    for count in tqdm(options.counts, desc="number of frames", leave=False):
        # The same scene, prompt and first frame; only the length is another.
        longer = [replace(sample, num_frames=count) for sample in samples]
        batch = lens.batch(study.pairs_of(longer, options), options.steps, options.cfg_scale, options.at_once)
        x = batch.noise
        for step in range(batch.steps):
            x = batch.step(step, x).latents
        found.append(study.outcomes(batch, x[None], x).isel(arm=0).drop_vars("distance"))
    every = xr.concat(found, xr.Variable("frames", list(options.counts)))
    return study.by_sample(every, samples, options)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
