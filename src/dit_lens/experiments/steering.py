"""Steering: while a run is made, a direction is added to tokens of a layer, more or less of it. How far does the run go?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from dit_lens.edits import steer
from dit_lens.engine.batch import Batch
from dit_lens.engine.sweep import Arm, run_arms
from dit_lens.experiments.prompt_directions import named_cells
from dit_lens.experiments.swap_outcomes import DIMS, CleanEnds, by_direction
from dit_lens.experiments.swaps import itself, partner, receives
from dit_lens.families.latents import apart
from dit_lens.plan.plan import Placed
from dit_lens.plan.selectors import at

Array = NDArray[Any]
TARGET = 0.1
"""Share of the largest difference between the ends of A and B from which on a place is the target of steering."""


@dataclass(frozen=True)
class Dose:
    """One arm.

    Attributes:
        layer: after which the direction is added.
        kind: of direction.
        scale: how many times it is added.
    """

    layer: int
    kind: str
    scale: float

    def arm(self, batch: Batch, directions: xr.DataArray, steps: Sequence[int], at_objects: bool) -> Arm:
        """Return the edits of every receiver, on the branch of the prompt.

        Args:
            batch: of `rows_of`.
            directions: [kind, layer, step, channel].
            steps: at which it is added.
            at_objects: add it to the objects that the other prompt names, and take it away from those that the own one does;
                else add it to all tokens of A, and take it away from those of B.
        """
        chosen = directions.sel(kind=self.kind, layer=self.layer)
        where: dict[str, Any] = {"site": "block", "layer": self.layer, "branch": batch.layout.branches[0]}

        def edits(row: int) -> list[Placed]:
            if not receives(row):
                return []
            signs: list[tuple[float, Any]] = [(1.0 if row % 2 == 0 else -1.0, None)]
            if at_objects:
                own, other = (mask_of(batch, r) for r in (row, partner(row)))
                signs = [(1.0, other), (-1.0, own)]
            return [
                Placed(
                    steer(direction=chosen.sel(step=step).values, scale=sign * self.scale),
                    at(step=step, mask=mask, **where),
                )
                for step in steps
                for sign, mask in signs
            ]

        return edits


def mask_of(batch: Batch, row: int) -> NDArray[np.bool_]:
    """Return the tokens of the objects that a row's prompt names, in all frames: [frame, y, x]."""
    mask = np.zeros(batch.grid, bool)
    for y, x in named_cells(batch.pairs[row][0]):
        mask[:, y, x] = True
    return mask


def doses(directions: xr.DataArray, scales: Sequence[float]) -> list[Dose]:
    """Return all arms: every layer, kind and scale, the scale the fastest."""
    layers, kinds = directions.layer.values.tolist(), directions.kind.values.tolist()
    return [Dose(layer, kind, scale) for layer in layers for kind in kinds for scale in scales]


def steered(
    batch: Batch,
    directions: xr.DataArray,
    scales: Sequence[float],
    steps: Sequence[int],
    at_objects: bool,
    is_judged: bool,
) -> xr.Dataset:
    """Run every couple clean and under every dose.

    Args:
        batch: of `rows_of`.
        directions: [kind, layer, step, channel].
        scales: of the doses.
        steps: at which the direction is added.
        at_objects: see `Dose.arm`.
        is_judged: whether both samples of the couples have a scorer.

    Returns:
        On [layer, kind, scale, pair, direction]: `leaning` to the other prompt's clean end; `outside`, the root mean square
        distance to the own clean end where the two ends agree, `inside` where they differ; with scorers `flip`, the
        answer is that of the other's clean run, and `kept`, it is that of the own one. On [pair, direction]: `target`, the share
        of places where the ends differ; with scorers `differ`, whether the clean answers do.
    """
    arms = [one.arm(batch, directions, steps, at_objects) for one in doses(directions, scales)]
    clean, ended = run_arms(batch, arms, progress="steering")
    ends = CleanEnds.of(batch, is_judged, clean)
    rows, targets = ends.receivers, target_of(ends)
    shape = directions.sizes["layer"], directions.sizes["kind"], len(scales)
    dims = ("layer", "kind", "scale", *DIMS)

    def by_arm(values: Sequence[Array]) -> Any:
        stacked = np.stack(values)
        return dims, stacked.reshape(*shape, *stacked.shape[1:])

    apart_by = [distances(ends, apart(latents)["video"], targets) for latents in ended]
    data = {
        "leaning": by_arm([by_direction(ends.leaning(latents[rows], rows)) for latents in ended]),
        "inside": by_arm([by_direction(inside) for inside, _ in apart_by]),
        "outside": by_arm([by_direction(outside) for _, outside in apart_by]),
        "target": (DIMS, by_direction(targets.mean((1, 2, 3)))),
    }
    if is_judged:
        answers = [answers_of(ends, apart(latents)["video"]) for latents in (clean, *ended)]
        own, other = (answers[0][[of(row) for row in rows]] for of in (itself, partner))
        data |= {"kept": by_arm([by_direction(one[rows] == own) for one in answers[1:]])}
        data |= {"flip": by_arm([by_direction(one[rows] == other) for one in answers[1:]])}
        data |= {"differ": (DIMS, by_direction(own != other))}
    coords = {"layer": directions.layer.values, "kind": directions.kind.values, "scale": list(scales)}
    return xr.Dataset(data, coords)


def answers_of(ends: CleanEnds, latents: Tensor) -> NDArray[np.object_]:
    """Return the answer that is read off the video of each row that is a receiver or its partner, [row]."""
    out = np.full(len(latents), "", object)
    for row in ends.receivers:
        sample = ends.batch.pairs[row][0]
        out[row] = sample.score(ends.batch.decode(latents[row : row + 1])[0]).answer
    return out


def target_of(ends: CleanEnds) -> NDArray[np.bool_]:
    """Return where the clean ends of a receiver and its partner differ, [receiver, frame, y, x]; none of the given frames."""
    rows = ends.receivers
    values = ends.latents[:, :, ends.given :].double().cpu().numpy()
    off = np.sqrt(((values[rows] - values[[partner(row) for row in rows]]) ** 2).sum(1))
    most = off.max((1, 2, 3), keepdims=True)
    found: NDArray[np.bool_] = (off > TARGET * most) & (most > 0)
    return found


def distances(ends: CleanEnds, latents: Tensor, targets: NDArray[np.bool_]) -> tuple[Array, Array]:
    """Return how far receivers end from their own clean ends, inside the target and outside of it: [receiver] each.

    NaN where a target has no places, or nothing is outside of it.
    """
    rows = ends.receivers
    off = (latents[rows] - ends.latents[rows])[:, :, ends.given :].double().square().mean(1).cpu().numpy()
    both = []
    for places in (targets, ~targets):
        count = places.sum((1, 2, 3))
        mean = np.where(places, off, 0).sum((1, 2, 3)) / np.maximum(count, 1)
        both.append(np.where(count > 0, np.sqrt(mean), np.nan))
    return both[0], both[1]


__all__ = ["Dose", "distances", "doses", "mask_of", "steered", "target_of"]
