"""Where does noise hurt: at a denoising step, or in a frame?

The paper's experiment (arXiv 2603.16870): the same Gaussian noise is added (a) to all latent frames after one
step, (b) to one latent frame after every step. Score against step and against frame, and how far the states of
every layer move from the clean run's at every later step (1 - CKA).

(a) and (b) differ in three things: how much noise there is, where it is, and when it last comes. Each arm with noise
in a frame holds one more of them equal to (a):

- "same scale": after every step, as strong as (a). It is the paper's arm, and isolates nothing.
- "same energy": after every step, with the energy of (a) in all. Its last part comes where no step is left to
  remove it, while the noise of (a) comes after step s.
- "up to step": after each of the steps 0 to s, with the energy of (a) in all; the last part comes when (a) comes, at
  the same noise level. It differs from (a) in place, and in being spread over steps.
- "at step": after step s alone, with the energy of (a). It differs from (a) in place alone.

A frame with noise looks bad itself; that is no propagation. So every frame arm is also judged elsewhere: distance
over the other frames, and score of the video in which the hit frame's latents are the clean run's.

The noise comes after steps 0 to S-2: after the last one nothing is left to run, so noise there says nothing of
the model.

    python analyses/noise_sensitivity.py --task maze --samples 64 --out runs/noise_sensitivity
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from torch import Tensor

import dit_lens as dl
from dit_lens import analysis, plot
from dit_lens.engine.batch import Batch
from dit_lens.engine.outcomes import by_sample, outcomes
from dit_lens.engine.sweep import Now, run_arms
from dit_lens.errors import TaskError
from dit_lens.experiments.options import StudyOptions
from dit_lens.experiments.outcomes import BOUNDS, arms_as, headline
from dit_lens.experiments.pictures import choose
from dit_lens.experiments.samples import pairs_of
from dit_lens.experiments.script import run_script
from dit_lens.experiments.study import Measured, study
from dit_lens.experiments.summary import write_summary
from dit_lens.plan.plan import Placed

BUDGETS = ("same scale", "same energy")
"""Of the noise in a frame after every step: as strong as that at a step, or as much in all."""
STOPPED = ("up to step", "at step")
"""Of the noise in a frame that comes last when that at a step does: spread over the steps before, or at once."""


@dataclass
class Options(StudyOptions):
    """Noise at a step, and noise in a frame."""

    scale: float = 1.0
    """Standard deviation of the noise, in units of the clean latents' (which are scaled to about 1)."""
    cka_layers: str = "auto"
    """Layers whose states are compared: all, auto (5 of them), none, or a list such as 0,4,9."""
    stops: str = "auto"
    """Steps after which noise in a frame stops: all, auto (5 of them), none, or a list such as 0,4,9."""
    out: Path = Path("runs/noise_sensitivity")


def main(options: Options) -> int:
    """Run all arms on every sample, compare, draw, save."""
    lens = options.load()
    measured = study(options, "noise_sensitivity", lens, lambda part: measure(lens, part, options))
    conclude(measured, options)
    return measured.exit_code


def measure(lens: dl.Lens, samples: list[dl.Sample], options: Options) -> xr.Dataset:
    """Run the clean arm, an arm for each step, and arms for each frame: by budget, and by kind and stop."""
    pairs = pairs_of(samples, options)
    batch = lens.batch(pairs, options.steps, options.cfg_scale, options.at_once)
    frames, after = batch.noise.shape[2], batch.steps - 1
    if after < 1 or frames < 2:
        raise TaskError(
            f"{batch.steps} steps, {frames} latent frames: noise after a step needs another step that follows, and "
            "noise in a frame another frame; raise --steps or --num-frames."
        )
    stops = [] if options.stops == "none" else choose(options.stops, after, "stops")
    layers = [] if options.cka_layers == "none" else choose(options.cka_layers, lens.layers, "cka-layers")
    arms = [noise(options.scale, step=s + 1) for s in range(after)]
    # (a) gives every element noise once; (b) gives the elements of one frame noise after each step but the last.
    for scale in (options.scale, options.scale * (frames / after) ** 0.5):
        arms += [noise(scale, step="1-", frame=f) for f in range(frames)]
    for kind in STOPPED:
        for stop in stops:
            times, when = (stop + 1, f"1-{stop + 1}") if kind == "up to step" else (1, str(stop + 1))
            scale = options.scale * (frames / times) ** 0.5
            arms += [noise(scale, step=when, frame=f) for f in range(frames)]
    moved = np.full((len(pairs), after, batch.steps, len(layers)), np.nan, np.float32)

    def look(now: Now) -> None:
        rows = [(i, arm, pair) for i, (arm, pair) in enumerate(now.rows) if arm < after]
        for j, layer in enumerate(layers if rows else []):
            clean, edited = (x.states["block", "cond", layer].flatten(1, 3) for x in (now.clean, now.edited))
            for i, arm, pair in rows:  # one at a time: a state of a large model fills a gigabyte
                values = [x.float().cpu().numpy()[None] for x in (clean[pair], edited[i])]
                moved[pair, arm, now.step, j] = 1 - analysis.cka_pairs(*values)[0]

    watch = [("block", "cond", layer) for layer in layers]
    clean, ended = run_arms(batch, arms, watch, look, "noise")
    data = gather(batch, clean, ended, after, stops)
    data["dissimilarity"] = (("pair", "after_step", "step", "layer"), moved)
    data["latent_std"] = ("pair", clean.float().flatten(1).std(1).cpu().numpy())
    # Variances that each arm adds to a row of latents, summed over frames and steps.
    energy = options.scale**2 * np.array([frames, after, frames, frames, frames])
    data["noise_energy"] = ("kind", energy)
    data = data.assign_coords(
        kind=np.array(["step", *BUDGETS, *STOPPED], np.dtypes.StringDType()),
        step=np.arange(batch.steps),
        layer=np.array(layers, int),
        sigma=("step", batch.sigmas),
    )
    return by_sample(data, pairs)


