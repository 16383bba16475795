"""Attribution patching: what a metric of the answer would gain if a clean run's state were patched in, at every place at once.

An exact patch costs a forward for every place. To first order all of them cost one backward pass (Nanda 2023, attribution
patching; Syed et al. arXiv 2310.10348): with h the state of the corrupt row at a place and m the metric,

    attribution = sum over channel of (h_clean - h_corrupt) * dm / dh_corrupt

Where m bends on the way from one state to the other, the line is not enough. `integrate=N` takes the mean of the gradient along
the straight line between both states of the place, by Gauss-Legendre quadrature of N nodes (Sundararajan et al. arXiv
1703.01365; for circuits, Hanna et al. arXiv 2403.17806). Either is an estimate, so `check=K` patches K
tokens, and K whole states, in truth: the line often holds for one token and not for all of them together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from dit_lens.engine.adjoint import READ, MetricReading, Passage
from dit_lens.engine.attribution_check import check_places
from dit_lens.engine.attribution_table import table_of
from dit_lens.engine.attribution_task import Attribution
from dit_lens.engine.open_model import open_to_gradients
from dit_lens.engine.taps import KeptStates, Key
from dit_lens.errors import PlanError
from dit_lens.plan.places import At, positions, whole_number
from dit_lens.plan.plan import Placed, Plan

if TYPE_CHECKING:
    import xarray as xr

    from dit_lens.engine.batch import Batch
    from dit_lens.plan.binding import Binding
    from dit_lens.plan.plan import Entry


def attribute(
    batch: Batch,
    metric: Callable[[Tensor], Tensor],
    sites: Sequence[str] = ("block",),
    *,
    clean: Any = 0,
    corrupt: Any = 1,
    place: At | None = None,
    until: int | None = None,
    of: str = "x0",
    edits: Sequence[Iterable[Entry] | Entry] | None = None,
    integrate: int = 0,
    check: int = 0,
    seed: int = 0,
    by_blocks: bool = False,
    progress: str | None = None,
) -> xr.Dataset:
    """Estimate what a metric gains, at every place, if the clean row's state is patched into the corrupt row.

    Args:
        batch: whose rows they are.
        metric: x0 [channel, frame, y, x] of the corrupt row's video to a scalar tensor that carries its gradient.
        sites: where the states are read; `latents`, `velocity` and `x0` too.
        clean: row whose states are patched in: its number in the batch, or its (sample, seed).
        corrupt: row that they are patched into.
        place: which steps, branches, layers, of which expert or stream. Default: all, of the video. States of all selected
            layers and branches of one step are held at once.
        until: step whose x0 the metric reads, through all steps between; -1 is the last. Default: each step's own.
        of: what of the step the metric reads: "x0", or "velocity" after guidance.
        edits: what is placed on the clean row and on the corrupt row, as in `Batch.step`. Default: the batch's own.
        integrate: nodes of the integral between the two states. Default: 0, the gradient at the corrupt state. It costs
            `integrate` + 1 forwards for every place.
        check: how many single tokens, and how many whole states, are patched in truth, at places drawn by `seed`.
        seed: of that draw.
        by_blocks: whether a block's input alone is held for the backward pass, and the block runs again: less memory, a
            third more time.
        progress: name of a progress bar over the steps. Default: none.

    Returns:
        One variable a site, on [step, branch, layer, frame, y, x] (with `head` where a site has heads; sites outside of the
        blocks have no branch or layer): the estimate, summed over channel, in units of the metric. `metric_clean` and
        `metric_corrupt`: the metric of both rows, by step or at `until`. With `integrate`: `SITE_patched`, the exact gain where
        the state of all tokens of a place is patched, which the sum over tokens should meet (completeness). With `check`:
        `estimate` and `exact` of single tokens on [check], `estimate_whole` and `exact_whole` of states of all tokens on
        [check_whole], with the coordinates of each place. Attributes say the definition, the options, the sources, of
        both checks the rank correlation (`spearman`, `spearman_whole`) and the size of the estimates in units of the exact gains
        (`slope`, `slope_whole`), and a `warning` where the estimate is not to be trusted.

    Raises:
        PlanError: a row, a site or a step is not there, the metric returns no number with a gradient, an edit sees several
            seeds or keeps something, or no gradient comes through the model.
    """
    options = {"integrate": integrate, "check": check, "seed": seed}
    rows, selected = (clean, corrupt), At() if place is None else place
    task = _settled(batch, MetricReading(metric, of), sites, rows, selected, until, edits, by_blocks)
    counts = {name: _count(name, value) for name, value in options.items()}
    with open_to_gradients(batch):
        task.prepare()
        if counts["integrate"]:
            task.integrate(counts["integrate"], progress)
        else:
            task.differentiate(progress)
        drawn = check_places(task, counts["check"], counts["seed"]) if counts["check"] else {}
    return table_of(task, counts, drawn)


def _settled(
    batch: Batch,
    reading: MetricReading,
    sites: Sequence[str],
    rows: tuple[Any, Any],
    place: At,
    until: int | None,
    edits: Sequence[Iterable[Entry] | Entry] | None,
    by_blocks: bool,
) -> Attribution:
    """Settle a request, before anything runs.

    Raises:
        PlanError: it cannot be carried out.
    """
    if not callable(reading.metric) or reading.of not in READ:
        raise PlanError(
            f"metric={reading.metric!r}, of={reading.of!r}: give a function of one of {', '.join(READ)}."
        )
    sites = (sites,) if isinstance(sites, str) else tuple(sites)
    if not sites or len({*sites}) < len(sites):
        raise PlanError(f"sites={list(sites)}: name each site once, and at least one.")
    if place.site is not None:
        raise PlanError(f"place={place}: name the sites by sites=[...], and leave site= out of dl.at.")
    if place.region:
        raise PlanError(
            f"place={place}: every token is attributed; select {', '.join(place.region)} of the result."
        )
    keys = _keys(batch, sites, place)
    if until is not None:
        if whole_number(until) is None:
            raise PlanError(f"until={until!r}: give the number of a step, -1 for the last.")
        (until,) = positions("until", ((until, until),), batch.steps)
        if until < max(keys):
            raise PlanError(
                f"until={until}: the metric reads step {until}, and step {max(keys)}, which place={place} selects, comes "
                "after it. Select steps up to there."
            )
    numbers = [_row(batch, name, row) for name, row in zip(("clean", "corrupt"), rows, strict=True)]
    if numbers[0] == numbers[1] and edits is None:
        raise PlanError(
            f"clean and corrupt are both row {numbers[0]}: nothing differs between them. Give two rows, or edits=[...]."
        )
    clean_row, corrupt_row = (
        Passage(batch, number, placed, reading, by_blocks)
        for number, placed in zip(numbers, _edits(batch, edits), strict=True)
    )
    return Attribution(batch, reading, sites, place, until, clean_row, corrupt_row, keys)


def _keys(batch: Batch, sites: Sequence[str], place: At) -> dict[int, list[Key]]:
    """Return the places of the sites, by step.

    Raises:
        PlanError: a site, a step, a branch or a layer is not there.
    """
    keys: dict[int, list[Key]] = {}
    for site in sites:
        binding = batch.bind(Placed(KeptStates().edit, replace(place, site=site)))
        for step in sorted(binding.steps):
            if (step, batch.expert(step)) in binding.served:
                heads = binding.heads if binding.by_head else (None,)
                places = [(site, branch, layer, head) for branch, layer in binding.places for head in heads]
                keys.setdefault(step, []).extend(places)
    return keys


def _row(batch: Batch, name: str, row: Any) -> int:
    """Return the number of a row.

    Raises:
        PlanError: the batch has no such row.
    """
    number = whole_number(row)
    if number is None and isinstance(row, tuple | list) and len(row) == 2:
        found = [n for n, (sample, seed) in enumerate(batch.pairs) if sample is row[0] and seed == row[1]]
        number = found[0] if found else None
    if number is None or not 0 <= number < len(batch.pairs):
        raise PlanError(
            f"{name}={row!r}: give the number of a row of this batch, 0 to {len(batch.pairs) - 1}, or its (sample, seed)."
        )
    return number


def _edits(batch: Batch, edits: Sequence[Iterable[Entry] | Entry] | None) -> list[list[Binding]]:
    """Return what is placed on the clean and the corrupt row.

    Raises:
        PlanError: it is not a list for each, or an edit sees several seeds.
    """
    if edits is None:
        lists = [batch.requests[0].plan.edits] * 2
    elif len(edits) == 2:
        lists = [Plan.of((), entries).edits for entries in edits]
    else:
        raise PlanError(
            f"edits of {len(edits)} rows: give two, those of the clean row and of the corrupt one."
        )
    bindings = [[batch.bind(edit) for edit in placed] for placed in lists]
    for binding in (binding for row in bindings for binding in row if binding.over_seeds):
        raise PlanError(
            f"{binding.placed} sees several seeds together, and attribution runs one row: leave it out."
        )
    return bindings


def _count(name: str, value: Any) -> int:
    number = whole_number(value)
    if number is None or number < 0:
        raise PlanError(f"{name}={value!r}: give a whole number, 0 or more.")
    return number


__all__ = ["attribute"]
