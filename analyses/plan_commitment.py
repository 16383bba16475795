"""When does the plan of a walk stand, and which walks fail?

After arXiv 2603.30043. The plan that x0 shows at a step is the cell of the agent in every frame of it; sim(s) is the share of
frames in which it is that of the end. The first frame is given and left out, and so are frames in which the end shows no single
agent.

- Dated: the noise level from which on half of the plan stands (sim over 0.5), and from which on it is over halfway between
  another seed's end and 1, where two seeds end differently.
- Control: the same share with the end of another seed of the scene. A plan that every seed has is the scene's, not the run's.
- Null: the ideal denoiser, which knows all right answers, from the same noise: what of sim the noise level alone makes. Where one
  answer is right (maze, arrows), it knows the plan from the start.
- Which walks fail: log odds of being solved by the length of the right path and by its branchings (cells where another way leads
  off), fitted together; and the rate of solved runs by length, where a cliff would show.

    python analyses/plan_commitment.py --task maze --samples 64 --out runs/plan_commitment
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

import dit_lens as dl
from dit_lens import analysis, plot
from dit_lens.engine.batch import Batch
from dit_lens.engine.outcomes import by_sample
from dit_lens.errors import DitLensError, TaskError
from dit_lens.experiments.crossings import committed, dated
from dit_lens.experiments.lengths import ONE_LENGTH, bins
from dit_lens.experiments.options import StudyOptions
from dit_lens.experiments.outcomes import headline
from dit_lens.experiments.pictures import choose
from dit_lens.experiments.primary import primary_outcome
from dit_lens.experiments.samples import batch_of, pairs_of, require_scorer, require_two_steps, steps_of
from dit_lens.experiments.script import run_script
from dit_lens.experiments.steps import clean_steps
from dit_lens.experiments.study import Measured, study
from dit_lens.experiments.summary import write_summary
from dit_lens.tasks import explore
from dit_lens.tasks.canvas import Cell
from dit_lens.tasks.pairs import numbers
from dit_lens.tasks.plans import agent_cells, require_agent

HALF = (-0.5, 0.5)
"""Bounds of a share less one half."""
Plan = list[Cell | None]
"""Where the agent is in every frame."""


@dataclass
class Options(StudyOptions):
    """Follow the plan along the steps."""

    seeds: int = 2
    """Noise seeds of each sample, 2 or more: the control is another seed's end."""
    at: str = "all"
    """Steps whose x0 is decoded: all, auto (7 of them), or a list such as 0,4,9. The last is always among them."""
    out: Path = Path("runs/plan_commitment")


def main(options: Options) -> int:
    """Run, read plans, compare, draw, save."""
    if options.seeds < 2:
        raise TaskError(f"--seeds {options.seeds}: the control is another seed's end; give 2 or more.")
    require_scorer(options)
    require_agent(dl.tasks.make(options.task, options.scene))
    lens = options.load()
    require_two_steps(options, lens)
    steps_read(options, steps_of(options, lens))
    measured = study(
        options, "plan_commitment", lens, lambda part: measure(lens, part, options), runs=lambda batch: 1.0
    )
    conclude(measured, options)
    return measured.exit_code


def measure(lens: dl.Lens, samples: list[dl.Sample], options: Options) -> xr.Dataset:
    """Run every pair; compare the plan of every step with the end of its own and of another seed."""
    pairs = pairs_of(samples, options)
    batch = batch_of(lens, pairs, options)
    steps = steps_read(options, batch.steps)
    plans: list[list[Plan]] = [[] for _ in pairs]
    for step, _, now in clean_steps(batch):
        for pair, (sample, _) in enumerate(pairs if step in steps else ()):
            plans[pair].append(agent_cells(sample, batch.decode(now.x0[pair : pair + 1])[0]))
    ended = [batch.decode(now.latents[n : n + 1])[0] for n in range(len(pairs))]
    data = {
        "similar": (("pair", "step"), [similarity(plan, plan[-1]) for plan in plans]),
        "control": (("pair", "step"), control(plans, numbers(pairs))),
        "solved": (
            "pair",
            [sample.score(video).solved for (sample, _), video in zip(pairs, ended, strict=True)],
        ),
    }
    ideal = ideal_plans(lens, batch, steps)
    if ideal is not None:
        data["ideal_similar"] = ("pair", "step"), [similarity(plan, plan[-1]) for plan in ideal]
    out = by_sample(
        xr.Dataset(data, {"step": steps, "sigma": ("step", [batch.sigmas[s] for s in steps])}), pairs
    )
    for name, measure_of in (("length", explore.path_length), ("branchings", explore.branchings)):
        values = [measure_of(sample) for sample in samples]
        out = out if None in values else out.assign({name: ("sample", values)})
    return out


def steps_read(options: Options, steps: int) -> list[int]:
    """Return the steps whose x0 is decoded, out of so many.

    Raises:
        TaskError: there is one alone.
    """
    read = sorted({*choose(options.at, steps, "at", auto=7), steps - 1})
    if len(read) < 2:
        raise TaskError(
            f"--at {options.at}: a plan is followed along 2 steps at least; give one before the last."
        )
    return read


def similarity(plan: Sequence[Plan], end: Plan) -> list[float]:
    """Return the share of frames in which the plan of each step is that of an end; NaN where the end shows no agent at all.

    The first frame, which is given, and frames without an agent at the end are left out.
    """
    known = [t for t in range(1, len(end)) if end[t] is not None]
    return [float(np.mean([cells[t] == end[t] for t in known])) if known else float("nan") for cells in plan]


