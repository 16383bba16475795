"""Swaps: while a run is made, values at one site of one layer are replaced by those that another run holds at the same step.

Donors and receivers take every step together, the donors first, so nothing is stored over steps. A couple (A, B) and a noise
seed are four rows of a batch: A, B, and both again from other noise. A and B receive; all four are run clean beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dit_lens import controls
from dit_lens.engine.batch import Batch
from dit_lens.engine.stepped import Stepped
from dit_lens.engine.sweep import Arm, Now, run_arms
from dit_lens.engine.visitor import Place
from dit_lens.errors import TaskError
from dit_lens.experiments.couples import Couple
from dit_lens.plan.functions import options
from dit_lens.plan.places import Spot
from dit_lens.plan.plan import Placed
from dit_lens.plan.selectors import at
from dit_lens.tasks.pairs import Pair

Held = dict[Place, Tensor]
"""What the clean rows hold at the running step, by (site, branch, layer): [row, frame, y, x, channel]."""

BEFORE, AFTER, UPDATE = "block_in", "block", "update"
"""The state before a block, the state after it, and the difference: what the block adds."""
WHERE = ("whole", "thirds", "sigma", "step")
"""Where along the steps: in all of them, in thirds of them, in thirds of the noise level, in one."""
THIRDS = tuple(f"{name} third of the steps" for name in ("first", "middle", "last"))
LEVELS = tuple(f"{name} third of the noise level" for name in ("upper", "middle", "lower"))
BRANCHES = ("all", "cond")
"""On all branches of guidance, or on the conditional one alone."""
OTHER_SEED = 500_009
"""Added to a noise seed for the control."""
OWN, OTHER_NOISE, PLACEBO = "own states", "same sample, other seed", "placebo"
ANOTHER = "another layer's states"
ROWS = 4
"""Rows of a couple and a noise seed."""


@dataclass(frozen=True)
class Swap:
    """One arm.

    Attributes:
        name: of the arm.
        source: row to the row whose values it gets.
        layer: that the values come from.
        steps: at which they are put in.
        branch: of guidance, on which they are. None for all.
        is_placebo: whether a change of that size in a random direction is put in instead.
        part: what of the value alone is swapped: ("head", 3), ("frame", 1), ... None for all of it.
    """

    name: str
    source: Callable[[int], int]
    layer: int
    steps: tuple[int, ...]
    branch: str | None = None
    is_placebo: bool = False
    part: tuple[str, int] | None = None


def rows_of(pairs: Sequence[Pair]) -> list[Pair]:
    """Return the rows of couples and noise seeds: A, B, and both from other noise."""
    return [
        (sample, seed + extra)
        for couple, seed in pairs
        for extra in (0, OTHER_SEED)
        for sample in _both(couple)
    ]


def _both(couple: Any) -> Sequence[Any]:
    assert isinstance(couple, Couple)
    return couple.both


def receives(row: int) -> bool:
    """Say whether a row is a receiver."""
    return row % ROWS < 2


def partner(row: int) -> int:
    """Return the row of the other sample of the couple, from the same noise."""
    return row ^ 1


def itself(row: int) -> int:
    """Return the row."""
    return row


def other_noise(row: int) -> int:
    """Return the row of the same sample from other noise."""
    return row + 2


def names_in(text: str, known: Sequence[str], option: str) -> list[str]:
    """Read a list of names of a command line, such as "block,ffn".

    Raises:
        TaskError: one is unknown, or none is there.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        wrong = f"{', '.join(unknown)} is none of" if names else "give at least one of"
        raise TaskError(f"--{option} {text}: {wrong} {', '.join(known)}.")
    return list(dict.fromkeys(names))


def sites_of(text: str, sites: Sequence[str]) -> list[str]:
    """Read the sites of a command line.

    Args:
        text: such as "block,ffn".
        sites: that the model has; `update` is had from those before and after a block.

    Raises:
        TaskError: the model has no such site; the error names those that it has.
    """
    known = [*sites, *([UPDATE] if {BEFORE, AFTER} <= set(sites) else [])]
    return names_in(text, known, "sites")


def places_of(
    where: Sequence[str], map_steps: Sequence[int], sigmas: Sequence[float]
) -> dict[str, tuple[int, ...]]:
    """Return the steps of every place along the steps, by its name; a third in which no step is has none.

    Args:
        where: out of `WHERE`.
        map_steps: those that stand alone.
        sigmas: noise level of each step. A third of the noise level is a third of the way from the first one to 0.
    """
    steps = np.arange(len(sigmas))
    third = np.clip(np.floor(3 * (1 - np.array(sigmas) / sigmas[0]) + 1e-6), 0, 2)
    known = {
        "whole": {"all steps": steps},
        "thirds": dict(zip(THIRDS, np.array_split(steps, 3), strict=True)),
        "sigma": {name: steps[third == n] for n, name in enumerate(LEVELS)},
        "step": {f"step {step}": np.array([step]) for step in map_steps},
    }
    chosen = {name: part for kind in WHERE if kind in where for name, part in known[kind].items()}
    return {name: tuple(part.tolist()) for name, part in chosen.items() if len(part)}


