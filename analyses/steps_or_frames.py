"""Is an answer worked out along the denoising steps, or along the frames?

Chain-of-Steps (arXiv 2603.16870) says that a video model reasons along its steps; others find that it searches over frames
(arXiv 2606.13861), or that its plan stands after the first steps (arXiv 2603.30043). What each of these predicts:

1. Commitment by frame. A frame of x0 is settled from the step on where it stays within half of how far x0 of step 0 is from
   the end, on average over the frames. Reasoning in frame order settles the first frames first: a slope over frames above 0.
   The first latent frame is given, and is left out. Beside it the ideal denoiser, from the same noise: it knows all right
   answers of the scene, so its slope is what the videos themselves make (for tasks whose answers are enumerable).
2. The first frame that is wrong, as a share of the video, in runs that have one: where it is in the first fifth, as
   arXiv 2606.13861 finds, what comes later follows from it.
3. Rescue. A run that came out wrong is taken up again: along the steps, its last x0 gets the noise of step r anew and goes on
   from there; along the frames, its first k latent frames are held and the rest is drawn from other noise; or it starts over.
   A model that reasons along frames gains by what is held while it is right; one that reasons along steps gains by going
   back far enough. Frames held, and a new start, take all S steps of a run; back to step r is S - r of them. At equal compute,
   going back is therefore repeated, each time with other noise, until S steps are used up (the last time from as far back as
   what is left allows), and one of the tries is picked: the most frequent answer, and of the most frequent ones the sharpest.

A positive control reasons along frames by construction: `--model organism-causal`, whose tokens see no later frame.

    python analyses/steps_or_frames.py --task arrows --samples 32 --out runs/steps_or_frames
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

import dit_lens as dl
from dit_lens import analysis, plot
from dit_lens.engine.batch import Batch
from dit_lens.engine.outcomes import by_sample
from dit_lens.errors import TaskError
from dit_lens.experiments.options import StudyOptions
from dit_lens.experiments.outcomes import headline
from dit_lens.experiments.pictures import choose
from dit_lens.experiments.primary import primary_outcome
from dit_lens.experiments.rescues import Way, rescues, runs_of_ways, until_used_up
from dit_lens.experiments.samples import (
    batch_of,
    draw,
    pairs_of,
    require_latent_frames,
    require_scorer,
    require_two_steps,
)
from dit_lens.experiments.script import run_script
from dit_lens.experiments.steps import clean_steps
from dit_lens.experiments.study import Measured, study
from dit_lens.experiments.summary import write_summary

REPEATED = "steps repeated"
"""Going back along steps as often as one run's compute allows."""
SETTLED = 0.5
"""Share of the distance between x0 of step 0 and the end, within which a frame is settled."""


@dataclass
class Options(StudyOptions):
    """Compare what steps and frames do."""

    back_to: str = "auto"
    """Steps that a rescue along the steps goes back to, from 1 on: all, auto (4 of them), or a list such as 5,10."""
    hold: str = "auto"
    """How many latent frames a rescue along the frames holds: all, auto (4 numbers from 2 on), or a list such as 2,3."""
    out: Path = Path("runs/steps_or_frames")


def main(options: Options) -> int:
    """Run, rescue, compare, draw, save."""
    require_scorer(options)
    lens = options.load()
    require_two_steps(options, lens)
    drawn = draw(options, lens)
    require_latent_frames(drawn, lens, 3)
    measured = study(
        options,
        "steps_or_frames",
        lens,
        lambda part: measure(lens, part, options),
        runs=lambda batch: 1 + runs_of_ways(ways_of(batch, options), batch.steps),
        drawn=drawn,
    )
    conclude(measured, options)
    return measured.exit_code


def measure(lens: dl.Lens, samples: list[dl.Sample], options: Options) -> xr.Dataset:
    """Run every pair, date its frames, and try to rescue it."""
    pairs = pairs_of(samples, options)
    batch = batch_of(lens, pairs, options)
    x, beliefs = batch.noise, []
    for _, _, now in clean_steps(batch):
        x = now.latents
        beliefs.append(now.x0.float())
    if any(sample.scorer is None for sample in samples):
        raise TaskError("A rescue is judged by a scorer: the samples of this task have none.")
    scores = [sample.score(batch.decode(x[n : n + 1])[0]) for n, (sample, _) in enumerate(pairs)]
    data = {
        "settled": (("frame", "pair"), settled(torch.stack(beliefs)).T),
        "solved": ("pair", [score.solved for score in scores]),
        "first_wrong": ("pair", [first_wrong(score) for score in scores]),
    }
    out = by_sample(xr.Dataset(data), pairs)
    levels = {"step": np.arange(batch.steps), "sigma": ("step", list(batch.sigmas))}
    parts = [
        out.assign_coords(frame=np.arange(1, x.shape[2]), **levels),
        ideal_settled(lens, batch),
        by_sample(rescues(batch, x, ways_of(batch, options)), pairs),
    ]
    return xr.merge(parts, compat="override", join="exact")


