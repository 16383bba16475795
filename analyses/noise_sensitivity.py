"""Where does noise hurt: at a denoising step, or in a frame?

The paper's experiment (arXiv 2603.16870): the same Gaussian noise is added (a) to all latent frames after one
step, (b) to one latent frame after every step. Score against step and against frame, and how far the states of
every layer move from the clean run's at every later step (1 - CKA). (a) and (b) get different amounts of noise,
so (b) is also run with the noise scaled to the total energy of (a): only that pair can be compared.

The noise comes after steps 0 to S-2: after the last one nothing is left to run, so noise there says nothing of
the model.

    python analyses/noise_sensitivity.py --task maze --samples 64 --out runs/noise_sensitivity
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
import xarray as xr

import dit_lens as dl
from dit_lens import analysis, plot, report, study
from dit_lens.errors import TaskError
from dit_lens.plan import Placed
from dit_lens.sweep import Now, sweep

BUDGETS = ("same scale", "same energy")
"""Of the noise in a frame: as strong as that at a step, or as much in all."""


@dataclass
class Options(study.Options):
    """Noise at a step, and noise in a frame."""

    scale: float = 1.0
    """Standard deviation of the noise, in units of the clean latents' (which are scaled to about 1)."""
    layers: str = "all"
    """Layers whose states are compared: all, auto (5 of them), none, or such as 0,4,9."""
    out: Path = Path("runs/noise_sensitivity")


def main(options: Options) -> int:
    """Run all arms on every sample, compare, draw, save."""
    lens = dl.load(options.model)
    results, code = study.study(options, "noise_sensitivity", lens, lambda part: measure(lens, part, options))
    conclude(results, options)
    return code


def measure(lens: dl.Lens, samples: list[dl.Sample], options: Options) -> xr.Dataset:
    """Run the clean arm, an arm for each step, and an arm for each frame at both budgets."""
    pairs = study.pairs_of(samples, options)
    batch = lens.batch(pairs, options.steps, options.cfg_scale, options.at_once)
    frames, after = batch.noise.shape[2], batch.steps - 1
    if after < 1:
        raise TaskError("--steps 1: noise after a step needs another step that follows.")
    # (a) gives every element noise once; (b) gives the elements of one frame noise after each step but the last.
    matched = options.scale * (frames / after) ** 0.5
    noise = dl.add_noise(scale=options.scale)
    arms = [[Placed(noise, dl.at(site="latents", step=s + 1))] for s in range(after)]
    for edit in (noise, dl.add_noise(scale=matched)):
        arms += [[Placed(edit, dl.at(site="latents", frame=f, step="1-"))] for f in range(frames)]
    chosen = [] if options.layers == "none" else report.choose(options.layers, lens.layers, "layers")
    moved = np.full((len(pairs), after, batch.steps, len(chosen)), np.nan, np.float32)

    def look(now: Now) -> None:
        rows = [(i, arm, pair) for i, (arm, pair) in enumerate(now.rows) if arm < after]
        for j, layer in enumerate(chosen if rows and now.edited else []):
            clean, edited = (x.states["block", "cond", layer].flatten(1, 3) for x in (now.clean, now.edited))
            index, arm, pair = (list(n) for n in zip(*rows, strict=True))
            values = [x.float().cpu().numpy() for x in (clean[pair], edited[index])]
            moved[pair, arm, now.step, j] = 1 - analysis.cka_pairs(*values)

    watch = [("block", "cond", layer) for layer in chosen]
    clean, ended = sweep(batch, arms, watch, look, "noise")
    data = gather(
        study.outcomes(batch, ended, clean), study.outcomes(batch, clean[None], clean), after, frames
    )
    data["dissimilarity"] = (("pair", "after_step", "step", "layer"), moved)
    data["latent_std"] = ("pair", clean.float().flatten(1).std(1).cpu().numpy())
    # Variances given, summed over frames and steps: what each arm puts into a row of latents.
    data["noise_energy"] = ("kind", [options.scale**2 * frames, options.scale**2 * after, matched**2 * after])
    data = data.assign_coords(
        kind=np.array(["step", *BUDGETS], np.dtypes.StringDType()),
        step=np.arange(batch.steps),
        layer=np.array(chosen, int),
        sigma=("step", batch.sigmas),
    )
    return study.by_sample(data, samples, options)


def gather(found: xr.Dataset, clean: xr.Dataset, after: int, frames: int) -> xr.Dataset:
    """Sort the arms' outcomes: by step, by frame and budget, and the clean ones."""
    by_frame = [
        study.arms_as(
            found, slice(after + i * frames, after + (i + 1) * frames), "frame", range(frames), "frame"
        )
        for i in range(len(BUDGETS))
    ]
    budget = xr.Variable("budget", np.array(BUDGETS, np.dtypes.StringDType()))
    return xr.merge(
        [
            study.arms_as(found, slice(0, after), "after_step", range(after), "step"),
            xr.concat(by_frame, budget),
            study.arms_as(clean, slice(0, 1), "arm", ["clean"], "clean").isel(arm=0, drop=True),
        ]
    )


def conclude(results: xr.Dataset, options: Options) -> None:
    """Summarise, draw, save."""
    outcome = "score" if "step_score" in results else "distance"
    baseline = results[f"clean_{outcome}"]
    at_step, in_frame = results[f"step_{outcome}"], results[f"frame_{outcome}"]
    step = analysis.effect(at_step, baseline, along="after_step")
    frame = analysis.effect(in_frame, baseline, along="frame")
    same = in_frame.sel(budget="same energy", drop=True)
    contrast = analysis.effect(at_step.mean("after_step"), same.mean("frame"))
    summary = {
        "outcome": outcome,
        "samples": results.sizes["sample"],
        "seeds": results.sizes["seed"],
        "noise_std": options.scale,
        "clean_latent_std": float(results.latent_std.mean()),
        "noise_energy": dict(
            zip(results.kind.values.tolist(), results.noise_energy.values.tolist(), strict=True)
        ),
        "clean": study.headline(analysis.mean(baseline)),
        "effect of noise after a step": study.headline(step),
        "effect of noise in a frame": study.headline(frame),
        "mean over steps minus mean over frames, same energy": study.headline(contrast),
    }
    study.finish(options, summary, step.attrs)
    draw(results, outcome, options)


def draw(results: xr.Dataset, outcome: str, options: Options) -> None:
    """Draw the score against step and against frame, and the heat map of the states."""
    clean = analysis.mean(results[f"clean_{outcome}"])
    for name, along, what in (
        ("step", "after_step", "all frames, after one step"),
        ("frame", "frame", "one frame, after every step"),
    ):
        title = f"Noise of {options.scale:g} latent sd in {what} · {options.task}"
        found = analysis.mean(results[f"{name}_{outcome}"], along=along)
        figure = plot.curves(found, along, value_label=outcome, title=title, reference=clean)
        plot.save(figure, options.out / f"{outcome}_by_{name}.png")
    if results.sizes["layer"]:
        moved = results.dissimilarity.mean(("sample", "seed"))
        title = (
            f"How far noise after a step moves the states · {options.task}, {results.sizes['sample']} samples"
        )
        figure = plot.heatmap(
            moved.transpose("layer", "after_step", "step"),
            value_label="1 − CKA to the clean run",
            title=title,
        )
        plot.save(figure, options.out / "dissimilarity.png")


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
