"""What a probe reads, taken away while a run is made: does the answer need it?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from dit_lens import controls
from dit_lens.edits import ablate
from dit_lens.engine.outcomes import by_sample, outcomes
from dit_lens.engine.sweep import Arm, run_arms
from dit_lens.experiments.token_probes import DIRECTIONS
from dit_lens.plan.functions import options
from dit_lens.plan.places import Spot
from dit_lens.plan.plan import Placed
from dit_lens.plan.selectors import at
from dit_lens.tasks.pairs import label

if TYPE_CHECKING:
    from dit_lens.engine.batch import Batch

MEANS, PROBE, SHUFFLED = "means", "probe", "shuffled labels"
MEANS_PLACEBO, PROBE_PLACEBO = "random, as means", "random, as probe"
KINDS = {
    MEANS: ("means", None),
    MEANS_PLACEBO: ("means", "random"),
    SHUFFLED: ("means", "control_means"),
    PROBE: ("probe", None),
    PROBE_PLACEBO: ("probe", "random"),
}
"""Kinds of cuts: the direction that is taken away; and of placebos, which change each token by as much, along which other one."""
TOGETHER = "all of them"


@options
def cut(h: Tensor, spot: Spot, *, direction: Any) -> Tensor:
    """Let all tokens hold the same along a direction, their mean: what tells them apart along it is gone."""
    return ablate(to="token_mean", direction=direction)(h, spot)


@options
def cut_elsewhere(h: Tensor, spot: Spot, *, direction: Any, along: Any) -> Tensor:
    """Change every token by as much as `cut` does, along another direction."""
    wide = torch.promote_types(h.dtype, torch.float32)
    here, there = (torch.as_tensor(np.array(one)).to(h.device, wide) for one in (direction, along))
    change = (cut(direction=direction)(h, spot).to(wide) - h.to(wide)) @ (here / here.norm())
    return (h.to(wide) + change[..., None] * there / there.norm()).to(h.dtype)


def places_of(layers: Sequence[int]) -> dict[str, list[int]]:
    """Return where is cut, by name: in each layer alone, and in all of them."""
    alone = {f"layer {layer}": [layer] for layer in layers}
    return alone | ({TOGETHER: list(layers)} if len(layers) > 1 else {})


def arms_of(batch: Batch, probes: xr.Dataset, seed: int) -> list[Arm]:
    """Return the arms, each kind at each place: every pair is cut by the probe that did not see its scene.

    Args:
        batch: the pairs.
        probes: `DIRECTIONS` [fold, layer, step, channel], `fold` [sample, seed]; at a step without probes, those of the nearest.
        seed: of the random directions.
    """
    nearest = np.abs(np.subtract.outer(np.arange(batch.steps), probes.step.values)).argmin(1)
    known = dict(zip(probes.sample.values.tolist(), probes.fold.isel(seed=0).values.tolist(), strict=True))
    found = {n: probes[n].transpose("fold", "layer", "step", "channel").values for n in DIRECTIONS}
    layers = probes.layer.values.tolist()

    def edit(kind: str, fold: int, layer: int, step: int) -> Placed | None:
        name, other = KINDS[kind]
        own, *more = (found[n][fold, layers.index(layer), step] for n in (name, other) if n in found)
        if not own.any() or not all(one.any() for one in more):
            return None  # one label alone was found: there is nothing to take away
        steps = np.flatnonzero(nearest == step).tolist()
        along = controls.random_direction(own, seed=seed + 1000 * layer + step) if other == "random" else None
        put = (
            cut(direction=own)
            if other is None
            else cut_elsewhere(direction=own, along=more[0] if more else along)
        )
        return Placed(put, at(site="block", layer=layer, step=steps))

    def arm(kind: str, chosen: list[int]) -> Arm:
        def edits(pair: int) -> list[Placed]:
            fold = known[label(batch.pairs[pair][0])]
            placed = [
                edit(kind, fold, layer, step) for layer in chosen for step in sorted({*nearest.tolist()})
            ]
            return [one for one in placed if one is not None]

        return edits

    return [arm(kind, chosen) for kind in KINDS for chosen in places_of(layers).values()]


def cuts(batch: Batch, probes: xr.Dataset, seed: int) -> xr.Dataset:
    """Run every pair under every cut.

    Returns:
        On [kind, place, sample, seed]: `changed`, whether the answer is another one; `solved`; `distance` of the last latents.
        On [sample, seed]: `clean_solved`.
    """
    clean, ended = run_arms(batch, arms_of(batch, probes, seed), progress="cuts")
    judged, alone = outcomes(batch, ended, clean), outcomes(batch, clean[None], clean).isel(arm=0)
    names = np.dtypes.StringDType()
    coords = {
        "kind": np.array([*KINDS], names),
        "place": np.array([*places_of(probes.layer.values.tolist())], names),
    }
    shape = [len(one) for one in coords.values()]

    def unfolded(values: Any) -> Any:
        return ("kind", "place", "pair"), np.asarray(values).reshape(*shape, -1)

    data = {
        "changed": unfolded(judged.answer.values != alone.answer.values),
        "solved": unfolded(judged.solved.values),
        "distance": unfolded(judged.distance.values),
        "clean_solved": ("pair", alone.solved.values),
    }
    return by_sample(xr.Dataset(data, coords), batch.pairs)


__all__ = [
    "KINDS",
    "MEANS",
    "MEANS_PLACEBO",
    "PROBE",
    "PROBE_PLACEBO",
    "TOGETHER",
    "arms_of",
    "cuts",
    "places_of",
]