def control(plans: Sequence[Sequence[Plan]], sample_of: Sequence[int]) -> np.ndarray:
    """Return the share of frames in which plans are those of other seeds' ends, [pair, step]."""
    out = []
    for pair, plan in enumerate(plans):
        others = [n for n, sample in enumerate(sample_of) if sample == sample_of[pair] and n != pair]
        out.append(np.mean([similarity(plan, plans[other][-1]) for other in others], 0))
    return np.stack(out)


def ideal_plans(lens: dl.Lens, batch: Batch, steps: list[int]) -> list[list[Plan]] | None:
    """Return the plans [pair, step] of the ideal denoiser from the same noise; None where answers are not enumerable."""
    plans = []
    for pair, (sample, _) in enumerate(batch.pairs):
        try:
            ideal = analysis.ideal_denoiser(sample, lens.encode)
        except TaskError:
            return None
        noise = batch.noise[pair : pair + 1].double().cpu().numpy()
        beliefs = [torch.from_numpy(x0).to(batch.noise) for x0 in ideal.run(noise, batch.sigmas)]
        plans.append([agent_cells(sample, batch.decode(beliefs[step])[0]) for step in steps])
    return plans


# ---- what it comes to


def conclude(measured: Measured, options: Options) -> None:
    """Say when plans stand, and which walks fail; draw; save."""
    results = measured.results
    names = [name for name in ("similar", "control", "ideal_similar") if name in results]
    whole = xr.concat([results[name].notnull().all(("seed", "step")) for name in names], "name").all("name")
    read = results.isel(sample=whole.values)
    solved = analysis.mean(results.solved)
    summary: dict[str, Any] = {
        "samples": results.sizes["sample"],
        "seeds": results.sizes["seed"],
        "samples with an end that shows no agent, left out of plans": int((~whole).sum()),
        "solved": headline(solved),
    }
    if read.sizes["sample"] < 2:
        summary["plans not measured"] = "fewer than 2 samples end with an agent"
    else:
        summary |= of_plans(read, options)
    write_summary(options, summary | of_failures(results, options), measured.left_out, solved.attrs)


def of_plans(read: xr.Dataset, options: Options) -> dict[str, Any]:
    """Return how alike the plan of each step and the end are, beside the control and the null, and when it stands; draw it."""
    lines = {"own end": read.similar, "another seed's end": read.control}
    chance = read.control.isel(step=-1, drop=True).mean("seed")
    out: dict[str, Any] = {
        "half of the plan stands from": dated(read.similar - 0.5, read, "step", HALF),
        "over halfway from another seed's end to its own from": committed(read.similar, chance, read, "step"),
        "own end minus another seed's": headline(
            analysis.effect(read.similar, read.control, bounds=(0, 1), along="step")
        ),
    }
    if "ideal_similar" in read:
        lines["ideal denoiser, own end"] = read.ideal_similar
        out["half of the plan stands from, ideal denoiser"] = dated(
            read.ideal_similar - 0.5, read, "step", HALF
        )
        out["own end, model minus ideal denoiser"] = headline(
            analysis.effect(read.similar, read.ideal_similar, bounds=(0, 1), along="step")
        )
    both = xr.concat([v.rename("similar") for v in lines.values()], xr.Variable("plan", list(lines)))
    means = analysis.mean(both, bounds=(0, 1), along="step")
    figure = plot.curves(
        means,
        "step",
        value_label="frames whose agent is where it ends up (share)",
        title=f"The plan of x0 beside the end · {options.source}",
        limits=(-0.02, 1.02),
    )
    plot.save(figure, options.out / "similarity_by_step.png")
    return {**out, "similarity by step": headline(means)}


def of_failures(results: xr.Dataset, options: Options) -> dict[str, Any]:
    """Return how being solved goes with the length of the right path and its branchings; draw the rates by length."""
    if "length" not in results:
        return {
            "solved by length, not measured": f"--task {options.task}: its right paths have no one length"
        }
    predictors = results[[name for name in ("length", "branchings") if name in results]]
    still = [str(n) for n, values in predictors.items() if int(values.min()) == int(values.max())]
    out: dict[str, Any] = {"the same for all samples, left out of the log odds": still}
    try:
        fit = analysis.logistic(results.solved, predictors.drop_vars(still))
        out["log odds of solved, a cell and a branching more"] = headline(fit)
        if "length" not in still:
            out["log odds of solved, a cell more"] = primary_outcome(
                lambda **how: analysis.logistic(results.solved, predictors.drop_vars(still), **how).sel(
                    predictor="length", drop=True
                )
            )
    except DitLensError as error:
        out["log odds of solved, not measured"] = str(error)
    members = bins(results.length)
    if len(members) < 2:
        return {**out, "solved by length, not measured": ONE_LENGTH}
    means = {name: analysis.mean(results.solved.isel(sample=inside)) for name, inside in members.items()}
    counts = {name: len(inside) for name, inside in members.items()}
    out["solved by length"] = {name: {"n": counts[name], **headline(means[name])} for name in members}
    labels = np.array([f"{name}, n = {counts[name]}" for name in members], np.dtypes.StringDType())
    drawn = xr.concat(
        list(means.values()),
        xr.Variable("path", labels, {"long_name": "right path"}),
        combine_attrs="drop_conflicts",
    )
    figure = plot.curves(
        drawn.assign_attrs(n_samples=sum(counts.values())),
        "path",
        value_label="solved (share)",
        title=f"Solved, by the length of the right path · {options.source}",
        limits=(-0.03, 1.03),
    )
    plot.save(figure, options.out / "solved_by_length.png")
    return out


if __name__ == "__main__":
    run_script(main, Options)
