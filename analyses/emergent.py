"""What happens along the steps: several paths at once, commitment, self-correction, perception before action.

From clean runs alone (arXiv 2603.16870, emergent behaviour): x0 of every step is decoded and read by the task's
scorer. Per run: the answers, the step after which the answer no longer changes, how many it held before, turns
from wrong to right and back. On boards with a trail: how many answers x0 shows at once, the mass of its trail
off the right path, and the share of the right path.

Perception before action, on choose and circle: the step from which on a linear probe (logistic regression on the
middle layer's states at the objects' cells, fitted on training scenes, a probe a step) names the object that the
video ends up with, against the step at which x0's answer is set. What the probe is fitted to find is the
model's own final choice, right or wrong.

    python analyses/emergent.py --task maze --samples 64 --out runs/emergent_maze
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
import xarray as xr
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import dit_lens as dl
from dit_lens import analysis, plot, study
from dit_lens.clean import clean_runs
from dit_lens.tasks import explore
from dit_lens.tasks.canvas import OBJECT, centre, likeness, patch


@dataclass
class Options(study.Options):
    """Read x0 at every step."""

    probe_scenes: int = 128
    """Training scenes that the probes are fitted on; 0 leaves them out."""
    clean: Path = Path("runs/clean.zarr")
    """Store of the clean runs; what it holds is not made again."""
    out: Path = Path("runs/emergent")


def main(options: Options) -> int:
    """Read every clean run, fit the probes, draw, save."""
    lens = dl.load(options.model)
    probes = (
        fit_probes(lens, options) if options.task in ("choose", "circle") and options.probe_scenes else []
    )
    results, code = study.study(options, "emergent", lens, lambda part: measure(lens, part, probes, options))
    conclude(results, options)
    return code


def measure(lens: dl.Lens, samples: list[dl.Sample], probes: list[Any], options: Options) -> xr.Dataset:
    """Read x0 of every step of every run."""
    pairs = study.pairs_of(samples, options)
    runs = clean_runs(lens, pairs, options.clean, options.steps, options.cfg_scale, options.at_once)
    found: dict[str, list[Any]] = {}
    for (sample, _), run in zip(pairs, runs, strict=True):
        frames = [lens.decode(run["x0"].isel(step=i)) for i in range(run["x0"].sizes["step"])]
        for name, values in read(sample, frames).items():
            found.setdefault(name, []).append(values)
    text = np.dtypes.StringDType()
    data = xr.Dataset(
        {n: (("pair", "step"), np.array(v, text if n == "answer" else None)) for n, v in found.items()},
        {"step": runs[0]["x0"].step.values, "sigma": ("step", runs[0]["x0"].sigma.values)},
    )
    if probes:
        named, picks = probed(lens, pairs, probes, options)
        data["probe"], data["picks"] = (("pair", "step"), named), ("pair", picks)
    return study.by_sample(data, samples, options)


def read(sample: dl.Sample, frames: list[np.ndarray]) -> dict[str, list[Any]]:
    """Read what a run's x0 holds at every step."""
    scores = [sample.score(video) for video in frames]
    out: dict[str, list[Any]] = {n: [getattr(s, n) for s in scores] for n in ("solved", "score", "answer")}
    if sample.task in ("loop", "choose"):  # a maze has one answer
        out["candidates"] = [explore.candidates(sample, video) for video in frames]
    if sample.task in ("maze", "loop"):
        out["off_path"] = [explore.off_path(sample, video) for video in frames]
        out["on_path"] = [explore.on_path(sample, video) for video in frames]
    return out


# ---- the probe


