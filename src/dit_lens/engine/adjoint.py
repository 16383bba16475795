"""Gradients through denoising steps, back to any step before: an adjoint that holds what each step starts from, and no more.

The rows go forward without gradients; what each step starts from is held, one latent a step. Then, from the last step to the
first, each step runs again with gradients, is differentiated, and lets its graph go. So memory is that of one step, however many
there are (reverse-mode differentiation with one checkpoint a step: Griewank and Walther 2000, Chen et al. arXiv 1604.06174).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dit_lens.engine.rows import Row, Shared
from dit_lens.engine.taps import Taps, differs
from dit_lens.errors import PlanError
from dit_lens.families.latents import apart, together
from dit_lens.plan.binding import Binding

if TYPE_CHECKING:
    from dit_lens.engine.batch import Batch
    from dit_lens.engine.stepped import Stepped

READ = ("x0", "velocity")
"""What a metric may read of a step."""


@dataclass(frozen=True)
class MetricReading:
    """What is measured of a row at a step.

    Attributes:
        metric: (latents [channel, frame, y, x]) to a scalar tensor.
        of: which latents, one of `READ`: x0, or the velocity after guidance.
    """

    metric: Callable[[Tensor], Tensor]
    of: str

    def values(self, stepped: Stepped) -> Tensor:
        """Return the metric of every row, [row].

        Raises:
            PlanError: the metric returned no number, or one without a gradient where gradients are on.
        """
        latents = apart(getattr(stepped, self.of))["video"]
        return torch.stack([self._value(x.clone()) for x in latents])

    def _value(self, latents: Tensor) -> Tensor:
        value = self.metric(latents)
        what = f"The metric of {self.of} [channel, frame, y, x]"
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.is_floating_point():
            got = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise PlanError(
                f"{what} returned {got}: return a scalar tensor of floats, such as (x0 * weights).mean()."
            )
        if torch.is_grad_enabled() and latents.requires_grad and not value.requires_grad:
            raise PlanError(
                f"{what} returned a number without a gradient: compute it in torch from what it is given, without .detach(), "
                ".item(), numpy or torch.no_grad()."
            )
        if not math.isfinite(float(value.detach())):
            raise PlanError(f"{what} is {float(value.detach())}: return a finite number.")
        return value.reshape(())


@dataclass
class StepStart:
    """What a step starts from.

    Attributes:
        latents: x_s, [row, channel, frame, y, x].
        x0: of the step before; None where no edit takes it.
    """

    latents: Tensor
    x0: Tensor | None = None

    def tensors(self) -> list[Tensor]:
        """Return the tensors of all streams, in order."""
        return [x for part in (self.latents, self.x0) if part is not None for x in apart(part).values()]

    def open(self, gradient: bool) -> tuple[StepStart, list[Tensor]]:
        """Return a start of a graph of its own, and the tensors whose gradients it leads to.

        Args:
            gradient: whether it takes part in the graph.
        """
        streams = [
            {s: x.detach().requires_grad_(gradient) for s, x in apart(part).items()}
            for part in (self.latents, self.x0)
            if part is not None
        ]
        leaves = [x for part in streams for x in part.values()] if gradient else []
        return StepStart(*(together(part) for part in streams)), leaves

    def elsewhere(self) -> StepStart:
        """Return another start, which no model takes for this one."""
        streams = []
        for part in (self.latents, self.x0):
            if part is not None:
                random = torch.Generator().manual_seed(0)
                noise = {s: torch.randn(x.shape, generator=random).to(x) for s, x in apart(part).items()}
                streams.append({s: x.detach() + noise[s] for s, x in apart(part).items()})
        return StepStart(*(together(part) for part in streams))

    def repeated(self, count: int) -> StepStart:
        """Return a start of several rows that are alike, from one of one row."""
        rows = [0] * count
        return StepStart(self.latents[rows], None if self.x0 is None else self.x0[rows])


class Passage:
    """One pair of a batch on its way through the steps, alone or as several rows that differ in what is placed on them.

    Args:
        batch: whose pair it is.
        pair: its number.
        edits: what is placed on every row.
        reading: what is measured.
        by_blocks: whether blocks run again in the backward pass.
    """

    def __init__(
        self, batch: Batch, pair: int, edits: Sequence[Binding], reading: MetricReading, by_blocks: bool
    ) -> None:
        self.batch, self.pair, self.edits, self.reading = batch, pair, edits, reading
        self.by_blocks = by_blocks
        self._takes_x0 = any(edit.reads_x0 for edit in edits)

    def begin(self) -> StepStart:
        """Return what step 0 starts from."""
        return StepStart(self.batch.noise[[self.pair]])

    def row(self, more: Iterable[Binding] = ()) -> Row:
        """Return a row with the edits of the pair, and with more that come after them."""
        return Row(self.batch.pairs[self.pair][1], [*self.edits, *more])

    def step(self, step: int, start: StepStart, rows: Sequence[Row]) -> Stepped:
        """Take a step without gradients."""
        pairs, shared = [self.pair] * len(rows), self._shared(rows)
        return self.batch.advance(step, start.latents, pairs, rows, (), shared, start.x0)

    def after(self, stepped: Stepped) -> StepStart:
        """Return what the next step starts from."""
        return StepStart(stepped.latents, stepped.x0 if self._takes_x0 else None)

    def follow(
        self, first: int, start: StepStart, keep: Collection[int], rows: Sequence[Row]
    ) -> dict[int, StepStart]:
        """Go forward without gradients; return what some steps start from.

        Args:
            first: step to begin with.
            start: what it starts from.
            keep: steps whose starts are returned.
            rows: in the first step; in those after it they have the edits of the pair alone.
        """
        starts = {}
        for step in range(first, max(keep) + 1):
            if step in keep:
                starts[step] = start
            if step < max(keep):
                start = self.after(self.step(step, start, rows))
                rows = [self.row() for _ in rows]
        return starts

    def metric(self, first: int, start: StepStart, until: int, rows: Sequence[Row]) -> Tensor:
        """Return the metric of every row at a step, [row], without gradients; see `follow`."""
        last = self.follow(first, start, {until}, rows)[until]
        rows = rows if until == first else [self.row() for _ in rows]
        stepped = self.step(until, last, rows)
        with torch.no_grad():
            return self.reading.values(stepped)

    @torch.enable_grad()
    def descend(
        self,
        starts: dict[int, StepStart],
        taps_at: Callable[[int], Sequence[tuple[Taps, Sequence[Binding]]]],
        listen: Callable[[int, Sequence[Taps]], None],
    ) -> Tensor:
        """Go back from the last of some steps to the first, with the gradient of the metric at the last.

        Args:
            starts: what each step starts from, without a gap; each is let go when its step is done.
            taps_at: step to the taps of each row, and how they are placed.
            listen: told of every step, and the taps of its rows, when their gradients have come.

        Returns:
            The metric at the last step, [row].
        """
        first, last = min(starts), max(starts)
        values, cotangents = torch.zeros(0), list[Tensor]()
        for step in range(last, first - 1, -1):
            placed = taps_at(step)
            taps, rows = [row for row, _ in placed], [self.row(more) for _, more in placed]
            moved = any(tap.share is not None for tap in taps)  # a moved state depends on nothing before it
            start, leaves = starts.pop(step).open(gradient=step > first or not moved)
            stepped = self._step_open(step, start, taps, rows, follows=bool(leaves))
            if step == last:
                values = self.reading.values(stepped)
                targets, cotangents = [values.sum()], [torch.ones_like(values.sum())]
            else:
                targets = self.after(stepped).tensors()
            cotangents = _pull(targets, cotangents, leaves, [leaf for tap in taps for leaf in tap.leaves])
            del stepped, targets, leaves  # the graph, before the next one
            for tap in taps:
                tap.leaves.clear()
            listen(step, taps)
        return values.detach()

    def _step_open(
        self, step: int, start: StepStart, taps: Sequence[Taps], rows: Sequence[Row], follows: bool
    ) -> Stepped:
        """Take a step with gradients.

        Args:
            step: which.
            start: what it starts from.
            taps: of each row.
            rows: the trajectories.
            follows: whether the start has a gradient; else moved states have.

        Raises:
            PlanError: no gradient comes through the model, or a part of it.
        """
        for tap in taps:
            tap.listens, tap.follows = True, follows
        try:
            stepped = self.batch.advance_with_gradients(
                step,
                start.latents,
                [self.pair] * len(rows),
                rows,
                self._shared(rows),
                start.x0,
                self.by_blocks,
            )
        finally:
            for tap in taps:
                tap.listens = False  # a block that runs again in the backward pass has them listen no more
        if any(tap.cut_off for tap in taps) or not apart(stepped.velocity)["video"].requires_grad:
            self._refuse_cut_off(step, start, taps, rows, stepped)
        return stepped

    def _refuse_cut_off(
        self, step: int, start: StepStart, taps: Sequence[Taps], rows: Sequence[Row], stepped: Stepped
    ) -> None:
        """Run a step again from elsewhere: what has no gradient may not follow that.

        Raises:
            PlanError: it does.
        """
        shares = [tap.share for tap in taps]
        try:
            for tap in taps:
                tap.compares, tap.share = True, None if tap.share is None else tap.share / 2
            moved = any(share is not None for share in shares)
            elsewhere = start if moved else start.elsewhere()
            velocity = apart(self.step(step, elsewhere, rows).velocity)["video"]
        finally:
            for tap, share in zip(taps, shares, strict=True):
                tap.compares, tap.share = False, share
                tap.cut_off.clear()
        before = apart(stepped.velocity)["video"]
        if not before.requires_grad and differs(velocity, before):
            raise PlanError(
                f"step {step}: no gradient comes out of the model, though its velocity follows what stands there: it ends "
                "in .detach(), or computes under torch.no_grad or in inference mode."
            )

    def _shared(self, rows: Sequence[Row]) -> Shared:
        """Return the functions of the user's, each of which runs several times: they may keep nothing."""
        return Shared((row.placed for row in rows), least=1)


def _pull(
    targets: Sequence[Tensor],
    cotangents: Sequence[Tensor],
    leaves: Sequence[Tensor],
    more: Sequence[Tensor],
) -> list[Tensor]:
    """Return the gradients at leaves of a graph, zero where nothing comes; what taps listen to, they hear meanwhile.

    Args:
        targets: what is differentiated.
        cotangents: gradients of the metric at the targets.
        leaves: whose gradients are returned.
        more: other leaves to which the backward pass goes.
    """
    open_targets = [(x, g) for x, g in zip(targets, cotangents, strict=True) if x.requires_grad]
    if not open_targets:  # the metric does not follow what stands there
        return [torch.zeros_like(leaf) for leaf in leaves]
    outputs, gradients = zip(*open_targets, strict=True)
    found = torch.autograd.grad(outputs, [*leaves, *more], gradients, allow_unused=True)
    return [
        torch.zeros_like(leaf) if gradient is None else gradient
        for leaf, gradient in zip(leaves, found, strict=False)
    ]


__all__ = ["READ", "MetricReading", "Passage", "StepStart"]
