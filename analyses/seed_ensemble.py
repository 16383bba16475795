"""Does averaging states over noise seeds help? The paper's training-free ensemble, beside fair rivals.

K runs of one sample, each from its own noise; at chosen steps (the first, by default) the states after each
layer of a range are replaced by their mean over the K runs, then all go on (arXiv 2603.16870). Beside it, what a
user could do with the same K runs: take one of them (their mean score), keep the best one (an oracle), or let
the K answers vote.

Since a state after a block is all that the next blocks see, K runs that were averaged after the first layer of
a range hold the same state from there on: averaging a whole range equals averaging at its first layer.

On a folder of VBVR-Bench the official evaluator judges (`--score vbvr`): for each sample the video of its first seed, alone and
in every ensemble, and the first frame held. `--paper` takes the paper's settings: 50 steps, layers 20 to 29, K = 3, step 0.

    python analyses/seed_ensemble.py --task maze --samples 64 --out runs/seed_ensemble
    python analyses/seed_ensemble.py --paper --model wan2.2 --lora vbvr --eval-root VBVR-Bench --split In-Domain_50 \
        --score vbvr --out runs/ensemble
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import xarray as xr

import dit_lens as dl
from dit_lens import analysis, plot
from dit_lens.engine.batch import Batch
from dit_lens.engine.outcomes import by_sample, outcomes
from dit_lens.engine.sweep import Arm, run_arms
from dit_lens.errors import TaskError
from dit_lens.experiments import benchmark
from dit_lens.experiments.cost import runs_of_arms
from dit_lens.experiments.ensembles import RIVALS, conclude_videos, ranges, rival, write_videos
from dit_lens.experiments.options import ScoredOptions
from dit_lens.experiments.outcomes import headline
from dit_lens.experiments.pictures import choose
from dit_lens.experiments.samples import batch_of, check_counts, pairs_of, steps_of
from dit_lens.experiments.script import run_script
from dit_lens.experiments.study import Measured, study
from dit_lens.experiments.summary import write_summary
from dit_lens.plan.plan import Placed


@dataclass
class Options(ScoredOptions):
    """Average states over seeds."""

    seeds: int = 0
    """Noise seeds of each sample: 0 takes as many as the largest of --ks. Any other number is refused."""
    ks: tuple[int, ...] = (1, 2, 3, 5, 8)
    """Sizes of the ensemble. One of size K takes the first K seeds of a sample."""
    layers: str = "middle"
    """Layers that are averaged: first, middle or last (a third of them), each (all three thirds), or a list such as 3-6."""
    at_steps: str = "0"
    """Steps at which they are averaged, such as 0 or 0-4."""
    out: Path = Path("runs/seed_ensemble")

    PAPER: ClassVar[dict[str, Any]] = {"steps": 50, "layers": "20-29", "ks": (3,), "at_steps": "0"}


def main(options: Options) -> int:
    """Run ensembles of every size, compare, draw, save."""
    options = options.with_preset()
    if min(options.ks) < 1:
        raise TaskError(f"--ks {options.ks}: an ensemble has at least one run.")
    check_counts("--ks", options.ks)
    if options.seeds not in (0, max(options.ks)):
        raise TaskError(
            f"--seeds {options.seeds}: the largest of --ks {options.ks} takes {max(options.ks)} seeds a sample; "
            "leave --seeds out, or change --ks."
        )
    options = replace(options, seeds=max(options.ks))
    benchmark.refuse_unscored(options)
    lens = options.load()
    for layers in ranges(options.layers, lens.layers).values():
        choose(layers, lens.layers, "layers")
    choose(options.at_steps, steps_of(options, lens), "at-steps")
    measured = study(
        options,
        "seed_ensemble",
        lens,
        lambda part: measure(lens, part, options),
        runs=lambda batch: runs_of(batch, lens, options),
    )
    if options.score == "vbvr":
        return conclude_videos(measured, options, {"steps averaged": options.at_steps})
    conclude(measured, options)
    return measured.exit_code


def runs_of(batch: Batch, lens: dl.Lens, options: Options) -> float:
    """Return how many whole runs there are for each seed of a sample: of K seeds, in an ensemble of K."""
    return 1 + sum(
        (runs_of_arms(batch, [ensemble(options, layers, options.seeds)]) - 1) * k / options.seeds
        for layers, k in arms_of(lens, options).values()
    )


def arms_of(lens: dl.Lens, options: Options) -> dict[str, tuple[str, int]]:
    """Return the ensembles: name to the layers that are averaged, and K."""
    chosen = ranges(options.layers, lens.layers)
    return {f"{name}, K = {k}": (text, k) for name, text in chosen.items() for k in options.ks}


def measure(lens: dl.Lens, samples: list[dl.Sample], options: Options) -> xr.Dataset:
    """Run the ensembles, and judge what came out, and the single runs."""
    pairs = pairs_of(samples, options)
    batch = batch_of(lens, pairs, options)
    chosen = ranges(options.layers, lens.layers)
    arms = [ensemble(options, layers, k) for layers, k in arms_of(lens, options).values()]
    clean, ended = run_arms(batch, arms, progress="ensembles")
    if options.score == "vbvr":
        arms_by_name = dict(zip(arms_of(lens, options), ended, strict=True))
        return write_videos(options, batch, arms_by_name, clean)
    alone = by_sample(outcomes(batch, clean[None], clean).isel(arm=0), pairs)
    if "answer" not in alone:
        raise TaskError("An ensemble is judged by a scorer: the samples of this task have none.")
    judged = by_sample(outcomes(batch, ended, clean), pairs)
    labels = (("layers", list(chosen)), ("k", list(options.ks)))
    out = {}
    for name in ("solved", "score"):
        # Of an ensemble of K, the first K seeds took part.
        parts = [
            judged[name].isel(arm=i, seed=slice(0, k)).mean("seed")
            for i, k in enumerate(list(options.ks) * len(chosen))
        ]
        values = xr.concat(parts, "arm").values.reshape(len(chosen), len(options.ks), len(samples))
        out[name] = ((*(label for label, _ in labels), "sample"), values)
        rivals = np.array([[rival(alone, name, k, how) for k in options.ks] for how in RIVALS])
        out[f"rival_{name}"] = (("rival", "k", "sample"), rivals)
    text = np.dtypes.StringDType()
    coords = {"layers": np.array(list(chosen), text), "k": list(options.ks), "rival": np.array(RIVALS, text)}
    return xr.Dataset(out, {**coords, "sample": alone.sample}).transpose("sample", ...)


def ensemble(options: Options, layers: str, k: int) -> Arm:
    """Return the edits of an ensemble: the first K seeds of a sample take part."""
    edit = Placed(dl.mean_over_seeds(), dl.at(layer=layers, step=options.at_steps))
    return lambda pair: [edit] if pair % options.seeds < k else []


def title_of(options: Options) -> str:
    """Return the title of the figures."""
    return f"Averaging states over K seeds at step {options.at_steps} · {options.source}"


def conclude(measured: Measured, options: Options) -> None:
    """Compare the ensemble with every rival, paired; draw; save."""
    results = measured.results
    summary = {"samples": results.sizes["sample"], "steps averaged": options.at_steps}
    for name in ("solved", "score"):
        summary[f"ensemble, {name}"] = headline(analysis.mean(results[name], bounds=(0, 1)))
        summary[f"rivals, {name}"] = headline(analysis.mean(results[f"rival_{name}"], bounds=(0, 1)))
        for how in RIVALS:
            other = results[f"rival_{name}"].sel(rival=how, drop=True)
            difference = analysis.effect(results[name], other, bounds=(0, 1), along=["layers", "k"])
            summary[f"ensemble minus {how}, {name}"] = headline(difference)
    write_summary(options, summary, measured.left_out, difference.attrs)
    ours = results.solved.assign_coords(layers=[f"ensemble, {n}" for n in results.layers.values]).rename(
        layers="arm"
    )
    both = xr.concat([ours, results.rival_solved.rename(rival="arm").rename("solved")], "arm")
    figure = plot.curves(
        analysis.mean(both, bounds=(0, 1)),
        "k",
        value_label="solved (share)",
        title=title_of(options),
        marks=True,
    )
    plot.save(figure, options.out / "solved_by_k.png")


if __name__ == "__main__":
    run_script(main, Options)
