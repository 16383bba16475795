"""One denoising step of the rows that go through the model together: edits, hooks, guidance, scheduler."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dit_lens.engine.session import apply_edit
from dit_lens.errors import CaptureError, PlanError
from dit_lens.families.family import submodule
from dit_lens.families.latents import apart, together
from dit_lens.plan.binding import Slot
from dit_lens.plan.places import Spot
from dit_lens.plan.plan import Placed

if TYPE_CHECKING:
    from dit_lens.engine.batch import Batch

Place = tuple[str, str, int]
"""Site, branch and layer."""

Where = tuple[str, str, int | None]
"""Site, stream and layer; none outside the blocks."""


@dataclass
class Stepped:
    """What one step gave.

    Attributes:
        velocity: after guidance, [row, channel, frame, y, x].
        x0: the clean latents that it stands for, likewise.
        latents: what the next step starts from, likewise.
        states: watched states by (site, branch, layer), [row, frame, y, x, channel].
    """

    velocity: Tensor
    x0: Tensor
    latents: Tensor
    states: dict[Place, Tensor] = field(default_factory=dict)

    # Each of these takes the other streams' rows along (see `streams.py`).

    def __getitem__(self, part: slice) -> Stepped:
        states = {place: value[part] for place, value in self.states.items()}
        return Stepped(self.velocity[part], self.x0[part], self.latents[part], states)

    @classmethod
    def cat(cls, parts: Sequence[Stepped]) -> Stepped:
        """Put the rows of several together."""
        if len(parts) == 1:
            return parts[0]
        velocity, x0, latents = (
            torch.cat([getattr(p, n) for p in parts]) for n in ("velocity", "x0", "latents")
        )
        states = {place: torch.cat([p.states[place] for p in parts]) for place in parts[0].states}
        return cls(velocity, x0, latents, states)


@dataclass
class Rows:
    """Rows of one step.

    Attributes:
        latents: what each starts from, [row, channel, frame, y, x].
        pairs: which of the batch's (sample, seed) each is.
        edits: what is placed on each.
        groups: rows of one number are seen together by edits over seeds.
    """

    latents: Tensor
    pairs: list[int]
    edits: list[list[Placed]]
    groups: list[int] | None

    def check(self, count: int) -> None:
        """Raise PlanError unless there is one of each for every row, out of `count` pairs."""
        sizes = {len(self.latents), len(self.pairs), len(self.edits), len(self.groups or self.pairs)}
        if len(sizes) > 1 or not all(0 <= pair < count for pair in self.pairs):
            raise PlanError(
                f"{len(self.latents)} latents, {len(self.pairs)} rows out of {count} pairs, {len(self.edits)} lists of "
                "edits: give one of each for every row."
            )

    def __getitem__(self, part: slice) -> Rows:
        groups = None if self.groups is None else self.groups[part]
        return Rows(self.latents[part], self.pairs[part], self.edits[part], groups)


Meeting = tuple[Placed, str | None, int | None]
"""Where rows are seen together: an edit over seeds, on a branch and layer."""


@dataclass
class Waiting:
    """What one row of a group that runs row by row knows of the others.

    Attributes:
        row: its number in the group.
        known: by meeting, what the edit came to for every row, as far as that is known.
        seen: by meeting, what each row brought; filled by the row.
    """

    row: int
    known: dict[Meeting, Tensor]
    seen: dict[Meeting, dict[int, Tensor]]

    def meet(self, meeting: Meeting, value: Tensor) -> Tensor:
        """Leave this row's value for the others, and take what is known of the outcome."""
        self.seen.setdefault(meeting, {})[self.row] = value
        return self.known[meeting][self.row] if meeting in self.known else value


