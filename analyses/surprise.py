"""Is a model surprised by what cannot happen? And can a given video be inverted to the noise that makes it?

Surprise. L(video) is the loss of flow matching on it: the mean over noise levels and latent values of (v(x, sigma) - (eps - z))²,
x = (1 - sigma) z + sigma eps, z the encoded video. Two videos of a scene get the same eps and noise levels, so what they share
costs both the same. A pair is surprising where the other video has the larger loss than the right one. What is compared
(`--comparisons`, `dit_lens.tasks.impossible`):

- wall: the agent goes through a wall, on a walk that is as long as the right one and ends at the same goal;
- colour, lane: the ball that was hidden comes out in another colour, or on another lane;
- ending: the second half is another scene's;
- reversed: time runs backwards. Each video is asked with the frame that it begins with; all others of a scene with one frame.

Nulls, in which no rule is broken: `open`, the two walks of `wall` where that wall is away (the same pixels change); `answers`,
another right answer; `reversed` on `occlude` and `roll`, where a ball rolls as well one way as the other. The ideal denoiser,
which knows the right answers of the scene, has a loss in closed form: the mean of (z - E[x0 | x])² / sigma². It says what a
model without any surprise of its own would show. Control: the same command with `--weights random`.

Inversion. The two videos of the first comparison are inverted (`dit_lens.experiments.inversion`: the velocity of the noisier
level at the latents of the less noisy one, refined), and made again from the noise that comes of it. A video that does not come
back at `--gate` dB is not used, and counted. Beside it stand what the codec alone costs, and what other noise makes: where that
is as near, coming back says nothing. Of the noise itself the energy is compared: the mean square of a value, 1 for noise as it
is drawn.

The first latent frame is given to the model: it is not inverted, and counts in no loss and no PSNR.

    python analyses/surprise.py --task maze --samples 64 --out runs/surprise
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import xarray as xr
from tqdm import tqdm

import dit_lens as dl
from dit_lens import analysis, plot
from dit_lens.engine.batch import Batch
from dit_lens.engine.outcomes import by_sample
from dit_lens.errors import TaskError
from dit_lens.experiments.inversion import require_flow
from dit_lens.experiments.options import StudyOptions
from dit_lens.experiments.outcomes import BOUNDS, headline
from dit_lens.experiments.pictures import choose
from dit_lens.experiments.primary import primary_outcome
from dit_lens.experiments.samples import batch_of, pairs_of, require_scorer
from dit_lens.experiments.script import run_script
from dit_lens.experiments.study import Measured, study
from dit_lens.experiments.summary import write_summary
from dit_lens.experiments.video_losses import apart, inversions, losses
from dit_lens.models.options import Unset
from dit_lens.tasks.impossible import COMPARISONS, comparisons_of, videos_of

VIDEOS = ("right", "other")
"""The two videos of a comparison."""
ROUNDING = 1e-12
"""Difference of two losses, which are of the order of 1, up to which they are one."""


@dataclass
class Options(StudyOptions):
    """Measure how surprising right and impossible videos are, and invert them."""

    cfg_scale: Unset[float] = 1.0
    """Guidance scale. Default: 1, the conditional branch alone: a guided velocity is no estimate of eps - z."""
    comparisons: tuple[str, ...] = ()
    """What is compared: wall, open, colour, lane, answers, ending, reversed. Default: all that the task has."""
    at: str = "all"
    """Steps whose noise levels are taken: all, auto (5 of them), or a list such as 0,5,10."""
    invert: bool = True
    """Invert the two videos of the first comparison."""
    refine: int = 3
    """Refinements of each step of an inversion; a step costs one forward more than that."""
    gate: float = 25.0
    """PSNR in dB from which on a video counts as inverted, when it is made again from its noise."""
    out: Path = Path("runs/surprise")

    AROUND: ClassVar[tuple[str, ...]] = ("gate",)


def main(options: Options) -> int:
    """Measure losses, invert, compare, draw, save."""
    require_scorer(options)
    compared(options)
    if options.refine < 0 or not options.gate > 0:
        raise TaskError(f"--refine {options.refine} --gate {options.gate}: give 0 or more, and over 0 dB.")
    lens = options.load()
    require_flow(lens)
    measured = study(
        options,
        "surprise",
        lens,
        lambda part: measure(lens, part, options),
        runs=lambda batch: cost(batch, options),
    )
    conclude(measured, options)
    return measured.exit_code


def compared(options: Options) -> list[str]:
    """Return the comparisons that are made.

    Raises:
        TaskError: the task does not have one of them.
    """
    known = comparisons_of(options.task)
    if unknown := [name for name in options.comparisons if name not in known]:
        raise TaskError(
            f"--comparisons {' '.join(unknown)}: --task {options.task} has {', '.join(known) or 'none'}."
        )
    return list(dict.fromkeys(options.comparisons)) or known


def cost(batch: Batch, options: Options) -> float:
    """Return how many whole runs are made of a pair."""
    sample = batch.pairs[0][0]
    is_own = [videos_of(sample, name)[0] is sample for name in compared(options)]
    # The sample's own right video is measured once, whatever it is compared with.
    videos = len(is_own) + is_own.count(False) + any(is_own)
    share = len(choose(options.at, batch.steps, "at")) / batch.steps
    inversions = len(VIDEOS) * (1 + options.refine + 2) / options.seeds if options.invert else 0.0
    return videos * share + inversions


def measure(lens: dl.Lens, samples: list[dl.Sample], options: Options) -> xr.Dataset:
    """Measure the loss of every video under its pairs' noise; invert those of the first comparison."""
    pairs, names = pairs_of(samples, options), compared(options)
    batch = batch_of(lens, pairs, options)
    steps = choose(options.at, batch.steps, "at")
    made = {name: [videos_of(sample, name) for sample in samples] for name in names}
    sides = [side for name in names for side in zip(*made[name], strict=True)]
    measured, of_samples = [], None
    for videos in tqdm(sides, desc="videos", leave=False):
        is_own = all(video is sample for video, sample in zip(videos, samples, strict=True))
        if is_own and of_samples is None:
            of_samples = losses(lens, samples, batch, steps, options)
        measured.append(of_samples if is_own else losses(lens, videos, batch, steps, options))
    values = np.stack(measured)  # [side, denoiser, step, pair]
    values = values.reshape(len(names), len(VIDEOS), *values.shape[1:])
    dims = ("comparison", "video", "step", "pair")
    text = np.dtypes.StringDType()
    coords = {
        "comparison": np.array(names, text),
        "video": np.array(VIDEOS, text),
        "step": steps,
        "sigma": ("step", [batch.sigmas[step] for step in steps]),
    }
    data = {"loss": (dims, values[:, :, 0]), "ideal_loss": (dims, values[:, :, 1])}
    out = by_sample(xr.Dataset(data, coords), pairs)
    out["apart"] = (
        ("comparison", "sample"),
        [[apart(lens, *videos) for videos in made[name]] for name in names],
    )
    if not options.invert:
        return out
    return out.assign(inversions(lens, made[names[0]], pairs[:: options.seeds], options.refine, options))


