"""Attribution patching: what a metric of the answer would gain if a clean run's state were patched in, at every place at once.

An exact patch costs a forward for every place. To first order all of them cost one backward pass (Nanda 2023, attribution
patching; Syed et al. arXiv 2310.10348): with h the state of the corrupt row at a place and m the metric,

    attribution = sum over channel of (h_clean - h_corrupt) * dm / dh_corrupt

Where m bends on the way from one state to the other, the line is not enough. `integrate=N` takes the mean of the gradient along
the straight line between both states of the place, by Gauss-Legendre quadrature of N nodes (Sundararajan et al. arXiv
1703.01365; for circuits, Hanna et al. arXiv 2403.17806). Either is an estimate, so `check=K` patches K places in truth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dit_lens.engine.adjoint import READ, Passage, Reading, Start, open_to_gradients
from dit_lens.engine.attribution_check import Drawn, check_places
from dit_lens.engine.attribution_table import table_of
from dit_lens.engine.taps import KeptStates, Key, Taps
from dit_lens.errors import PlanError
from dit_lens.plan.places import At, positions, whole_number
from dit_lens.plan.plan import Placed, Plan
from dit_lens.records import hidden

if TYPE_CHECKING:
    import xarray as xr

    from dit_lens.engine.batch import Batch
    from dit_lens.plan.binding import Binding
    from dit_lens.plan.plan import Entry

Values = dict[tuple[int, Key], np.ndarray]
"""By step and place: the estimates, [frame, y, x]."""


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
        check: places at which the estimate is compared with exact patches of single tokens, drawn by `seed`.
        seed: of that draw.
        by_blocks: whether a block's input alone is held for the backward pass, and the block runs again: less memory, a
            third more time.
        progress: name of a progress bar over the steps. Default: none.

    Returns:
        One variable a site, on [step, branch, layer, frame, y, x] (with `head` where a site has heads; sites outside of the
        blocks have no branch or layer): the estimate, summed over channel, in units of the metric. `metric_clean` and
        `metric_corrupt`: the metric of both rows, by step or at `until`. With `integrate`: `SITE_patched`, the exact gain where
        the state of all tokens of a place is patched, which the sum over tokens should meet (completeness). With `check`:
        `estimate` and `exact` on [check], with the coordinates of each place. Attributes say the definition, the options, the
        sources, `spearman`, and a `warning` where the estimate is not to be trusted.

    Raises:
        PlanError: a row, a site or a step is not there, the metric returns no number with a gradient, an edit sees several
            seeds or keeps something, or no gradient comes through the model.
    """
    options = {"integrate": integrate, "check": check, "seed": seed}
    task = Attribution.of(batch, metric, sites, clean, corrupt, place or At(), until, of, edits, by_blocks)
    counts = {name: _count(name, value) for name, value in options.items()}
    with open_to_gradients(batch):
        task.prepare(progress)
        estimate = task.integrate if counts["integrate"] else task.differentiate
        estimate(counts["integrate"], progress)
        drawn = check_places(task, counts["check"], counts["seed"]) if counts["check"] else None
    return table_of(task, counts, drawn)