def noise(scale: float, **where: Any) -> list[Placed]:
    """Return an arm: noise in the latents, at a place."""
    return [Placed(dl.add_noise(scale=scale), dl.at(site="latents", **where))]


def gather(batch: Batch, clean: Tensor, ended: Tensor, after: int, stops: list[int]) -> xr.Dataset:
    """Judge the arms, and sort what came out: by step, by budget and frame, by kind, stop and frame; and clean."""
    frames = clean.shape[2]
    # Where only one frame was hit: the same, with this frame's latents from the clean run.
    healed = ended[after:].clone()
    for arm in range(len(healed)):
        healed[arm, :, :, arm % frames] = clean[:, :, arm % frames]
    elsewhere = outcomes(batch, healed, clean)
    elsewhere["distance"] = elsewhere.distance * (frames / (frames - 1)) ** 0.5  # a mean over the others
    judged = outcomes(batch, ended, clean)
    of_frames = xr.merge(
        [judged.isel(arm=slice(after, None)), elsewhere.rename({n: f"{n}_elsewhere" for n in elsewhere})]
    )
    shapes = {"frame": {"budget": list(BUDGETS)}, "stopped": {"stopping": list(STOPPED), "stop": stops}}
    parts, start = [], 0
    for prefix, labels in shapes.items():
        labels = {**labels, "frame": list(range(frames))}
        count = int(np.prod([len(values) for values in labels.values()]))
        part = of_frames.isel(arm=slice(start, start + count)).rename({n: f"{prefix}_{n}" for n in of_frames})
        parts += [unfold(part, labels)] if count else []
        start += count
    return xr.merge(
        [
            arms_as(judged, slice(0, after), "after_step", range(after), "step"),
            arms_as(outcomes(batch, clean[None], clean), slice(0, 1), "arm", ["clean"], "clean").isel(
                arm=0, drop=True
            ),
            *parts,
        ]
    )


def unfold(data: xr.Dataset, labels: dict[str, list[Any]]) -> xr.Dataset:
    """Turn the dimension `arm` into several, the last of them the fastest."""
    sizes = [len(values) for values in labels.values()]
    out = {
        n: ((*labels, "pair"), v.transpose("arm", "pair").values.reshape(*sizes, -1)) for n, v in data.items()
    }
    text = np.dtypes.StringDType()
    coords = {n: np.array(v, text if isinstance(v[0], str) else None) for n, v in labels.items()}
    return xr.Dataset(out, coords)


