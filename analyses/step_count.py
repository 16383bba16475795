"""How does the answer depend on the number of denoising steps? The paper's distillation study.

Every sample is generated with each number of steps, from the same noise; a model that works its
answer out along the steps has less room with few of them. Where the task has a right path (maze, loop), the summary also has
results by the length of the path, which show whether long paths gain from steps.

    python analyses/step_count.py --task maze --samples 64 --counts 1 2 4 8 20 --out runs/step_count

Samples of a folder of VBVR-Bench have no scorer: they give distances to the video of the most steps, and with `--score vbvr` the
official evaluator's scores, each number of steps against the last one, beside the first frame held.

    python analyses/step_count.py --model wan2.2 --eval-root VBVR-Bench --score vbvr --counts 4 10 50 --out runs/steps
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from tqdm import tqdm

import dit_lens as dl
from dit_lens import analysis, plot
from dit_lens.engine.outcomes import by_sample, outcomes
from dit_lens.experiments import benchmark, benchmark_table
from dit_lens.experiments.lengths import ONE_LENGTH, bins
from dit_lens.experiments.options import ScoredOptions
from dit_lens.experiments.outcomes import headline
from dit_lens.experiments.samples import batch_of, check_counts, pairs_of
from dit_lens.experiments.script import run_script
from dit_lens.experiments.study import compare, study
from dit_lens.tasks import explore


@dataclass
class Options(ScoredOptions):
    """Vary the number of steps."""

    counts: tuple[int, ...] = (1, 2, 4, 8, 12, 20, 40)
    """Numbers of steps."""
    out: Path = Path("runs/step_count")


def main(options: Options) -> int:
    """Generate with every number of steps, compare, draw, save."""
    if options.steps is not None:
        raise dl.TaskError(
            f"--steps {options.steps}: this script compares numbers of steps; give them as --counts."
        )
    check_counts("--counts", options.counts)
    benchmark.refuse_unscored(options, needs_scorer=False)
    lens = options.load()
    measured = study(
        options,
        "step_count",
        lens,
        lambda part: measure(lens, part, options),
        runs=lambda batch: sum(options.counts) / batch.steps,
    )
    more, code = conclude(measured.results, options)
    compare(measured, "steps", f"Number of steps · {options.source}", options, more)
    return max(measured.exit_code, code)


def measure(lens: dl.Lens, samples: list[dl.Sample], options: Options) -> xr.Dataset:
    """Judge the video of every number of steps, or write it for the evaluator; the distance is to that of the most."""
    pairs = pairs_of(samples, options)
    batches = {n: batch_of(lens, pairs, options, n) for n in options.counts}
    ended: dict[int, Tensor] = {}
    written: dict[str, list[str]] = {}
    for n, batch in tqdm(batches.items(), desc="number of steps", leave=False):
        x = batch.noise
        for step in range(n):
            x = batch.step(step, x).latents
        ended[n] = x
        if options.score == "vbvr":
            written[arm_of(n)] = benchmark.write_arm(options, arm_of(n), batch, x)
    most = max(options.counts)
    judged = outcomes(batches[most], torch.stack(list(ended.values())), ended[most])
    data = by_sample(judged.rename(arm="steps").assign_coords(steps=list(ended)), pairs)
    if options.score == "vbvr":
        written[benchmark.FLOOR] = benchmark.write_floor(options, pairs, batches[most].rates)
        return data.assign(video=benchmark.videos_of(pairs, written))
    lengths = [explore.path_length(sample) for sample in samples]
    return data if None in lengths else data.assign(length=("sample", lengths))


def arm_of(steps: int) -> str:
    """Return how an arm is called."""
    return f"{steps} steps"


def conclude(results: xr.Dataset, options: Options) -> tuple[dict[str, Any], int]:
    """Return what the summary says beside the outcomes, the benchmark's scores or results by length; and the exit code."""
    if options.score == "vbvr":
        curves = {"steps": {arm_of(n): n for n in options.counts}}
        last = arm_of(int(results.steps[-1]))
        report = benchmark_table.conclude(options, results.video, last, curves=curves)
        return report.summary, report.exit_code
    return (by_length(results, options) if "length" in results else {}), 0


def by_length(results: xr.Dataset, options: Options) -> dict[str, Any]:
    """Draw the rate of right answers by number of steps, for paths of several lengths; return it with intervals."""
    solved = results.solved.astype(float)
    parts = {name: solved.isel(sample=inside) for name, inside in bins(results.length).items()}
    if len(parts) < 2:
        return {"solved by path length, not measured": ONE_LENGTH}
    means = {name: analysis.mean(part) for name, part in parts.items()}
    counted = [f"{name}, n = {part.sizes['sample']}" for name, part in parts.items()]
    drawn = xr.concat(
        list(means.values()),
        xr.Variable("path", np.array(counted, np.dtypes.StringDType()), {"long_name": "right path"}),
        combine_attrs="drop_conflicts",
    )
    figure = plot.curves(
        drawn.assign_attrs(n_samples=sum(p.sizes["sample"] for p in parts.values())),
        "steps",
        value_label="solved (share)",
        title=f"Number of steps, by the length of the right path · {options.source}",
        marks=True,
        limits=(-0.03, 1.03),
    )
    plot.save(figure, options.out / "solved_by_length.png")
    few, many = (solved.steps.values.tolist().index(pick(options.counts)) for pick in (min, max))
    return {
        "solved by path length": {
            name: {
                "n": part.sizes["sample"],
                "by steps": headline(means[name]),
                f"{max(options.counts)} steps minus {min(options.counts)}": headline(
                    analysis.effect(part.isel(steps=many, drop=True), part.isel(steps=few, drop=True))
                ),
            }
            for name, part in parts.items()
        }
    }


if __name__ == "__main__":
    run_script(main, Options)