class Forward:
    """One step of the rows that go through the model together.

    Args:
        batch: that the rows are of.
        step: which.
        rows: at most as many as fit.
        watch: states to keep.
        waiting: where the one row is of a group that runs row by row.
    """

    def __init__(
        self, batch: Batch, step: int, rows: Rows, watch: Sequence[Place], waiting: Waiting | None = None
    ) -> None:
        self.batch, self.step, self.rows, self.watch, self.waiting = batch, step, rows, watch, waiting
        self.visited: dict[str, set[Where]] = {branch: set() for branch in batch.layout.branches}
        self.expert = batch.expert(step)
        self.branch: str | None = None
        self.states: dict[Place, Tensor] = {}
        self.here: dict[Where, dict[int, list[Slot]]] = {}
        for row, placed in enumerate(rows.edits):
            for slot in map(batch.slot, placed):
                if step in slot.steps and self.expert in slot.experts:
                    for layer in slot.layers or (None,):
                        where = slot.placed.site, slot.placed.stream, layer
                        self.here.setdefault(where, {}).setdefault(row, []).append(slot)

    def run(self) -> Stepped:
        """Edit the latents, run the model on every branch, and let the scheduler step."""
        batch, branches = self.batch, self.batch.layout.branches
        given = apart(self.rows.latents)
        if set(given) != set(batch.layout.latents):
            raise PlanError(
                f"These latents are of {', '.join(given)}, the model has {', '.join(batch.layout.latents)}: start from rows of "
                "batch.noise, or of what batch.step gave."
            )
        start = {stream: self._on_latents("latents", stream, x) for stream, x in given.items()}
        batch.batching.load(batch.lens.pipe, self.expert)
        prepared = {branch: batch.keywords(branch, self.rows.pairs) for branch in branches}
        velocities = {branch: self._velocity(branch, start, prepared[branch]) for branch in branches}
        stepped = {
            stream: self._advance(
                stream,
                x,
                batch.guide({b: velocities[b][stream] for b in branches}, self.step),
                prepared[branches[0]],
            )
            for stream, x in start.items()
        }
        velocity, x0, after = (
            together({stream: part[n] for stream, part in stepped.items()}) for n in range(3)
        )
        return Stepped(velocity, x0, after, self.states)

    def _advance(
        self, stream: str, latents: Tensor, velocity: Tensor, given: Mapping[str, Any]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return velocity, x0 and what comes after, of one stream."""
        family, batching, scheduler = self.batch.lens.family, self.batch.batching, self.batch.scheduler
        velocity = batching.blend(scheduler, scheduler.timesteps[self.step], velocity, latents, given, stream)
        velocity = self._on_latents("velocity", stream, velocity)
        x0 = family.x0(scheduler, latents, velocity, self.step)
        new = self._on_latents("x0", stream, x0)
        if new is not x0:
            x0, velocity = new, family.velocity(scheduler, latents, new, self.step).to(velocity.dtype)
        after = batching.advance(scheduler, velocity, self.step, latents)
        return velocity, x0, batching.settle(after, given)

    def _velocity(
        self, branch: str, latents: Mapping[str, Tensor], given: Mapping[str, Any]
    ) -> Mapping[str, Tensor]:
        batch, self.branch = self.batch, branch
        call = {**given, "timestep": batch.scheduler.timesteps[self.step]}
        with self._hooked():
            velocity = batch.batching.model(batch.lens.pipe, batch.lens.dits[self.expert], call, latents)
        self._audit(branch)
        return velocity

    def _audit(self, branch: str) -> None:
        """Refuse a place on this branch that the model passed by."""
        missing = self._hung(branch) - self.visited[branch]
        if missing:
            raise CaptureError(
                f"step {self.step}, {branch}: nothing ran at (site, stream, layer) = {sorted(missing, key=str)}, where "
                "something is watched or edited. Leave the place out, or switch off what skips the module."
            )

    @contextmanager
    def _hooked(self) -> Iterator[None]:
        """Hook the modules where something is edited or watched, on this branch."""
        family, dit = self.batch.lens.family, self.batch.lens.dits[self.expert]
        assert self.branch is not None
        handles = []
        try:
            for site, stream, layer in self._hung(self.branch):
                where = family.sites[stream][site]
                module = submodule(family.block_list(dit)[layer], where.path)
                handles.append(where.attach(module, partial(self._visit, site, stream, layer)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hung(self, branch: str) -> set[tuple[str, str, int]]:
        """Return where something is watched or edited on a branch, by (site, stream, layer)."""
        watched = {(site, "video", layer) for site, on, layer in self.watch if on == branch}
        return watched | {(site, stream, layer) for site, stream, layer in self.here if layer is not None}

    def _visit(self, site: str, stream: str, layer: int, h: Tensor) -> Tensor:
        assert self.branch is not None
        self.visited[self.branch].add((site, stream, layer))
        grid = self.batch.grids[stream]
        prefix = h.shape[1] - math.prod(grid)
        if prefix < 0:
            raise CaptureError(
                f"{site} at layer {layer} holds {h.shape[1]} tokens, fewer than the grid {grid}."
            )
        value = h[:, prefix:].unflatten(1, grid)
        new = self._edited((site, stream, layer), value)
        if stream == "video" and (site, self.branch, layer) in self.watch:
            self.states[site, self.branch, layer] = new.clone()
        if new is value:
            return h
        return torch.cat([h[:, :prefix], new.flatten(1, 3)], 1)

    def _on_latents(self, site: str, stream: str, latents: Tensor) -> Tensor:
        self.branch = None
        value = latents.permute(0, 2, 3, 4, 1)
        new = self._edited((site, stream, None), value)
        return latents if new is value else new.permute(0, 4, 1, 2, 3).contiguous()

    def _edited(self, where: Where, value: Tensor) -> Tensor:
        """Apply what is placed here to values [row, frame, y, x, channel]; the very same where nothing is.

        Every row goes through its edits in their order; at an edit over seeds it waits for the rows of its group.
        """
        left = {
            row: deque(self._selected(slots, where, row)) for row, slots in self.here.get(where, {}).items()
        }
        out = value.clone() if any(left.values()) else value
        while any(left.values()):
            meetings: dict[tuple[int, Placed], list[int]] = {}
            for row, slots in left.items():
                while slots and not is_over_seeds(slots[0].placed):
                    out[row] = apply_edit(slots.popleft().placed, self._spot(where, row), out[row])
                if slots:
                    meetings.setdefault((self._group(row, slots[0]), slots.popleft().placed), []).append(row)
            for (_, placed), met in meetings.items():
                out[met] = self._over_seeds(placed, self._spot(where, met[0]), out[met])
        return out

    def _selected(self, slots: Sequence[Slot], where: Where, row: int) -> list[Slot]:
        spot = self._spot(where, row)
        return [slot for slot in slots if slot.selects(spot)]

    def _group(self, row: int, slot: Slot) -> int:
        if self.rows.groups is None:
            raise PlanError(
                f"{slot.placed} sees the rows of several seeds together: say which, with groups=."
            )
        return self.rows.groups[row]

    def _over_seeds(self, placed: Placed, spot: Spot, together: Tensor) -> Tensor:
        if self.waiting is None:
            return apply_edit(placed, spot, together)
        return self.waiting.meet((placed, spot.branch, spot.layer), together[0])[None]

    def _spot(self, where: Where, row: int) -> Spot:
        site, stream, layer = where
        return self.batch.spot(self.step, self.rows.pairs[row], site, self.branch, layer, stream)


def is_over_seeds(edit: Placed) -> bool:
    """Say whether an edit sees the rows of several seeds together."""
    return bool(getattr(edit.function, "over_seeds", False))


@dataclass
class PerRow:
    """Values of one keyword of the model, one row each."""

    rows: Tensor


def stack(branch: str, given: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Put the keywords of several calls together: tensors of one row become rows, the rest must be equal."""
    out: dict[str, Any] = {}
    for name, first in given[0].items():
        values = [g[name] for g in given]
        if name in ("dit", "timestep"):
            continue  # these belong to a step
        if (
            isinstance(first, Tensor)
            and first.ndim
            and len(first) == 1
            and len({v.shape for v in values}) == 1
        ):
            stacked = torch.cat(values)
            out[name] = stacked if name == "latents" else PerRow(stacked)
        elif all(v is first or _equal(v, first) for v in values):
            out[name] = first
        else:
            raise PlanError(
                f"The samples cannot go through the model together: {name} ({branch}) differs among them."
            )
    return out


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return len(a) == len(b) and all(_equal(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_equal(value, b[name]) for name, value in a.items())
    return bool(a == b)
