"""Two models of one architecture, from the same noise: how far their states are apart, and what one's states do in the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from dit_lens import analysis
from dit_lens.edits import patch
from dit_lens.engine.batch import Batch
from dit_lens.engine.outcomes import outcomes
from dit_lens.engine.stepped import Stepped
from dit_lens.engine.sweep import Arm, run_arms
from dit_lens.errors import ModelError
from dit_lens.experiments.partners import partners
from dit_lens.experiments.samples import given_frames
from dit_lens.families.latents import apart
from dit_lens.plan.plan import Placed
from dit_lens.plan.selectors import at
from dit_lens.tasks.pairs import Pair

if TYPE_CHECKING:
    from dit_lens.lens import Lens

Array = NDArray[Any]
OWN_COURSE, SAME_LATENTS = "own course", "same latents"
COURSES = (OWN_COURSE, SAME_LATENTS)
"""Where the other model's states come from: from its own run, or from a step that it takes from the first one's latents."""
OTHER_MODEL, OTHER_SEED, OWN = "other model", "own model, other seed", "own states"
SOURCES = (OTHER_MODEL, OTHER_SEED, OWN)
"""Whose states are put in."""
SEED = 500_009
"""Added to a noise seed for the control."""
GRID = ("frame", "y", "x", "channel")
LATENTS = ("row", "latent_channel", "frame", "latent_y", "latent_x")


def refuse_strangers(lens: Lens, other: Lens) -> None:
    """Refuse two models of different architectures, or one model twice.

    Raises:
        ModelError: it names both.
    """
    one, two = (each.specimen.architecture for each in (lens, other))
    if one != two:
        raise ModelError(
            f"The two models are of different architectures, {one} and {two}: states of one mean nothing in the other. Give "
            "--other of the architecture of --model: its LoRA, a checkpoint, a distilled one."
        )
    if lens.specimen.fingerprint() == other.specimen.fingerprint():
        raise ModelError("--model and --other have the same weights: there is nothing to compare.")


def rows_of(pairs: Sequence[Pair]) -> list[Pair]:
    """Return the rows of a batch: each pair (the even rows), and beside it the same sample from other noise."""
    return [(sample, seed + extra) for sample, seed in pairs for extra in (0, SEED)]


@dataclass
class Course:
    """A clean run of a batch.

    Attributes:
        ends: the last latents, [row, channel, frame, y, x].
        starts: what each step starts from, likewise.
        held: states after blocks, by (branch, layer), [step, row, frame, y, x, channel], on the CPU.
    """

    ends: Tensor
    starts: list[Tensor] = field(default_factory=list)
    held: dict[tuple[str, int], Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, batch: Batch, layers: Sequence[int]) -> Course:
        """Run a batch, and hold the states of some layers at every step."""
        out, states = cls(batch.noise), []
        for step in range(batch.steps):
            out.starts.append(out.ends)
            now = batch.step(step, out.ends, watch=_places(batch, layers))
            states.append(_held(now))
            out.ends = now.latents
        out.held = {key: torch.stack([one[key] for one in states]) for key in states[0]}
        return out

    def source(self, batch: Batch, row: int, layer: int) -> xr.DataArray:
        """Return the states of a row in a layer, for `dl.patch`: [branch, step, frame, y, x, channel]."""
        branches = list(batch.layout.branches)
        values = torch.stack([self.held[branch, layer][:, row] for branch in branches]).float().numpy()
        specimen = batch.specimen
        said = {"model_fingerprint": specimen.fingerprint(), "model_architecture": specimen.architecture}
        coords = {"branch": branches, "step": range(batch.steps), "sigma": ("step", list(batch.sigmas))}
        return xr.DataArray(values, coords, ("branch", "step", *GRID), attrs=said)


def _places(batch: Batch, layers: Sequence[int]) -> list[Any]:
    return [("block", branch, layer) for branch in batch.layout.branches for layer in layers]


def _held(now: Stepped) -> dict[tuple[str, int], Tensor]:
    return {(str(branch), int(layer or 0)): state.cpu() for (_, branch, layer), state in now.states.items()}


def compared(
    batch: Batch, other: Batch, own: Course, its: Course, layers: Sequence[int], steps: Sequence[int]
) -> xr.Dataset:
    """Compare the states of two models, on the first branch.

    Args:
        batch: of the one model, `rows_of` pairs.
        other: the same rows, of the other one.
        own: of the first batch.
        its: of the other one.
        layers: that are compared.
        steps: at which they are.

    Returns:
        On [course, layer, step, pair]: `cka`; `difference`, the norm of the difference of all states over that of the first
        model's; `mean_difference`, likewise of the means over tokens. On [layer, step, pair]: `cka_scene`, of two scenes in the
        first model, and `cka_seed`, of two noise seeds of one scene; NaN where there is no other scene.
    """
    branch, count = batch.layout.branches[0], len(batch.pairs) // 2
    scenes = partners(batch)["sample"]
    coupled = [row for row in range(0, len(batch.pairs), 2) if row in scenes]
    shape = (len(COURSES), len(layers), len(steps), count)
    found = {name: np.full(shape, np.nan) for name in ("cka", "difference", "mean_difference")}
    floors = {name: np.full(shape[1:], np.nan) for name in ("cka_scene", "cka_seed")}
    for j, step in enumerate(steps):
        same = _held(other.step(step, own.starts[step], watch=[("block", branch, layer) for layer in layers]))
        for i, layer in enumerate(layers):
            every = _tokens(own.held[branch, layer][step])
            a = every[::2]
            for c, states in enumerate((its.held[branch, layer][step], same[branch, layer])):
                b = _tokens(states)[::2]
                found["cka"][c, i, j] = analysis.cka_pairs(a, b)
                found["difference"][c, i, j] = _relative(b - a, a)
                found["mean_difference"][c, i, j] = _relative((b - a).mean(1), a.mean(1))
            floors["cka_seed"][i, j] = analysis.cka_pairs(a, every[1::2])
            if coupled:
                beside = every[[scenes[row] for row in coupled]]
                floors["cka_scene"][i, j, [row // 2 for row in coupled]] = analysis.cka_pairs(
                    every[coupled], beside
                )
    data: dict[str, Any] = {n: (("course", "layer", "step", "pair"), v) for n, v in found.items()}
    data |= {n: (("layer", "step", "pair"), v) for n, v in floors.items()}
    names = np.array(COURSES, np.dtypes.StringDType())
    sigma = ("step", [batch.sigmas[step] for step in steps])
    return xr.Dataset(data, {"course": names, "layer": list(layers), "step": list(steps), "sigma": sigma})


def _tokens(states: Tensor) -> Array:
    """Return states as [row, token, channel]."""
    values: Array = states.double().flatten(1, 3).numpy()
    return values


def _relative(off: Array, of: Array) -> Array:
    """Return the norm of each row of one array over that of another one, [row]."""
    return np.array([np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(off, of, strict=True)])


def patched(batch: Batch, other: Batch, own: Course, its: Course, layers: Sequence[int]) -> xr.Dataset:
    """Put states into the first model's runs, at every step and on all branches, one layer at a time.

    Returns:
        On [source, layer, pair]: `leaning` from its own clean end (-1) to the other model's (1); `change`, the largest change of
        a latent; with scorers `solved`, `changed`, whether the answer is not the own one, and `others`, whether it is the other
        model's. On [pair]: `apart`, the root mean square distance of the two ends; with scorers `clean_solved`, `other_solved`.
    """
    _, ended = run_arms(batch, list(_arms(batch, other, own, its, layers)), progress="patches")
    latents = torch.stack([apart(one)["video"] for one in ended])[:, ::2]
    a, b = (apart(course.ends)["video"][::2] for course in (own, its))
    shape = len(SOURCES), len(layers), len(a)
    lean = np.stack([leaning(one, a, b, batch) for one in latents])
    change = (latents - a).abs().amax((2, 3, 4, 5)).float().cpu().numpy()
    data: dict[str, Any] = {"leaning": lean, "change": change}
    alone: dict[str, Any] = {"apart": (b - a).double().square().mean((1, 2, 3, 4)).sqrt().cpu().numpy()}
    if all(sample.scorer is not None for sample, _ in batch.pairs):
        judged = _judged(batch, torch.cat([latents, a[None], b[None]]), a)
        answers, solved = judged["answer"], judged["solved"]
        data |= {
            "solved": solved[:-2],
            "changed": answers[:-2] != answers[-2],
            "others": answers[:-2] == answers[-1],
        }
        alone |= {
            "clean_solved": solved[-2],
            "other_solved": solved[-1],
            "differs": answers[-1] != answers[-2],
        }
    variables: dict[str, Any] = {n: (("source", "layer", "pair"), v.reshape(shape)) for n, v in data.items()}
    variables |= {n: ("pair", v) for n, v in alone.items()}
    return xr.Dataset(
        variables, {"source": np.array(SOURCES, np.dtypes.StringDType()), "layer": list(layers)}
    )


def _arms(batch: Batch, other: Batch, own: Course, its: Course, layers: Sequence[int]) -> Iterator[Arm]:
    """Yield the arms, the layer the fastest: only the even rows receive."""

    def arm(source: str, layer: int) -> Arm:
        def edits(row: int) -> list[Placed]:
            if row % 2:
                return []
            if source == OTHER_MODEL:
                put = patch(source=its.source(other, row, layer), other_model=True)
            else:
                put = patch(source=own.source(batch, row + int(source == OTHER_SEED), layer))
            return [Placed(put, at(site="block", layer=layer))]

        return edits

    return (arm(source, layer) for source in SOURCES for layer in layers)


def _judged(batch: Batch, latents: Tensor, clean: Tensor) -> dict[str, Array]:
    """Judge latents [arm, pair, ...] of the even rows; see `outcomes`."""
    found = outcomes(batch, latents.repeat_interleave(2, 1), clean.repeat_interleave(2, 0))
    return {str(name): value.values[:, ::2] for name, value in found.items()}


def leaning(latents: Tensor, a: Tensor, b: Tensor, batch: Batch) -> Array:
    """Return how far latents lean from a to b, [row], over all frames that are not given; see `analysis.leaning`."""
    given = min(given_frames(batch.pairs[0][0]), a.shape[2] - 1)
    x, one, two = (
        xr.DataArray(v.double().cpu().numpy()[:, :, given:], dims=LATENTS) for v in (latents, a, b)
    )
    values: Array = analysis.leaning(x, one, two).values
    return values


__all__ = [
    "COURSES",
    "OTHER_MODEL",
    "OTHER_SEED",
    "OWN",
    "OWN_COURSE",
    "SAME_LATENTS",
    "SOURCES",
    "Course",
    "compared",
    "leaning",
    "patched",
    "refuse_strangers",
    "rows_of",
]