@dataclass
class Attribution:
    """One request for attributions, settled, and what comes of it.

    Attributes:
        batch: whose rows they are.
        reading: the metric, and what it reads.
        sites: where states are read.
        place: the selection.
        until: step whose latents the metric reads; None for each step's own.
        clean: the row whose states are patched in.
        corrupt: the row that they are patched into.
        keys: by step, the places of the sites.
        estimates: by step and place, [frame, y, x].
        patched: by step and place, the exact gain of patching all of its tokens.
        metrics: of the clean and the corrupt row, by step.
    """

    batch: Batch
    reading: Reading
    sites: tuple[str, ...]
    place: At
    until: int | None
    clean: Passage
    corrupt: Passage
    keys: dict[int, list[Key]]

    def __post_init__(self) -> None:
        self.estimates: Values = {}
        self.patched: dict[tuple[int, Key], float] = {}
        self.metrics: dict[str, dict[int, float]] = {"clean": {}, "corrupt": {}}
        self._starts: dict[str, dict[int, Start]] = {}

    @classmethod
    def of(
        cls,
        batch: Batch,
        metric: Callable[[Tensor], Tensor],
        sites: Sequence[str],
        clean: Any,
        corrupt: Any,
        place: At,
        until: int | None,
        of: str,
        edits: Sequence[Iterable[Entry] | Entry] | None,
        by_blocks: bool,
    ) -> Attribution:
        """Settle a request, before anything runs.

        Raises:
            PlanError: it cannot be carried out.
        """
        if not callable(metric) or of not in READ:
            raise PlanError(f"metric={metric!r}, of={of!r}: give a function of one of {', '.join(READ)}.")
        sites = (sites,) if isinstance(sites, str) else tuple(sites)
        if not sites or len({*sites}) < len(sites):
            raise PlanError(f"sites={list(sites)}: name each site once, and at least one.")
        if place.site is not None:
            raise PlanError(f"place={place}: name the sites by sites=[...], and leave site= out of dl.at.")
        keys = _keys(batch, sites, place)
        if until is not None:
            (until,) = positions("until", ((until, until),), batch.steps)
            if until < max(keys):
                raise PlanError(
                    f"until={until}: the metric reads step {until}, and step {max(keys)}, which place={place} selects, comes "
                    "after it. Select steps up to there."
                )
        numbers = [_row(batch, name, row) for name, row in (("clean", clean), ("corrupt", corrupt))]
        if numbers[0] == numbers[1] and edits is None:
            raise PlanError(
                f"clean and corrupt are both row {numbers[0]}: nothing differs between them. Give two rows, or edits=[...]."
            )
        reading = Reading(metric, of)
        passages = [
            Passage(batch, number, placed, reading, by_blocks)
            for number, placed in zip(numbers, _edits(batch, edits), strict=True)
        ]
        return cls(batch, reading, sites, place, until, *passages, keys)

    @property
    def steps(self) -> list[int]:
        """The selected steps."""
        return sorted(self.keys)

    def read_at(self, step: int) -> int:
        """Return the step whose latents the metric reads, for places at a step."""
        return step if self.until is None else self.until

    def start(self, step: int) -> Start:
        """Return what a selected step of the corrupt row starts from."""
        return self._starts["corrupt"][step]

    def prepare(self, progress: str | None) -> None:
        """Go forward with both rows, and keep what the steps start from."""
        ends = {self.read_at(step) for step in self.steps}
        for name, passage in (("clean", self.clean), ("corrupt", self.corrupt)):
            keep = {*range(min(self.steps), max(ends) + 1)}
            self._starts[name] = passage.follow(0, passage.begin(), keep, [passage.row()])
        for step in ends:
            start = self._starts["clean"][step]
            self.metrics["clean"][step] = float(self.clean.metric(step, start, step, [self.clean.row()])[0])

    def states(self, step: int) -> dict[Key, Tensor]:
        """Return the clean row's states at a step, by place, after its edits."""
        kept = KeptStates()
        records = [self.bind(hidden, step, is_edit=False, site=site) for site in self.sites]
        row = self.clean.row(records=records, recorders=[kept])
        self.clean.step(step, self._starts["clean"][step], [row])
        return kept.states

    def bind(
        self, function: Any, step: int, *, is_edit: bool = True, site: str, key: Key | None = None
    ) -> Binding:
        """Place a function at a site at one step: everywhere that is selected, or at one place."""
        place = replace(self.place, site=site, step=((step, step),))
        if key is not None and key[2] is not None and key[1] is not None:
            place = replace(place, branch=(key[1],), layer=((key[2], key[2]),))
        return self.batch.bind(Placed(function, place), is_edit)

    # ---- estimates

    def differentiate(self, nodes: int, progress: str | None) -> None:
        """Take the gradient at the corrupt states, of all places of a step at once."""
        bar = tqdm(total=len(self.steps), desc=progress, disable=progress is None, leave=False)

        def taps_at(step: int) -> list[tuple[Taps, list[Binding]]]:
            if step not in self.keys:
                return [(Taps({}), [])]
            taps = Taps(self.states(step))
            return [(taps, [self.bind(taps.edit, step, site=site) for site in self.sites])]

        def listen(step: int, rows: Sequence[Taps]) -> None:
            for key in self.keys.get(step, ()):
                self.estimates[step, key] = _estimate(rows[0], key)
            bar.update(step in self.keys)

        with bar:
            if self.until is None:
                for step in self.steps:
                    values = self.corrupt.descend({step: self.start(step)}, taps_at, listen)
                    self.metrics["corrupt"][step] = float(values[0])
            else:
                starts = dict(self._starts["corrupt"])
                values = self.corrupt.descend(starts, taps_at, listen)
                self.metrics["corrupt"][self.until] = float(values[0])

    def integrate(self, nodes: int, progress: str | None) -> None:
        """Take the mean gradient along the line between both states, of each place by itself."""
        at, weights = np.polynomial.legendre.leggauss(nodes)
        shares = [*((at + 1) / 2), 1.0]
        for step in tqdm(self.steps, desc=progress, disable=progress is None, leave=False):
            states, until = self.states(step), self.read_at(step)
            if until not in self.metrics["corrupt"]:
                value = self.corrupt.metric(until, self.start(until), until, [self.corrupt.row()])
                self.metrics["corrupt"][until] = float(value[0])
            rows = [(key, n) for key in self.keys[step] for n in range(len(shares))]
            for begin in range(0, len(rows), self.batch.at_once):
                part = rows[begin : begin + self.batch.at_once]
                taps = [Taps({key: states[key]}, shares[n]) for key, n in part]
                values = self._along(step, until, taps, [key for key, _ in part])
                for (key, n), row, value in zip(part, taps, values, strict=True):
                    if n == nodes:
                        self.patched[step, key] = value - self.metrics["corrupt"][until]
                        continue
                    term = weights[n] / 2 * _estimate(row, key)
                    self.estimates[step, key] = self.estimates.get((step, key), 0) + term

    def _along(self, step: int, until: int, taps: Sequence[Taps], keys: Sequence[Key]) -> list[float]:
        """Differentiate rows whose states at a place each are moved; return their metrics."""
        bindings = [
            [self.bind(row.edit, step, site=key[0], key=key)] for row, key in zip(taps, keys, strict=True)
        ]
        rows = [self.corrupt.row(more) for more in bindings]
        start = self.start(step).repeated(len(rows))
        starts = self.corrupt.follow(step, start, {*range(step, until + 1)}, rows)

        def taps_at(at: int) -> list[tuple[Taps, list[Binding]]]:
            return list(zip(taps, bindings, strict=True)) if at == step else [(Taps({}), []) for _ in taps]

        return [float(v) for v in self.corrupt.descend(starts, taps_at, lambda at, rows: None)]