def surprise(loss: xr.DataArray) -> xr.DataArray:
    """Return by how much the loss of the other video is larger than that of the right one."""
    return loss.sel(video="other", drop=True) - loss.sel(video="right", drop=True)


def share(larger: xr.DataArray) -> xr.DataArray:
    """Return whether the other video has the larger loss, over a sample's seeds: 1, 0, or a half where both have one loss."""
    mean = larger.mean("seed")
    return (np.sign(mean.where(abs(mean) > ROUNDING, 0.0)) + 1) / 2


def conclude(measured: Measured, options: Options) -> None:
    """Say which videos surprise, beside the nulls, and what was inverted; draw; save."""
    results = measured.results
    larger = surprise(results.loss)
    overall, by_step = share(larger.mean("step")), share(larger)
    shares = analysis.mean(by_step, along="step", bounds=(0, 1))
    summary: dict[str, Any] = {
        "samples": results.sizes["sample"],
        "seeds": results.sizes["seed"],
        "comparisons": {name: about(name, options.task) for name in results.comparison.values.tolist()},
        **primary(overall, options),
        "share of pairs whose other video has the larger loss": headline(
            analysis.mean(overall, bounds=(0, 1))
        ),
        "the same, by step": headline(shares),
        "loss, right video": headline(analysis.mean(results.loss.sel(video="right", drop=True).mean("step"))),
        "loss, other minus right": headline(analysis.mean(larger.mean("step"))),
        "loss, other minus right, by step": headline(analysis.mean(larger, along="step")),
        "distance of the two videos' latents": headline(
            analysis.mean(results.apart, bounds=BOUNDS["distance"])
        ),
        **of_nulls(larger.mean("step"), overall, options),
        **of_ideal(results),
    }
    if options.invert:
        summary["inversion"] = of_inversions(results, options)
    write_summary(options, summary, measured.left_out, shares.attrs)
    figure = plot.curves(
        shares,
        "step",
        value_label="other video has the larger loss (share of pairs)",
        title=f"Surprise by noise level · {options.source}",
        reference=0.5,
        reference_label="no surprise",
        marks=True,
        limits=(-0.03, 1.03),
    )
    plot.save(figure, options.out / "share_by_step.png")