def settled(beliefs: Tensor | np.ndarray) -> np.ndarray:
    """Return from which step on each latent frame but the first is settled, [row, frame].

    Args:
        beliefs: x0 by step, [step, row, channel, frame, y, x].
    """
    values = torch.as_tensor(beliefs).double()
    off = (values - values[-1:]).square().mean((2, 4, 5)).sqrt()[:, :, 1:].cpu().numpy()  # [step, row, frame]
    bound = SETTLED * np.sqrt((off[0] ** 2).mean(-1))[:, None]
    within = np.logical_and.accumulate((off <= bound)[::-1], 0)[::-1]
    return within.argmax(0)


def first_wrong(score: dl.Score) -> float:
    """Return at which share of the video its first wrong frame is; NaN where all are right, or are not read one by one."""
    if score.frames is None or all(score.frames):
        return float("nan")
    return score.frames.index(False) / max(len(score.frames) - 1, 1)


def ideal_settled(lens: dl.Lens, batch: Batch) -> xr.Dataset:
    """Date the frames of the ideal denoiser from the same noise; empty where answers are not enumerable."""
    rows = []
    for pair, (sample, _) in enumerate(batch.pairs):
        try:
            ideal = analysis.ideal_denoiser(sample, lens.encode)
        except TaskError:
            return xr.Dataset()
        noise = batch.noise[pair : pair + 1].double().cpu().numpy()
        rows.append(settled(np.stack(ideal.run(noise, batch.sigmas)))[0])
    out = by_sample(xr.Dataset({"ideal_settled": (("frame", "pair"), np.stack(rows).T)}), batch.pairs)
    return out.assign_coords(frame=np.arange(1, 1 + out.sizes["frame"]))


def ways_of(batch: Batch, options: Options) -> list[Way]:
    """Return the ways to take a run up again: from the start, back to a step once and repeatedly, with frames held."""
    back = choose(options.back_to, batch.steps, "back-to", auto=4, first=1)
    # The first latent frame is given: to hold it alone is to start over.
    held = choose(
        options.hold, batch.noise.shape[2], "hold", auto=4, first=2 if options.hold == "auto" else 1
    )
    return [
        Way("start over", (0,)),
        *(Way(f"steps {step}", (step,)) for step in back),
        *(Way(f"steps {step}, repeated", until_used_up(step, batch.steps)) for step in back),
        *(Way(f"frames {count}", (0,), count) for count in held),
    ]


def slopes(values: xr.DataArray) -> xr.DataArray:
    """Return the least-squares slope over frames, in steps a latent frame."""
    frame = centred(values.frame)
    return (values * frame).sum("frame") / float((frame**2).sum())


def centred(frames: xr.DataArray) -> xr.DataArray:
    """Return the numbers of frames about their mean."""
    return frames.astype(float) - float(frames.mean())