def conclude(measured: Measured, options: Options) -> None:
    """Summarise, draw, save."""
    results = measured.results
    outcome = "score" if "step_score" in results else "distance"
    limits = BOUNDS.get(outcome)
    baseline = results[f"clean_{outcome}"]

    def against(name: str, clean: xr.DataArray = baseline, **how: Any) -> xr.Dataset:
        return analysis.effect(results[name], clean, bounds=limits, **how)

    step = against(f"step_{outcome}", along="after_step")
    summary = {
        "outcome": outcome,
        "samples": results.sizes["sample"],
        "seeds": results.sizes["seed"],
        "noise_std": options.scale,
        "clean_latent_std": float(results.latent_std.mean()),
        "noise_energy": dict(
            zip(results.kind.values.tolist(), results.noise_energy.values.tolist(), strict=True)
        ),
        "clean": headline(analysis.mean(baseline, bounds=limits)),
        "effect of noise after a step": headline(step),
        "effect of noise in a frame": headline(against(f"frame_{outcome}", along="frame")),
        "effect of noise in a frame, elsewhere": headline(
            against(f"frame_{outcome}_elsewhere", along="frame")
        ),
        "distance in all frames, noise after a step": headline(
            analysis.mean(results.step_distance, bounds=BOUNDS["distance"])
        ),
        "distance elsewhere, noise in a frame": headline(
            analysis.mean(results.frame_distance_elsewhere, bounds=BOUNDS["distance"])
        ),
        **contrasts(results, outcome, limits),
    }
    write_summary(options, summary, measured.left_out, step.attrs)
    draw(results, outcome, limits, options)


def contrasts(results: xr.Dataset, outcome: str, limits: tuple[float, float] | None) -> dict[str, Any]:
    """Compare noise at a step with noise in a frame: over the whole run, and where both stop at the same step."""
    at_step = results[f"step_{outcome}"]
    same = results[f"frame_{outcome}"].sel(budget="same energy", drop=True)
    effects = {
        "mean over steps minus mean over frames, same energy": analysis.effect(
            at_step.mean("after_step"), same.mean("frame"), bounds=limits
        )
    }
    if "stop" in results.dims:
        at_stops = at_step.sel(after_step=results.stop.values).rename(after_step="stop")
        for suffix in ("", "_elsewhere"):
            stopped = results[f"stopped_{outcome}{suffix}"].mean("frame")
            for kind in STOPPED:
                name = f"after a step minus mean over frames{suffix.replace('_', ', ')}, {kind}"
                other = stopped.sel(stopping=kind, drop=True)
                effects[name] = analysis.effect(at_stops, other, bounds=limits, along="stop")
    return {name: headline(one) for name, one in effects.items()}


def draw(results: xr.Dataset, outcome: str, limits: tuple[float, float] | None, options: Options) -> None:
    """Draw the outcome against step, frame and stop, and the heat map of the states."""
    clean = analysis.mean(results[f"clean_{outcome}"], bounds=limits)

    def curves(values: xr.DataArray, along: str, name: str, what: str, **how: Any) -> None:
        means = analysis.mean(values, bounds=limits, along=along)
        title = f"Noise {what} · {options.source}"
        figure = plot.curves(means, along, value_label=outcome, title=title, reference=clean, **how)
        plot.save(figure, options.out / f"{outcome}_by_{name}.png")

    sigma = results.sigma.rename(step="after_step").isel(after_step=slice(0, -1))
    by_step = results[f"step_{outcome}"]
    curves(
        by_step.assign_coords(sigma=sigma.drop_vars("after_step")),
        "after_step",
        "step",
        f"of {options.scale:g} latent sd in all frames, after one step",
    )
    by_frame = results[f"frame_{outcome}"]
    elsewhere = results[f"frame_{outcome}_elsewhere"]
    both = [
        by_frame.assign_coords(budget=list(BUDGETS)),
        elsewhere.assign_coords(budget=[f"{b}, judged elsewhere" for b in BUDGETS]),
    ]
    joined = xr.concat([b.rename("score") for b in both], "budget").rename(budget="noise")
    curves(joined, "frame", "frame", "in one frame, after every step")
    if "stop" in results.dims:
        at_stops = by_step.sel(after_step=results.stop.values).rename(after_step="stop")
        in_frame = results[f"stopped_{outcome}"].mean("frame")
        away = results[f"stopped_{outcome}_elsewhere"].mean("frame")
        lines = {
            "all frames": at_stops,
            **{f"one frame, {k}": in_frame.sel(stopping=k, drop=True) for k in STOPPED},
            **{f"one frame, {k}, judged elsewhere": away.sel(stopping=k, drop=True) for k in STOPPED},
        }
        stacked = xr.concat([v.rename(outcome) for v in lines.values()], xr.Variable("noise", list(lines)))
        curves(
            stacked.rename(stop="after_step"),
            "after_step",
            "stop",
            "of one energy, the last of it after a step",
            marks=True,
        )
    if results.sizes["layer"]:
        moved = results.dissimilarity.mean(("sample", "seed"))
        title = f"How far noise after a step moves the states · {options.source}, {results.sizes['sample']} samples"
        figure = plot.heatmap(
            moved.transpose("layer", "after_step", "step"),
            value_label="1 − CKA to the clean run",
            title=title,
        )
        plot.save(figure, options.out / "dissimilarity.png")


if __name__ == "__main__":
    run_script(main, Options)