def about(name: str, task: str) -> str:
    """Say what a comparison is."""
    comparison = COMPARISONS[name]
    return comparison.other + (" (a null: no rule is broken)" if task in comparison.nulls else "")


def primary(overall: xr.DataArray, options: Options) -> dict[str, Any]:
    """Return the primary outcome: the share of the first comparison that breaks a rule, minus one half."""
    for name in overall.comparison.values.tolist():
        if options.task not in COMPARISONS[name].nulls:
            share_of_it = overall.sel(comparison=name, drop=True)
            found = primary_outcome(partial(analysis.mean, share_of_it, bounds=(0, 1)), null=0.5)
            less = {key: found[key] - 0.5 for key in ("mean", "low", "high", "null")} | {"p": found["p"]}
            return {"primary: share of pairs with the larger loss, minus one half": {name: less}}
    return {}


def of_nulls(larger: xr.DataArray, overall: xr.DataArray, options: Options) -> dict[str, Any]:
    """Compare what breaks a rule with each null of the task, of the same samples."""
    names = overall.comparison.values.tolist()
    nulls = [name for name in names if options.task in COMPARISONS[name].nulls]
    broken = [name for name in names if name not in nulls]
    out: dict[str, Any] = {}
    for null in nulls if broken else []:
        for what, values, bounds in (("share", overall, (0, 1)), ("loss, other minus right", larger, None)):
            kept = values.sel(comparison=broken)
            against = values.sel(comparison=null, drop=True)
            out[f"{what}, minus that of the null {null}"] = headline(
                analysis.effect(kept, against, bounds=bounds)
            )
    return out


def of_ideal(results: xr.Dataset) -> dict[str, Any]:
    """Return what the ideal denoiser shows, where it is known of both videos."""
    known = results.ideal_loss.notnull().all([d for d in results.ideal_loss.dims if d != "comparison"])
    if not known.any():
        return {}
    larger = surprise(results.ideal_loss.sel(comparison=known)).mean("step")
    return {
        "share, ideal denoiser": headline(analysis.mean(share(larger), bounds=(0, 1))),
        "loss, other minus right, ideal denoiser": headline(analysis.mean(larger)),
    }


def of_inversions(results: xr.Dataset, options: Options) -> dict[str, Any]:
    """Say how many videos come back from their noise, and what noise that is."""
    passed = results.psnr >= options.gate
    both = passed.all("video")
    out: dict[str, Any] = {
        "comparison": str(results.comparison.values[0]),
        "gate in dB": options.gate,
        "videos below the gate": {v: int((~passed.sel(video=v)).sum()) for v in VIDEOS},
        "pairs that are used": int(both.sum()),
        "videos that come back (share)": headline(analysis.mean(passed)),
        "PSNR in dB": headline(analysis.mean(results.psnr)),
        "PSNR in dB, codec alone": headline(analysis.mean(results.codec_psnr)),
        "PSNR in dB, from other noise": headline(analysis.mean(results.other_noise_psnr)),
        "PSNR in dB, latents": headline(analysis.mean(results.latent_psnr)),
    }
    if int(both.sum()) < 2:
        return out | {"energy of the noise": f"not measured: {int(both.sum())} pairs come back at the gate."}
    energy = results.energy.sel(sample=both)
    difference = analysis.effect(energy.sel(video="other", drop=True), energy.sel(video="right", drop=True))
    out["energy of the noise"] = headline(analysis.mean(energy))
    return out | {"energy of the noise, other minus right": headline(difference)}


if __name__ == "__main__":
    run_script(main, Options)