def conclude(measured: Measured, options: Options) -> None:
    """Say what was found of frames and steps; draw; save."""
    results = measured.results
    settled_at = {"model": results.settled.astype(float)}
    if "ideal_settled" in results:
        settled_at["ideal denoiser"] = results.ideal_settled.astype(float)
    slope = {name: slopes(values) for name, values in settled_at.items()}
    last = results.sizes["step"] - 1.0
    steep = (
        last
        * float(abs(centred(results.settled.frame)).sum())
        / 2
        / float((centred(results.settled.frame) ** 2).sum())
    )
    summary: dict[str, Any] = {
        "samples": results.sizes["sample"],
        "seeds": results.sizes["seed"],
        "solved": headline(analysis.mean(results.solved)),
        **{
            f"slope of commitment over frames, {name}": headline(analysis.mean(v, bounds=(-steep, steep)))
            for name, v in slope.items()
        },
    }
    if len(slope) > 1:
        name = "slope of commitment over frames, model minus ideal denoiser"
        summary[name] = primary_outcome(partial(analysis.effect, *slope.values(), bounds=(-steep, steep)))
    both = xr.concat(
        [v.rename("settled") for v in settled_at.values()], xr.Variable("denoiser", list(settled_at))
    )
    means = analysis.mean(both, bounds=(0.0, last))
    summary["settled from step on, by frame"] = headline(means)
    summary |= of_failures(results) | of_rescues(results)
    write_summary(options, summary, measured.left_out, means.attrs)
    title = f"From which step on a latent frame is settled · {options.source}"
    figure = plot.curves(means, "frame", value_label="step", title=title, marks=True)
    plot.save(figure, options.out / "settled_by_frame.png")
    wrong = results.rescued.astype(float).where(~results.solved.astype(bool)).mean("seed").dropna("sample")
    if wrong.sizes["sample"] > 1:
        title = f"Runs that came out wrong, taken up again · {options.source}"
        rescued = analysis.mean(wrong.drop_vars(["cost", "nfe"]), bounds=(0, 1))
        figure = plot.curves(rescued, "way", value_label="right then (share)", title=title)
        plot.save(figure, options.out / "rescued_by_way.png")


def of_failures(results: xr.Dataset) -> dict[str, Any]:
    """Say where the runs with a wrong frame have their first: in which fifth of the video. A sample counts once."""
    inside = results.first_wrong.notnull()
    name, found = "first wrong frame, by fifth of the video", {}
    count = int(inside.any("seed").sum())
    if count < 2:
        return {"samples with a wrong frame": count, f"{name}, not measured": "fewer than 2 samples have one"}
    for fifth in range(5):
        here = (results.first_wrong.fillna(0) * 5).clip(max=4.999).astype(int) == fifth
        rates = here.where(inside).mean("seed").dropna("sample")
        found[f"fifth {fifth + 1}"] = headline(analysis.mean(rates, bounds=(0, 1)))
    return {"samples with a wrong frame": count, name: found}


def of_rescues(results: xr.Dataset) -> dict[str, Any]:
    """Return how many of the runs that came out wrong are right after each rescue, and how many right ones stay so."""
    wrong = ~results.solved.astype(bool)
    out: dict[str, Any] = {
        "runs that came out wrong": int(wrong.sum()),
        "cost in runs": dict(zip(results.way.values.tolist(), results.cost.values.tolist(), strict=True)),
        "forwards of the model": dict(
            zip(results.way.values.tolist(), results.nfe.values.tolist(), strict=True)
        ),
    }
    for name, chosen in (("rescued, of wrong runs", wrong), ("kept, of right runs", ~wrong)):
        # A sample counts once, by the share of its runs.
        rates = results.rescued.astype(float).where(chosen).mean("seed").dropna("sample")
        out[f"{name}, samples"] = rates.sizes["sample"]
        if rates.sizes["sample"] < 2:
            out[f"{name}, not measured"] = "fewer than 2 samples have such a run"
            continue
        out[name] = headline(analysis.mean(rates, along="way", bounds=(0, 1)))
        against = rates.sel(way="start over", drop=True)
        out[f"{name}, minus start over"] = headline(
            analysis.effect(rates, against, along="way", bounds=(0, 1))
        )
        frames = rates.sel(way=middle(results, "frames"), drop=True)
        for along, way in (
            ("steps", middle(results, "steps")),
            (REPEATED, f"{middle(results, 'steps')}, repeated"),
        ):
            contrast = partial(analysis.effect, rates.sel(way=way, drop=True), frames, bounds=(0, 1))
            is_primary = along == REPEATED and chosen is wrong
            said = primary_outcome(contrast) if is_primary else headline(contrast())
            out[f"{name}, middle {along} minus middle frames"] = said
    return out


def middle(results: xr.Dataset, kind: str) -> str:
    """Return the middle one of the ways along steps, or along frames: what is compared is chosen before anything is run.

    The primary contrast is the one at equal compute, of the way along steps repeated.
    """
    ways: list[str] = [way for way in results.way.values.tolist() if way.startswith(f"{kind} ")]
    once = [way for way in ways if not way.endswith("repeated")]
    return once[len(once) // 2]


if __name__ == "__main__":
    run_script(main, Options)