def objects(sample: dl.Sample) -> list[tuple[int, int]]:
    """Return the cells among which the answer picks: goals, or objects in the scene."""
    known = sample.scorer.keywords  # type: ignore[union-attr]
    if "goals" in known:
        return list(known["goals"])
    seen = likeness(np.asarray(sample.image), OBJECT)
    cells = [(r, c) for r in range(sample.height // 16) for c in range(sample.width // 16)]
    return [cell for cell in cells if patch(seen, *centre(cell), 3) > 0.5]


def picked(sample: dl.Sample, answer: str) -> list[bool]:
    """Say of every object whether an answer picks it."""
    if sample.task == "choose":
        return [answer == f"goal {i}" for i in range(len(objects(sample)))]
    return [f"{r}{c}" in answer.split() for r, c in objects(sample)]


def states_and_answers(
    lens: dl.Lens, pairs: list[tuple[dl.Sample, int]], options: Options
) -> tuple[list[list[np.ndarray]], list[str]]:
    """Return the middle layer's states at the objects' cells, last latent frame, by step and pair; and final answers."""
    batch = lens.batch(pairs, options.steps, options.cfg_scale, options.at_once)
    place, x, states = ("block", "cond", lens.layers // 2), batch.noise, []
    for step in range(batch.steps):
        out = batch.step(step, x, watch=[place])
        last = out.states[place][:, -1].float().cpu().numpy()
        states.append(
            [np.stack([h[cell] for cell in objects(s)]) for h, (s, _) in zip(last, pairs, strict=True)]
        )
        x = out.latents
    answers = [s.score(batch.decode(z[None])[0]).answer for z, (s, _) in zip(x, pairs, strict=True)]
    return states, answers


def fit_probes(lens: dl.Lens, options: Options) -> list[Any]:
    """Fit a probe for every step on training scenes."""
    pairs = [(s, i) for i, s in enumerate(study.training_samples(options, options.probe_scenes))]
    states, answers = states_and_answers(lens, pairs, options)
    labels = np.concatenate([picked(s, a) for (s, _), a in zip(pairs, answers, strict=True)])
    # Strong shrinkage: a few hundred objects, as many channels.
    return [
        make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000)).fit(
            np.concatenate(h), labels
        )
        for h in states
    ]


def probed(
    lens: dl.Lens, pairs: list[tuple[dl.Sample, int]], probes: list[Any], options: Options
) -> np.ndarray:
    """Say for every pair and step whether the probe names what the video ends up with."""
    states, answers = states_and_answers(lens, pairs, options)
    right = np.zeros((len(pairs), len(states)), bool)
    for step, (probe, here) in enumerate(zip(probes, states, strict=True)):
        for i, ((sample, _), answer, h) in enumerate(zip(pairs, answers, here, strict=True)):
            odds, wanted = probe.decision_function(h), np.array(picked(sample, answer))
            # choose picks one of them; circle decides on each.
            said = np.arange(len(odds)) == odds.argmax() if sample.task == "choose" else odds > 0
            right[i, step] = bool(wanted.any()) and bool((said == wanted).all())
    return right, np.array([any(picked(s, a)) for (s, _), a in zip(pairs, answers, strict=True)])


# ---- what it comes to


def conclude(results: xr.Dataset, options: Options) -> None:
    """Summarise, draw, save."""
    summary: dict[str, Any] = {"samples": results.sizes["sample"], "seeds": results.sizes["seed"]}
    along = [n for n in ("solved", "score", "candidates", "off_path", "on_path", "probe") if n in results]
    for name in along:
        means = analysis.mean(results[name].astype(float), along="step")
        summary[f"{name} by step"] = study.headline(means)
        figure = plot.curves(
            means, "step", value_label=LABELS[name], title=f"{LABELS[name]} · {options.task}"
        )
        plot.save(figure, options.out / f"{name}_by_step.png")
    held, turned = analysis.commitment(results.answer), analysis.corrections(results.solved)
    for data in (held, turned):
        for name in (n for n in data if n != "first_right"):
            summary[str(name)] = study.headline(analysis.mean(data[name].astype(float)))
    gain = analysis.effect(results.solved.isel(step=-1, drop=True), results.solved.isel(step=0, drop=True))
    summary["solved at the last step minus at the first"] = study.headline(gain)
    plot.save(plot.commitment_steps(held.commitment), options.out / "commitment.png")
    if "candidates" in results:
        several = results.candidates.isel(step=0) > 1
        summary["several answers at step 0"] = study.headline(analysis.mean(several.astype(float)))
    if "probe" in results:
        summary["perception before action"] = perception(results, held)
    study.finish(options, summary, means.attrs)


def perception(results: xr.Dataset, held: xr.Dataset) -> dict[str, Any]:
    """Compare, per sample, the step from which on the probe is right with the step of commitment."""
    # Runs that end without a pick have nothing to identify.
    picks = results.picks.all("seed") if "picks" in results else results.probe.any("step").all("seed")
    results, held = results.isel(sample=picks.values), held.isel(sample=picks.values)
    wrong = ~results.probe
    steps = results.sizes["step"]
    # One step after the last at which the probe was wrong; runs in which it is wrong to the end count as `steps`.
    last_wrong = xr.where(
        wrong.any("step"), steps - 1 - wrong.isel(step=slice(None, None, -1)).argmax("step"), -1
    )
    identified = (last_wrong + 1).astype(float)
    return {
        "samples whose runs pick something": results.sizes["sample"],
        "identified at step": study.headline(analysis.mean(identified)),
        "committed at step": study.headline(analysis.mean(held.commitment.astype(float))),
        "committed minus identified": study.headline(
            analysis.effect(held.commitment.astype(float), identified)
        ),
        "never identified": float((identified == steps).mean()),
    }


LABELS = {
    "solved": "x0 holds the right answer (share)",
    "score": "score of x0",
    "candidates": "answers that x0 shows at once",
    "off_path": "trail off the right path (edges)",
    "on_path": "share of the right path in x0",
    "probe": "probe names the final choice (share)",
}


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
