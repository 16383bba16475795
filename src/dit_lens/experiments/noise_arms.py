"""Noise in latents: in all frames after one step, or in one frame after every step, up to a step, or after one step alone.

An arm is noise at a place; each arm with noise in a frame holds something equal to noise after a step. What came of the arms is
sorted by step, by frame and by stop, and of noise in a frame it is judged elsewhere, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import xarray as xr
from torch import Tensor

import dit_lens as dl
from dit_lens import analysis
from dit_lens.engine.batch import Batch
from dit_lens.engine.outcomes import outcomes
from dit_lens.experiments.outcomes import arms_as, headline, unfold
from dit_lens.experiments.primary import primary_outcome
from dit_lens.experiments.samples import at_latents
from dit_lens.plan.places import At
from dit_lens.plan.plan import Placed

BUDGETS = ("same scale", "same energy")
"""Of noise in a frame after every step: as strong as that at a step, or as much in all, which only added noise can be."""
STOPPED = ("up to step", "at step")
"""Of the noise in a frame that comes last when that at a step does: spread over the steps before, or at once."""

CLEAN = "clean run"
"""The arm without noise."""
ELSEWHERE = ", elsewhere"
"""What an arm is called by that is judged with the latents of the frame that was hit from the clean run."""

Kind = Literal["replace", "add", "renoise"]
"""What noise does to latents: it takes their place, is added, or is drawn anew while x0 and the noise level are kept."""


@dataclass(frozen=True)
class LatentNoise:
    """Noise in latents.

    Attributes:
        kind: what it does to them.
        scale: its standard deviation, in units of the clean latents'.
    """

    kind: Kind
    scale: float

    @property
    def budgets(self) -> tuple[str, ...]:
        """How much noise a frame gets after every step."""
        return BUDGETS if self.kind == "add" else BUDGETS[:1]

    def at(self, place: At, share: float = 1.0) -> list[Placed]:
        """Return an arm: noise in the latents, at a place, of a share of the variance."""
        kinds = {
            "add": lambda: dl.add_noise(scale=self.scale * share**0.5),
            "replace": lambda: dl.noise(scale=self.scale),
            "renoise": dl.renoise,
        }
        return [Placed(kinds[self.kind](), place)]

    def arms(self, hit: Sequence[int], after: int, stops: Sequence[int]) -> dict[str, list[Placed]]:
        """Return the arms: all frames after each step; each frame by budget; each frame by kind and stop.

        Args:
            hit: the latent frames that noise may come into, `frames_of`.
            after: after how many steps noise comes: all but the last.
            stops: steps after which noise in a frame stops.
        """
        arms = {after_step(s): self.at(at_latents(hit[0], step=s + 1)) for s in range(after)}

        def each(share: float, step: str, how: str) -> dict[str, list[Placed]]:
            places = {f: dl.at(site="latents", step=step, frame=f) for f in hit}
            return {in_frame(f, how): self.at(place, share) for f, place in places.items()}

        # (a) gives every element noise once; (b) gives the elements of one frame noise after each step but the last.
        for budget, share in zip(self.budgets, (1.0, len(hit) / after), strict=False):
            arms |= each(share, "1-", budget)
        for kind in STOPPED:
            for stop in stops:
                times, when = (stop + 1, f"1-{stop + 1}") if kind == "up to step" else (1, str(stop + 1))
                arms |= each(len(hit) / times if self.kind == "add" else 1.0, when, f"{kind} {stop}")
        return arms

    def energies(self, frames: int, after: int) -> dict[str, float]:
        """Return the variances that an arm adds to a row of latents, summed over frames and steps, by kind of arm."""
        counts = (frames, after, frames, frames, frames)
        return {
            kind: self.scale**2 * count
            for kind, count in zip(("step", *BUDGETS, *STOPPED), counts, strict=True)
        }


def frames_of(batch: Batch) -> list[int]:
    """Return the latent frames that noise may hit: those that the pipeline does not give and put back."""
    return list(range(batch.fixed_frames, batch.noise.shape[2]))


def after_step(step: int) -> str:
    """Return how the arm with noise in all frames after a step is called."""
    return f"after step {step}"


def in_frame(frame: int, how: str) -> str:
    """Return how the arm with noise in one frame is called."""
    return f"frame {frame}, {how}"


def heal(clean: Tensor, ended: Tensor, hit: Sequence[int]) -> Tensor:
    """Return what came of noise in one frame, with this frame's latents from the clean run, [arm, pair, ...].

    Args:
        clean: last latents of the clean runs, [pair, channel, frame, y, x].
        ended: those of the arms, [arm, pair, ...]: noise in each of some frames, as often as there are ways.
        hit: these frames.
    """
    healed = ended.clone()
    for arm in range(len(healed)):
        frame = hit[arm % len(hit)]
        healed[arm, :, :, frame] = clean[:, :, frame]
    return healed


def gather(
    batch: Batch, clean: Tensor, ended: Tensor, healed: Tensor, stops: list[int], budgets: tuple[str, ...]
) -> xr.Dataset:
    """Judge the arms, and sort what came out: by step, by budget and frame, by kind, stop and frame; and clean."""
    hit, after = frames_of(batch), len(ended) - len(healed)
    frames = len(hit)
    others = outcomes(batch, healed, clean)
    others["distance"] = others.distance * (frames / (frames - 1)) ** 0.5  # a mean over the others
    judged = outcomes(batch, ended, clean)
    of_frames = xr.merge(
        [judged.isel(arm=slice(after, None)), others.rename({n: f"{n}_elsewhere" for n in others})]
    )
    shapes: dict[str, dict[str, list[Any]]] = {
        "frame": {"budget": list(budgets)},
        "stopped": {"stopping": list(STOPPED), "stop": stops},
    }
    parts, start = [], 0
    for prefix, labels in shapes.items():
        labels = {**labels, "frame": [*hit]}
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


def contrasts(results: xr.Dataset, outcome: str, limits: tuple[float, float] | None) -> dict[str, Any]:
    """Compare noise at a step with noise in a frame: over the whole run, and where both stop at the same step."""
    at_step = results[f"step_{outcome}"]
    finds = {
        f"mean over steps minus mean over frames, {budget}": partial(
            analysis.effect,
            at_step.mean("after_step"),
            results[f"frame_{outcome}"].sel(budget=budget, drop=True).mean("frame"),
            bounds=limits,
        )
        for budget in results.budget.values.tolist()
    }
    first, *more = finds
    out = {first: primary_outcome(finds[first]), **{name: headline(finds[name]()) for name in more}}
    if "stop" in results.dims:
        at_stops = at_step.sel(after_step=results.stop.values).rename(after_step="stop")
        for suffix in ("", "_elsewhere"):
            stopped = results[f"stopped_{outcome}{suffix}"].mean("frame")
            for kind in STOPPED:
                name = f"after a step minus mean over frames{suffix.replace('_', ', ')}, {kind}"
                other = stopped.sel(stopping=kind, drop=True)
                out[name] = headline(analysis.effect(at_stops, other, bounds=limits, along="stop"))
    return out


def by_stop(results: xr.Dataset, outcome: str) -> xr.DataArray:
    """Return an outcome of noise that last comes after a step, by where it is and is judged: [noise, ..., after_step]."""
    at_stops = results[f"step_{outcome}"].sel(after_step=results.stop.values).rename(after_step="stop")
    in_frame = results[f"stopped_{outcome}"].mean("frame")
    away = results[f"stopped_{outcome}_elsewhere"].mean("frame")
    lines = {
        "all frames": at_stops,
        **{f"one frame, {k}": in_frame.sel(stopping=k, drop=True) for k in STOPPED},
        **{f"one frame, {k}, judged elsewhere": away.sel(stopping=k, drop=True) for k in STOPPED},
    }
    stacked = xr.concat([v.rename(outcome) for v in lines.values()], xr.Variable("noise", list(lines)))
    return stacked.rename(stop="after_step")


__all__ = [
    "BUDGETS",
    "CLEAN",
    "ELSEWHERE",
    "STOPPED",
    "Kind",
    "LatentNoise",
    "after_step",
    "by_stop",
    "contrasts",
    "frames_of",
    "gather",
    "heal",
    "in_frame",
]
