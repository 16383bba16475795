"""What should K seeds of one sample average? States, velocities, x0, latents, or nothing but the best seed's own.

K runs of one sample, each from its own noise; at the chosen steps something of theirs becomes their mean:

- states: after the layers of a range, the paper's (arXiv 2603.16870);
- velocity: after guidance, the direction in which the latents go;
- x0: the clean latents that the velocity stands for; each run keeps its own noise;
- latents: the noise too, which then is too weak for its level, and the K runs are one from there on;
- medoid: no mean; the seed whose x0 is nearest to all others' gives its x0 to all.

Equal leverage. These edits move the latents by different amounts, and what moves them more may change more whatever it is. The
summary says how far each moves them right after its last edited step (RMS distance to the clean run). Averages are repeated over
intervals of noise levels, from the first step down to each of `--until`, and two of them are compared where both have moved a
sample equally: as far as both come, each outcome read off the line between two intervals (`analysis.at_amount`).

Ways to go on, and what clean runs do at that cost. One goes on (the paper's): 1 + (K - 1)(s + 1) / S runs, with s the last
edited step of S; beside it a single run. All K go on, and their answers vote, or the best is known: K runs; beside them the
vote and the best of K clean runs. A placebo stands beside every average: each token changes by as much as the average changes
it, in a random direction (`dl.controls.placebo`). Nulls: `--seeds 1` has nothing to average.

In and out of domain: a command for each task (`--task maze`, `--task queens`), each with its `--out`.

    python analyses/what_to_average.py --task maze --samples 64 --out runs/what_to_average
    python analyses/what_to_average.py --paper --model wan2.2 --lora vbvr --eval-root VBVR-Bench --split In-Domain_50 \
        --score vbvr --until none --out runs/what_to_average_vbvr
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import xarray as xr
from torch import Tensor

import dit_lens as dl
from dit_lens import analysis, plot
from dit_lens.engine.batch import Batch
from dit_lens.engine.outcomes import by_sample, outcomes
from dit_lens.engine.sweep import run_arms
from dit_lens.errors import TaskError
from dit_lens.experiments import benchmark
from dit_lens.experiments.average_summary import (
    AVERAGED,
    ONE,
    PLACEBO,
    WAYS,
    compared,
    costs,
    of_equal_leverage,
    primary,
)
from dit_lens.experiments.averages import averages, intervals
from dit_lens.experiments.cost import runs_of_arms
from dit_lens.experiments.ensembles import RIVALS, conclude_videos, rival, write_videos
from dit_lens.experiments.leverage import Movement
from dit_lens.experiments.options import ScoredOptions
from dit_lens.experiments.outcomes import BOUNDS, headline
from dit_lens.experiments.pictures import choose
from dit_lens.experiments.samples import batch_of, pairs_of
from dit_lens.experiments.script import run_script
from dit_lens.experiments.study import Measured, study
from dit_lens.experiments.summary import write_summary
from dit_lens.plan.plan import Placed

ARM = ("kind", "average", "interval")
"""What an arm is known by."""
What = Literal["states", "velocity", "x0", "latents", "medoid"]


@dataclass
class Options(ScoredOptions):
    """Average different things over seeds."""

    seeds: int = 3
    """Noise seeds of each sample, K: all of them are averaged."""
    what: tuple[What, ...] = ("states", "velocity", "x0", "latents", "medoid")
    """What is averaged."""
    layers: str = "middle"
    """Layers whose states are averaged: first, middle or last (a third of them), each (all thirds), or a list such as 3-6."""
    at_steps: str = "0"
    """Steps at which there is averaging, such as 0 or 0-4."""
    until: str = "0.95,0.9,0.75,0.5"
    """Noise levels: averages are also taken at every step from the first down to each of these. none leaves them out."""
    placebo: bool = True
    """Whether a placebo stands beside every average; it doubles the cost."""
    out: Path = Path("runs/what_to_average")

    PAPER: ClassVar[dict[str, Any]] = {"steps": 50, "layers": "20-29", "at_steps": "0", "seeds": 3}

    @property
    def levels(self) -> tuple[float, ...]:
        """The noise levels of `until`.

        Raises:
            TaskError: one is no noise level.
        """
        try:
            levels = () if self.until == "none" else tuple(float(level) for level in self.until.split(","))
        except ValueError:
            levels = (0.0,)
        if any(not 0 < level <= 1 for level in levels):
            raise TaskError(
                f"--until {self.until}: give none, or noise levels over 0 and at most 1, such as 0.9,0.5."
            )
        return levels

    @property
    def kinds(self) -> tuple[str, ...]:
        """The edits that there are of each average."""
        return (AVERAGED, PLACEBO) if self.placebo else (AVERAGED,)


def main(options: Options) -> int:
    """Average, compare, draw, save."""
    options = options.with_preset()
    options.levels  # noqa: B018  (refused before a model is loaded)
    if not options.what or len({*options.what}) < len(options.what):
        raise TaskError(f"--what {' '.join(options.what)}: name each average once, and at least one.")
    benchmark.refuse_unscored(options)
    lens = options.load()
    averages(options.what, options.layers, lens.layers)  # layers that are not there
    if options.steps is not None:
        choose(options.at_steps, options.steps, "at-steps")
    measured = study(
        options,
        "what_to_average",
        lens,
        lambda part: measure(lens, part, options),
        runs=lambda batch: runs_of_arms(batch, [[edit] for edit in arms_of(lens, batch, options)[0]]),
    )
    if options.score == "vbvr":
        results = measured.results
        columns = {"movement right after": results.movement.mean("sample"), "cost in runs": results.cost}
        more = {
            n: dict(zip(v.ensemble.values.tolist(), v.values.tolist(), strict=True))
            for n, v in columns.items()
        }
        return conclude_videos(measured, options, {"steps averaged": options.at_steps, **more})
    conclude(measured, options)
    return measured.exit_code


def arms_of(lens: dl.Lens, batch: Batch, options: Options) -> tuple[list[Placed], xr.Dataset]:
    """Return the edits of all arms, and their labels: by kind, average and interval, the last of them the fastest.

    Labels of an interval: its last step, the noise level there, whether it is that of --at-steps, and whether it begins at the
    first step and leaves none out. Of an average in an interval: the cost in runs.
    """
    chosen = choose(options.at_steps, batch.steps, "at-steps")
    steps = intervals(chosen, options.levels, batch.sigmas)
    kept = averages(options.what, options.layers, lens.layers)
    edits = [
        (average.averaged if kind == AVERAGED else average.placebo)(when)
        for kind, average, when in product(options.kinds, kept, steps.values())
    ]
    text = np.dtypes.StringDType()
    coords = {
        "kind": np.array(options.kinds, text),
        "average": np.array([average.name for average in kept], text),
        "interval": np.array(list(steps), text),
        "last": ("interval", [when[-1] for when in steps.values()]),
        "sigma": ("interval", [batch.sigmas[when[-1]] for when in steps.values()]),
        "at_steps": ("interval", [when == chosen for when in steps.values()]),
        "from_first": ("interval", [when == list(range(len(when))) for when in steps.values()]),
        "cost": (
            ("average", "interval"),
            [[a.cost(when, batch.steps, options.seeds) for when in steps.values()] for a in kept],
        ),
    }
    return edits, xr.Dataset(coords=coords)


def measure(lens: dl.Lens, samples: list[dl.Sample], options: Options) -> xr.Dataset:
    """Run every average in every interval; judge what comes of it, and of clean runs."""
    pairs = pairs_of(samples, options)
    batch = batch_of(lens, pairs, options)
    edits, labels = arms_of(lens, batch, options)
    last = np.resize(labels["last"].values, len(edits))
    movement = Movement(last.tolist(), len(pairs), batch.fixed_frames)
    clean, ended = run_arms(batch, [[edit] for edit in edits], look=movement.look, progress="averages")
    if options.score == "vbvr":
        return on_benchmark(options, batch, labels, movement, clean, ended)
    alone = by_sample(outcomes(batch, clean[None], clean).isel(arm=0), pairs)
    if "answer" not in alone:
        raise TaskError("An average is judged by a scorer: the samples of this task have none.")
    judged = outcomes(batch, ended, clean)
    judged["movement"] = ("arm", "pair"), movement.values
    judged = by_sample(judged, pairs)
    shape = (*(labels.sizes[dim] for dim in ARM), len(samples))
    data = {
        n: ((*ARM, "sample"), judged[n].mean("seed").values.reshape(shape)) for n in ("movement", "distance")
    }
    for name in ("solved", "score"):
        ways = [
            [rival(judged.isel(arm=arm), name, options.seeds, how) for arm in range(len(edits))]
            for how in RIVALS
        ]
        clean_runs = [rival(alone, name, options.seeds, how) for how in RIVALS]
        data[name] = ("way", *ARM, "sample"), np.array(ways).reshape(len(RIVALS), *shape)
        data[f"clean_{name}"] = ("rival", "sample"), np.array(clean_runs)
    text = np.dtypes.StringDType()
    coords = {"way": np.array(list(WAYS), text), "rival": np.array(RIVALS, text), "sample": alone.sample}
    return labels.assign(data).assign_coords(coords).transpose("sample", ...)


def on_benchmark(
    options: Options, batch: Batch, labels: xr.Dataset, movement: Movement, clean: Tensor, ended: Tensor
) -> xr.Dataset:
    """Write the videos of all arms, of each sample's first seed; return them, and each arm's movement and cost."""
    names = [
        ", ".join((average, f"steps {interval}", *[PLACEBO] * (kind == PLACEBO)))
        for kind, average, interval in product(*(labels[dim].values.tolist() for dim in ARM))
    ]
    out = write_videos(options, batch, dict(zip(names, ended, strict=True)), clean)
    costs = np.broadcast_to(labels.cost.values, [labels.sizes[dim] for dim in ARM]).ravel()
    out["movement"] = ("sample", "ensemble"), movement.values[:, :: options.seeds].T
    return out.assign_coords(cost=("ensemble", costs))


def conclude(measured: Measured, options: Options) -> None:
    """Compare averages with clean runs, with placebos and with one another; draw; save."""
    results = measured.results
    if results.sizes["sample"] < 2:
        write_summary(
            options, {"not compared": "one sample is left, and an interval takes two"}, measured.left_out
        )
        return
    intervals = results.interval.values.tolist()
    movement = analysis.mean(results.movement, bounds=BOUNDS["distance"])
    summary: dict[str, Any] = {
        "samples": results.sizes["sample"],
        "seeds that are averaged": options.seeds,
        "steps averaged": options.at_steps,
        "noise level of the last averaged step": dict(
            zip(intervals, results.sigma.values.tolist(), strict=True)
        ),
        "primary": primary(results),
        "cost in runs": costs(results, options.seeds),
        "movement of the latents right after": headline(movement),
        "distance of the last latents": headline(analysis.mean(results.distance, bounds=BOUNDS["distance"])),
    }
    for name in ("solved", "score"):
        summary |= compared(results, name, options.seeds)
    summary["at equal movement, one goes on"] = of_equal_leverage(results)
    write_summary(options, summary, measured.left_out, movement.attrs)
    draw(results, options)


def draw(results: xr.Dataset, options: Options) -> None:
    """Draw what is solved by average, and outcomes against movement."""
    single = {
        name: analysis.mean(results[f"clean_{name}"].sel(rival=RIVALS[0], drop=True), bounds=(0, 1))
        for name in ("solved", "score")
    }
    one = results.sel(way=ONE, drop=True).reset_coords("cost", drop=True)
    asked = one.solved.isel(interval=int(results.at_steps.values.argmax()), drop=True)
    figure = plot.curves(
        analysis.mean(asked.reset_coords(drop=True), bounds=(0, 1)),
        "average",
        value_label="solved (share)",
        title=title_of(options),
        reference=single["solved"],
        reference_label="single run",
        limits=(-0.03, 1.03),
    )
    plot.save(figure, options.out / "solved_by_average.png")
    ladder = one.sel(kind=AVERAGED, drop=True).isel(interval=np.flatnonzero(results.from_first.values))
    if not ladder.sizes["interval"]:
        return
    for name, label in (("solved", "solved (share)"), ("score", "score")):
        figure = plot.response(
            analysis.mean(ladder[name], bounds=(0, 1)),
            ladder.movement.mean("sample"),
            "interval",
            value_label=label,
            amount_label="movement of the latents right after (RMS)",
            title=f"Averaged from the first step down to a noise level, one goes on · {options.source}",
            reference=single[name],
            reference_label="single run",
        )
        plot.save(figure, options.out / f"{name}_by_movement.png")


def title_of(options: Options) -> str:
    """Return the title of a figure."""
    return (
        f"What K = {options.seeds} seeds average at step {options.at_steps}, one goes on · {options.source}"
    )


if __name__ == "__main__":
    run_script(main, Options)