def _estimate(taps: Taps, key: Key) -> np.ndarray:
    """Return what came of a place, [frame, y, x]; zero where the metric does not depend on it."""
    if key in taps.products:
        return np.asarray(taps.products[key].cpu())
    return np.zeros(taps.targets[key].shape[:-1], np.float32)


def _keys(batch: Batch, sites: Sequence[str], place: At) -> dict[int, list[Key]]:
    """Return the places of the sites, by step.

    Raises:
        PlanError: a site, a step, a branch or a layer is not there, or a part of the grid is selected.
    """
    keys: dict[int, list[Key]] = {}
    for site in sites:
        binding = batch.bind(Placed(hidden, replace(place, site=site)), is_edit=False)
        for step in sorted(binding.steps):
            if (step, batch.expert(step)) in binding.served:
                keys.setdefault(step, []).extend((site, branch, layer) for branch, layer in binding.places)
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
        raise PlanError(f"edits of {len(edits)} rows: give two, those of the clean row and of the corrupt one.")
    bindings = [[batch.binding(edit) for edit in placed] for placed in lists]
    for binding in (binding for row in bindings for binding in row if binding.over_seeds):
        raise PlanError(f"{binding.placed} sees several seeds together, and attribution runs one row: leave it out.")
    return bindings


def _count(name: str, value: Any) -> int:
    number = whole_number(value)
    if number is None or number < 0:
        raise PlanError(f"{name}={value!r}: give a whole number, 0 or more.")
    return number


__all__ = ["Attribution", "Drawn", "attribute"]