def swaps_of(
    layer: int, others: Sequence[int], places: dict[str, tuple[int, ...]], branches: Sequence[str | None]
) -> list[Swap]:
    """Return the arms of one layer: the donor's values at every place and branch, then the controls at the first.

    Args:
        layer: that is swapped.
        others: layers of the control with another layer's values, one for each order.
        places: steps by name; the first is the controls'.
        branches: on which the donor's values are put in, each alone; None for all together.
    """
    arms = [
        Swap(arm_name(place, branch), partner, layer, steps, branch)
        for place, steps in places.items()
        for branch in branches
    ]
    steps, branch = arms[0].steps, arms[0].branch
    return [
        *arms,
        Swap(OTHER_NOISE, other_noise, layer, steps, branch),
        Swap(OWN, itself, layer, steps, branch),
        Swap(PLACEBO, partner, layer, steps, branch, is_placebo=True),
        *(Swap(f"{ANOTHER}, order {n}", partner, other, steps, branch) for n, other in enumerate(others)),
    ]


def arm_name(place: str, branch: str | None) -> str:
    """Return the name of the arm with the donor's values at a place along the steps, on a branch or on all."""
    if place == "all steps":
        return "all branches" if branch is None else "conditional branch"
    return place if branch is None else f"{place}, conditional branch"


def derangements(layers: Sequence[int], count: int, seed: int) -> list[list[int]]:
    """Draw different orders of the layers in which no layer keeps its place: `count` of them, or all that exist."""
    rng, orders = np.random.default_rng(seed), []
    for _ in range(1000 * count if len(layers) > 1 else 0):
        order = rng.permutation(layers).tolist()
        if order not in orders and all(a != b for a, b in zip(order, layers, strict=True)):
            orders.append(order)
        if len(orders) == count:
            break
    return orders


# ---- running


@options
def donated(h: Tensor, spot: Spot, *, held: Held, row: int, site: str, layer: int) -> Tensor:
    """Replace by what a row holds at the same step, branch and site; of one head by that of the head."""
    value = held[site, str(spot.branch), layer][row]
    if spot.head is None:
        return value
    return value.unflatten(-1, (-1, h.shape[-1]))[..., spot.head, :]


@options
def remembered(h: Tensor, spot: Spot, *, before: dict[str, Tensor]) -> Tensor:
    """Keep a row's own state before the block, until the block is over."""
    before[str(spot.branch)] = h
    return h


@options
def donated_update(
    h: Tensor, spot: Spot, *, held: Held, row: int, layer: int, before: dict[str, Tensor]
) -> Tensor:
    """Replace what the block added by what it added in a row: the own state before, plus that row's difference.

    Summed in twice the bits, so that a row's own difference gives its own state again.
    """
    branch = str(spot.branch)
    wide = torch.float64 if h.dtype == torch.float32 else torch.float32
    added = held[AFTER, branch, layer][row].to(wide) - held[BEFORE, branch, layer][row].to(wide)
    return (before.pop(branch).to(wide) + added).to(h.dtype)


def arm_of(swap: Swap, site: str, layer: int, held: Held) -> Arm:
    """Return a swap as an arm: the edits of every receiver."""
    where: dict[str, Any] = {"layer": layer, "step": list(swap.steps), "branch": swap.branch}
    where |= {} if swap.part is None else {swap.part[0]: swap.part[1]}

    def edits(row: int) -> list[Placed]:
        if not receives(row):
            return []
        before: dict[str, Tensor] = {}  # of this row alone
        given = {"held": held, "row": swap.source(row), "layer": swap.layer}
        is_update = site == UPDATE
        put = donated_update(**given, before=before) if is_update else donated(**given, site=site)
        put = controls.placebo(put) if swap.is_placebo else put
        kept = [Placed(remembered(before=before), at(site=BEFORE, **where))] if is_update else []
        return [*kept, Placed(put, at(site=AFTER if is_update else site, **where))]

    return edits


def run_swaps(
    batch: Batch,
    site: str,
    layer: int,
    swaps: Sequence[Swap],
    look: Callable[[Now], None] | None = None,
    watch_clean: Callable[[int, Stepped], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the arms of one site of one layer.

    Of states, one step of this layer, and of those that the controls draw, is held at a time, for the clean rows.

    Args:
        batch: of `rows_of`.
        site: of the model, or `update`.
        layer: that is swapped.
        swaps: its arms.
        look: called after every forward of edited rows.
        watch_clean: called at every step with the clean rows, before an edited row takes it.

    Returns:
        The last latents of the clean rows, [row, channel, frame, y, x], and of the arms, [arm, row, ...].
    """
    held: Held = {}

    def hold(step: int, clean: Stepped) -> None:
        held.update(clean.states)
        if watch_clean is not None:
            watch_clean(step, clean)

    ends = (BEFORE, AFTER) if site == UPDATE else (site,)
    layers = sorted({swap.layer for swap in swaps})
    watch = [(end, branch, n) for end in ends for branch in batch.layout.branches for n in layers]
    arms = [arm_of(swap, site, layer, held) for swap in swaps]
    try:
        return run_arms(batch, arms, watch, look, f"swap {site}, layer {layer}", clean_first=hold)
    finally:
        held.clear()  # the batch knows the edits as long as it lives


def branches_of(batch: Batch, text: str) -> list[str | None]:
    """Return the branches of a command line, None for all of them; where there is one alone, it is all."""
    cond, *more = batch.layout.branches
    chosen = names_in(text, BRANCHES, "branches") if more else ["all"]
    return [None if name == "all" else cond for name in chosen]
