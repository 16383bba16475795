"""An attribution that is settled: both rows go forward, and the gradients come back, at every place that is selected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor
from tqdm import tqdm

from dit_lens.engine.adjoint import MetricReading, Passage, StepStart
from dit_lens.engine.taps import KeptStates, Key, Taps
from dit_lens.errors import PlanError
from dit_lens.plan.places import At
from dit_lens.plan.plan import Placed

if TYPE_CHECKING:
    from dit_lens.engine.batch import Batch
    from dit_lens.plan.binding import Binding

Values = dict[tuple[int, Key], np.ndarray]
"""By step and place: the estimates, [frame, y, x]."""


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
    reading: MetricReading
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
        self._starts: dict[str, dict[int, StepStart]] = {}

    @property
    def steps(self) -> list[int]:
        """The selected steps."""
        return sorted(self.keys)

    def read_at(self, step: int) -> int:
        """Return the step whose latents the metric reads, for places at a step."""
        return step if self.until is None else self.until

    def start(self, step: int) -> StepStart:
        """Return what a selected step of the corrupt row starts from."""
        return self._starts["corrupt"][step]

    def prepare(self) -> None:
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
        row = self.clean.row([self.bind(kept.edit, step, site=site) for site in self.sites])
        self.clean.step(step, self._starts["clean"][step], [row])
        return kept.states

    def bind(self, edit: Any, step: int, *, site: str, key: Key | None = None) -> Binding:
        """Place an edit at a site at one step: everywhere that is selected, or at one place."""
        place = replace(self.place, site=site, step=((step, step),))
        if key is not None and key[2] is not None and key[1] is not None:
            place = replace(place, branch=(key[1],), layer=((key[2], key[2]),))
        if key is not None and key[3] is not None:
            place = replace(place, head=((key[3], key[3]),))
        return self.batch.bind(Placed(edit, place))

    # ---- estimates

    def differentiate(self, progress: str | None) -> None:
        """Take the gradient at the corrupt states, of all places of a step at once."""
        bar = tqdm(total=len(self.steps), desc=progress, disable=progress is None, leave=False)

        def taps_at(step: int) -> list[tuple[Taps, list[Binding]]]:
            if step not in self.keys:
                return [(Taps({}), [])]
            taps = Taps(self.states(step))
            return [(taps, [self.bind(taps.edit, step, site=site) for site in self.sites])]

        def listen(step: int, rows: Sequence[Taps]) -> None:
            for key in self.keys.get(step, ()):
                self.estimates[step, key] = _estimate(rows[0], step, key)
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
                unpatched = self.corrupt.metric(until, self.start(until), until, [self.corrupt.row()])
                self.metrics["corrupt"][until] = float(unpatched[0])
            rows = [(key, n) for key in self.keys[step] for n in range(len(shares))]
            for begin in range(0, len(rows), self.batch.at_once):
                part = rows[begin : begin + self.batch.at_once]
                taps = [Taps({key: states[key]}, shares[n]) for key, n in part]
                values = self._along(step, until, taps, [key for key, _ in part])
                for (key, n), row, value in zip(part, taps, values, strict=True):
                    if n == nodes:
                        self.patched[step, key] = value - self.metrics["corrupt"][until]
                        continue
                    term = weights[n] / 2 * _estimate(row, step, key)
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


def _estimate(taps: Taps, step: int, key: Key) -> np.ndarray:
    """Return what came of a place, [frame, y, x]; zero where the metric does not depend on it.

    Raises:
        PlanError: it is not finite.
    """
    if key not in taps.products:
        return np.zeros(taps.targets[key].shape[:-1], np.float32)
    found = np.asarray(taps.products[key].cpu())
    if not np.isfinite(found).all():
        site, branch, layer, _ = key
        raise PlanError(
            f"The gradient at step={step}, {site}, branch={branch}, layer={layer} is not finite. The metric has no derivative at "
            "this row's own latents (a distance of 0, a logarithm of 0), or the model's number type is too narrow for it."
        )
    return found


__all__ = ["Attribution"]
