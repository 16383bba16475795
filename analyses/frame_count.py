"""How does the answer depend on the number of frames? The paper's frame-count study.

Every sample is generated with each number of frames. A model that was trained on one number has never
seen the others, so a drop away from the trained number may show that alone.

Arms share their scenes, not their noise: noise of another length is other noise, and there is no way to make it the same.
So the differences between numbers of frames hold the scatter between seeds, too; --seeds averages over it.

    python analyses/frame_count.py --task maze --samples 64 --counts 5 9 13 17 25 --out runs/frame_count

On a folder of VBVR-Bench (`--score vbvr`) the official evaluator judges every number of frames against the last one, beside the
first frame held. It reads videos of any length, at most 100 frames of them, evenly spaced; some of its rules give fewer than 5
frames 0 without a look, so these are refused. The table says how many frames it read.

    python analyses/frame_count.py --model wan2.2 --eval-root VBVR-Bench --score vbvr --counts 41 81 121 --out runs/frames
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import xarray as xr
from tqdm import tqdm

import dit_lens as dl
from dit_lens.engine.batch import Batch
from dit_lens.engine.outcomes import by_sample, outcomes
from dit_lens.experiments import benchmark, benchmark_table
from dit_lens.experiments.options import ScoredOptions
from dit_lens.experiments.samples import batch_of, check_counts, draw, pairs_of
from dit_lens.experiments.script import run_script
from dit_lens.experiments.study import Measured, compare, study
from dit_lens.experiments.summary import write_summary


@dataclass
class Options(ScoredOptions):
    """Vary the number of frames."""

    counts: tuple[int, ...] = (5, 9, 13, 17, 25)
    """Numbers of frames. A model rounds them to what it takes (4k + 1 for Wan); the results say to what."""
    out: Path = Path("runs/frame_count")

    @property
    def title(self) -> str:
        """Of the figures."""
        return f"Number of frames · {self.source}"


NOISE = "scenes are paired between numbers of frames; the initial noise is not: noise of another length is other noise"


def main(options: Options) -> int:
    """Generate with every number of frames, compare, draw, save."""
    if options.num_frames is not None:
        raise dl.TaskError(
            f"--num-frames {options.num_frames}: this script compares numbers of frames; give them as --counts."
        )
    check_counts("--counts", options.counts)
    benchmark.refuse_unscored(options)
    lens = options.load()
    first = next(iter(draw(options, lens)), None)
    if first is None or (options.score == "own" and first.scorer is None):
        raise dl.TaskError("frame_count compares scores, and these samples have no scorer: use a --task.")
    counts_of = true_counts(lens, first, options.counts)
    if options.score == "vbvr":
        benchmark.refuse_short("--counts", list(counts_of))
    # The last one asked for is what others are compared with, also where it comes to the frames of an earlier one.
    baseline = next(made for made, asked in counts_of.items() if options.counts[-1] in asked)
    options = replace(options, counts=(*(made for made in counts_of if made != baseline), baseline))
    measured = study(
        options,
        "frame_count",
        lens,
        lambda part: measure(lens, part, options),
        runs=lambda batch: runs_of(lens, batch, options.counts),
    )
    more = {"noise": NOISE, "frames made, by frames asked for": counts_of}
    if options.score == "vbvr":
        return max(measured.exit_code, conclude_benchmark(measured, more, options))
    compare(measured, "frames", options.title, options, more)
    return measured.exit_code


def true_counts(lens: dl.Lens, sample: dl.Sample, counts: Sequence[int]) -> dict[int, list[int]]:
    """Return the numbers of frames that the model makes, with the numbers of --counts that come to each."""
    counts_of: dict[int, list[int]] = {}
    for count in counts:
        channels, frames, _, _ = latent_grid(lens, sample, count)
        # A small picture has as many frames as a large one.
        counts_of.setdefault(len(lens.decode(torch.zeros(frames, 2, 2, channels))), []).append(count)
    for frames, counts_wanted in counts_of.items():
        if counts_wanted != [frames]:
            print(f"{', '.join(map(str, counts_wanted))} frames asked for: the model makes {frames}, once.")
    return counts_of


def latent_grid(lens: dl.Lens, sample: dl.Sample, count: int) -> tuple[int, int, int, int]:
    """Return the latents' (channel, frame, y, x) of a sample with another number of frames."""
    return lens.family.anatomy.latent_grid(lens.pipe, replace(sample, num_frames=count))


def runs_of(lens: dl.Lens, batch: Batch, counts: Sequence[int]) -> float:
    """Return how many runs of the samples' own length all lengths come to, by latent frames; attention grows faster."""
    sample, _ = batch.pairs[0]
    return sum(latent_grid(lens, sample, count)[1] for count in counts) / batch.noise.shape[2]


def measure(lens: dl.Lens, samples: list[dl.Sample], options: Options) -> xr.Dataset:
    """Judge the video of every number of frames, or write it for the evaluator."""
    pairs, tables, written = pairs_of(samples, options), [], {}
    for count in tqdm(options.counts, desc="number of frames", leave=False):
        # The same scene, prompt and first frame; only the length is another.
        longer = [replace(sample, num_frames=count) for sample in samples]
        batch = batch_of(lens, pairs_of(longer, options), options)
        x = batch.noise
        for step in range(batch.steps):
            x = batch.step(step, x).latents
        if options.score == "vbvr":
            written[arm_of(count)] = benchmark.write_arm(options, arm_of(count), batch, x)
        else:
            tables.append(outcomes(batch, x[None], x).isel(arm=0).drop_vars("distance"))
    if options.score == "vbvr":
        written[benchmark.FLOOR] = benchmark.write_floor(options, pairs, batch.rates)
        return xr.Dataset({"video": benchmark.videos_of(pairs, written)})
    every = xr.concat(tables, xr.Variable("frames", list(options.counts)))
    return by_sample(every, pairs)


def arm_of(frames: int) -> str:
    """Return how an arm is called."""
    return f"{frames} frames"


def conclude_benchmark(measured: Measured, more: dict[str, Any], options: Options) -> int:
    """Let the official evaluator judge every number of frames; write the paired table; return the exit code."""
    results = measured.results
    curves = {"frames": {arm_of(n): n for n in options.counts}}
    report = benchmark_table.conclude(options, results.video, arm_of(options.counts[-1]), curves=curves)
    counted = {"samples": results.sizes["sample"], "seeds": results.sizes["seed"]}
    write_summary(options, {**counted, **more, **report.summary}, measured.left_out)
    return report.exit_code


if __name__ == "__main__":
    run_script(main, Options)
