"""The visitor: the only loop over (row, stream, placed function). It applies what is placed to the value at a place."""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from dit_lens.engine.applied import apply_to_heads
from dit_lens.engine.checkpoints import is_checkpointed
from dit_lens.engine.exchange import Exchange, Meeting
from dit_lens.engine.recorder import is_left_alone, same_bits
from dit_lens.engine.rows import Moment, Row, Shared, Where
from dit_lens.errors import CaptureError, DitLensError, PlanError
from dit_lens.families.attention import Attention, AttentionSite, Heard, listening, resting
from dit_lens.families.call import Forward
from dit_lens.families.site import Site, Tokens, submodule
from dit_lens.plan.binding import Binding
from dit_lens.plan.functions import is_packages_own, kept_by
from dit_lens.plan.places import Spot, positions
from dit_lens.plan.plan import Placed
from dit_lens.records import PURE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dit_lens.families.specimen import Specimen

T = TypeVar("T")
Place = tuple[str, str, int]
"""Site, branch and layer of the video."""


@dataclass
class Selection:
    """What is placed on one row, at one place and branch, in the running step."""

    edits: list[Binding] = field(default_factory=list)
    records: list[Binding] = field(default_factory=list)


class Visitor:
    """Applies edits and takes records of rows that go through the model together.

    Args:
        specimen: the model.
        rows: the trajectories, in the order of the model's rows.
        watch: states to keep of every row, by (site, branch, layer).
        exchange: where the one row is of a group that runs row by row.
        shared: functions that other rows go through, too. Default: those that several of these rows do.
        all_told: whether every call of the model by this thread is told (`calling`), and another one is an error.

    Attributes:
        states: watched states by (site, branch, layer), [row, frame, y, x, channel].
        forward: what the running call says of itself; None between calls.
        reads_x0: whether an edit takes x0 of the step before.
    """

    def __init__(
        self,
        specimen: Specimen,
        rows: Sequence[Row],
        watch: Iterable[Place] = (),
        exchange: Exchange | None = None,
        shared: Shared | None = None,
        all_told: bool = False,
    ) -> None:
        self.specimen, self.rows, self.exchange = specimen, rows, exchange
        self._owner = threading.get_ident() if all_told else None
        self.watch = frozenset(watch)
        self.states: dict[Place, Tensor] = {}
        self.forward: Forward | None = None
        self._repeats = False  # what runs now has run before, with its records
        self._with_gradients = False  # in the running call
        self._listens = False  # to attention functions
        self._moment: Moment | None = None
        self._x0: Mapping[str, Tensor] = {}  # of the step before
        self.reads_x0 = any(edit.reads_x0 for row in rows for edit in row.edits)
        self._hooked: list[tuple[Site, nn.Module, Any]] = []  # sites, modules, and what their hooks call
        self._active: Sequence[Sequence[Binding]] = ()
        self._selected: dict[tuple[Where, str | None], dict[int, Selection]] = {}
        self._fired: dict[tuple[int, Binding], set[tuple[str | None, int | None]]] = defaultdict(set)
        self._seen: set[tuple[int, Binding]] = set()  # records that are known to leave their value alone
        self._shared = Shared(row.placed for row in rows) if shared is None and len(rows) > 1 else shared
        # Functions of the user's that were called at the running place, each with what it kept before; and those called again.
        self._before: dict[int, tuple[Callable[..., Any], str]] = {}
        self._again: set[int] = set()

    # ---- hooks

    def install(self, dits: Mapping[str, nn.Module]) -> None:
        """Put one hook on every module where something is placed or watched, and nowhere else."""
        wanted = self._wanted()
        for expert, dit in dits.items():
            for layer, block in enumerate(self.specimen.blocks(dit)):
                for stream, sites in self.specimen.sites.items():
                    for name, site in sites.items():
                        where = name, stream, layer
                        if (expert, where) in wanted:
                            visit, module = self._visit_at(where), submodule(block, site.path)
                            self._hooked.append(
                                (site, module, visit)
                            )  # before it is hooked: an interrupt may come in between
                            self._listens = self._listens or isinstance(site, AttentionSite)
                            site.attach(module, visit)

    def _wanted(self) -> set[tuple[str, Where]]:
        wanted: set[tuple[str, Where]] = set()
        for binding in {b for row in self.rows for b in (*row.edits, *row.records)}:
            placed = binding.placed
            for expert in binding.experts:
                wanted |= {(expert, (placed.site, placed.stream, layer)) for layer in binding.layers}
        for site, _, layer in self.watch:
            wanted |= {(expert, (site, "video", layer)) for expert in self.specimen.dits}
        return wanted

    @contextmanager
    def installed(self, dits: Mapping[str, nn.Module]) -> Iterator[None]:
        """Hook the modules while a block runs."""
        try:
            try:
                self.install(dits)
                yield
            finally:
                self.remove()
        finally:  # once more, where an interrupt came in between
            self.remove()

    def remove(self) -> None:
        """Remove all hooks. Removing them twice does no harm; no call is running, so what is left is inert."""
        self.forward = None
        while self._hooked:
            site, module, visit = self._hooked[-1]
            site.detach(module, visit)
            self._hooked.pop()

    def _visit_at(self, where: Where) -> Any:
        def visit(h: Tensor | Heard) -> Tensor | None:
            if self.forward is not None:
                with resting() if self._listens else nullcontext():
                    if not isinstance(h, Heard):
                        return self._visit(self.forward, where, h)
                    self._visit_attention(self.forward, where, h)
                    return None
            if self._owner == threading.get_ident():
                raise CaptureError(
                    f"{where[0]} at layer {where[2]}: the model ran outside of a call that was told, so what is placed there "
                    "would not act: run it inside `with step.call(branch):`."
                )
            return None

        return visit

    @contextmanager
    def calling(self, forward: Forward) -> Iterator[None]:
        """Label what the hooks see while one forward of a DiT runs."""
        self.forward, self._with_gradients = forward, torch.is_grad_enabled()
        try:
            with listening() if self._listens else nullcontext():
                yield
        finally:
            self.forward = None

    @contextmanager
    def repeating(self, forward: Forward, dits: Mapping[str, nn.Module]) -> Iterator[None]:
        """Let a part of a call run again, in the backward pass: edits act as before, nothing is recorded or audited.

        Args:
            forward: the call that it is a part of.
            dits: as for `install`.
        """
        self._repeats = True
        try:
            with self.installed(dits), self.calling(forward):
                yield
        finally:
            self._repeats = False

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Let the hooks rest while a block runs, inside of a call: modules that it calls are no part of the call."""
        forward, self.forward = self.forward, None
        try:
            yield
        finally:
            self.forward = forward

    # ---- steps

    def begin(
        self,
        moment: Moment,
        edits: bool = True,
        records: bool = True,
        x0: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Select what is placed at a step.

        Args:
            moment: the step.
            edits: whether edits are applied.
            records: whether records are taken.
            x0: of the step before, by stream, [row, channel, frame, y, x], for edits that take it.
        """
        self._moment, self._x0 = moment, x0 or {}
        self._fired.clear()
        self._before.clear()
        self._again.clear()
        if self._shared is not None:
            self._shared.look()
        active = [
            [
                b
                for b in (*row.edits, *row.records)  # a record reads what the edits leave
                if (edits if b.is_edit else records) and (moment.step, moment.expert) in b.served
            ]
            for row in self.rows
        ]
        if active != self._active:
            self._active, self._selected = active, _select(active)

    def on_latents(
        self, site: str, stream: str, latents: Tensor, edits: bool = True, records: bool = True
    ) -> Tensor:
        """Edit and record what stands on the latent grid; the very same tensor where no bit changed.

        Args:
            site: `latents`, `velocity` or `x0`.
            stream: of the latents.
            latents: [row, channel, frame, y, x].
            edits: whether edits are applied.
            records: whether records are taken.
        """
        where = site, stream, None
        if (where, None) not in self._selected:
            return latents
        # The first latents of a prompt batch are one row, which the model repeats for every prompt.
        rows = latents.expand(max(len(self.rows), len(latents)), *latents.shape[1:])
        values = rows.permute(0, 2, 3, 4, 1)
        new = self.apply(where, None, values, edits, records)
        if is_left_alone(new, values):
            return latents
        return new.permute(0, 4, 1, 2, 3)

    def _visit(self, forward: Forward, where: Where, h: Tensor) -> Tensor | None:
        """Apply what is placed here to the call's rows of h [row, token, channel]; None where nothing changed."""
        branches = [b for b in forward.rows if (where, b) in self._selected or self._watches(where, b)]
        if not branches:
            return None
        tokens = self._tokens(forward, where, h)
        part, grid, out = tokens.part, tokens.grid, None
        for branch in branches:
            rows = forward.rows[branch]
            flat = h[rows, part]
            values = flat.view(flat.shape[0], *grid, flat.shape[2])
            new = self.apply(where, branch, values)
            if self._watches(where, branch) and not self._repeats:
                self._keep_state(where, branch, new)
            if not is_left_alone(new, values):  # the model may rely on its own memory
                out = h.clone() if out is None else out
                out[rows, part] = new.flatten(1, 3)
        if out is not None and self._with_gradients and not self._repeats and is_checkpointed():
            raise CaptureError(
                f"{where[0]} at layer {where[2]} is edited inside of torch's gradient checkpointing, which runs the module again "
                "in the backward pass, without the edit: turn checkpointing off."
            )
        return out

    def _visit_attention(self, forward: Forward, where: Where, heard: Heard) -> None:
        """Let the records that read an attention read it, row by row."""
        site, stream, _ = where
        keys = self.specimen.sites[stream][site].keys  # type: ignore[attr-defined]  # an attention is heard there
        for branch, rows in forward.rows.items():
            selected = self._selected.get((where, branch))
            if selected is None:
                continue
            looking = self._tokens(forward, where, heard.q.flatten(2))
            seen = self._tokens(forward, (site, keys, where[2]), heard.k_of_stream)
            before, after = heard.beside
            seen = replace(seen, before=seen.before + before, after=seen.after + after)
            for number, selection in selected.items():
                attention = heard.of_row((rows.start or 0) + number, looking, seen)
                for record in selection.records:
                    self._read_attention(number, record, where, branch, attention)

    def _keep_state(self, where: Where, branch: str, state: Tensor) -> None:
        site, _, layer = where
        assert layer is not None
        if (site, branch, layer) in self.states:
            raise CaptureError(
                f"{site} at layer {layer}, {self._moment_label(branch)}, is watched, and ran twice: the module runs more than "
                "once a call."
            )
        self.states[site, branch, layer] = state.clone()

    def _watches(self, where: Where, branch: str) -> bool:
        site, stream, layer = where
        return bool(self.watch) and stream == "video" and (site, branch, layer) in self.watch

    def _tokens(self, forward: Forward, where: Where, h: Tensor) -> Tokens:
        """Return how the stream's tokens stand in h, whose rows are those of the call.

        Raises:
            CaptureError: h does not hold them.
        """
        site, stream, layer = where
        tokens, rows = forward.streams.get(stream), max([part.stop for part in forward.rows.values()])
        if tokens is not None and h.ndim == 3 and h.shape[1] == tokens.total and h.shape[0] == rows:
            return tokens
        place = f"{site} at layer {layer}, {self._moment_label('+'.join(forward.rows))}"
        if tokens is None:
            raise CaptureError(f"{place}: this run has no stream {stream!r}.")
        if h.ndim != 3 or h.shape[1] != tokens.total:
            raise CaptureError(
                f"{place}: the value is {tuple(h.shape)}, but the grid {tokens.grid}, {tokens.before} tokens before it and "
                f"{tokens.after} after it make {tokens.total} [row, token, channel]: this site does not hold the {stream}'s "
                "tokens; place it elsewhere."
            )
        raise CaptureError(
            f"{place}: the value has {h.shape[0]} rows, and the call of {' and '.join(forward.rows)} has {rows}: which rows are "
            "which branch is unknown."
        )

    def _moment_label(self, branch: str) -> str:
        moment = self.moment
        return f"step={moment.step}, branch={branch}, expert={moment.expert}"

    @property
    def moment(self) -> Moment:
        """The running step.

        Raises:
            CaptureError: no step is running.
        """
        if self._moment is None:
            raise CaptureError("The model ran before its first step began.")
        return self._moment

    # ---- values

    def apply(
        self, where: Where, branch: str | None, values: Tensor, edits: bool = True, records: bool = True
    ) -> Tensor:
        """Edit and record values [row, frame, y, x, channel]; the very same tensor where no edit is placed."""
        selected = self._selected.get((where, branch))
        if selected is None:
            return values
        if values.shape[0] != len(self.rows):
            raise CaptureError(
                f"{where[0]}, {self._moment_label(str(branch))}: the model ran on {len(values)} rows, and {len(self.rows)} were "
                "prepared."
            )
        out = self._edited(selected, where, branch, values) if edits else values
        for number, selection in selected.items():
            for record in selection.records if records and not self._repeats else ():
                self._read(number, record, where, branch, out[number])
        while self._shared is not None and self._again:  # after the last row, as after the first
            self._shared.refuse_kept(*self._before[self._again.pop()])
        self._before.clear()
        return out

    def _edited(
        self, selected: Mapping[int, Selection], where: Where, branch: str | None, values: Tensor
    ) -> Tensor:
        """Return the values after their edits. At an edit over seeds a row waits for the rows of its group."""
        waiting = {number: deque(s.edits) for number, s in selected.items() if s.edits}
        if not waiting:
            return values
        out = values.clone()
        ordinal = 0  # of the meetings at this place: one edit may stand there twice
        while waiting:
            meetings: dict[tuple[int, Placed], list[int]] = defaultdict(list)
            for number, edits in list(waiting.items()):
                while edits and not edits[0].over_seeds:
                    out[number] = self._edit(number, edits.popleft(), where, branch, out[number])
                if edits:
                    meetings[self._group(number, edits[0]), edits[0].placed].append(number)
                else:
                    del waiting[number]
            for (_, placed), numbers in meetings.items():
                edit = waiting[numbers[0]][0]
                out[numbers] = self._meet(numbers, (placed, where, branch, ordinal), edit, out[numbers])
                for number in numbers:
                    self._mark(number, waiting[number].popleft(), where, branch)
            ordinal += 1
        return out

    def _edit(self, number: int, edit: Binding, where: Where, branch: str | None, value: Tensor) -> Tensor:
        self._mark(number, edit, where, branch)
        spot = spot_of(self.rows[number], self.moment, where, branch)
        more = [self._x0_before(number, edit, spot)] if edit.reads_x0 else []
        return self._call(edit.placed, spot, lambda: apply_to_heads(edit, spot, value, *more))

    def _x0_before(self, number: int, edit: Binding, spot: Spot) -> Tensor:
        """Return a row's x0 of the step before, [frame, y, x, channel].

        Raises:
            PlanError: it is not known, or is none of flow matching.
        """
        family = self.specimen.family
        if not family.flow.is_flow(self.specimen.pipe):
            raise PlanError(
                f"{edit.placed} takes x0 of the step before, which is for models of flow matching: the scheduler of this "
                "pipeline is not of that kind."
            )
        if spot.stream not in self._x0:
            raise PlanError(
                f"{edit.placed} at {spot}: x0 of the step before is not known here. Give batch.step the x0 that its last step "
                "gave, as x0=stepped.x0; in a captured loop, tell the velocity of every step."
            )
        x0 = self._x0[spot.stream]
        return (x0[number] if len(x0) > 1 else x0[0]).permute(1, 2, 3, 0)

    def _call(self, placed: Placed, spot: Spot, function: Callable[[], T]) -> T:
        """Call a function of the plan: its error says where it was raised, and what it keeps of a row is seen.

        Where rows take turns, a function is watched at every place: after the first row and after the last.

        Raises:
            PlanError: it has kept something that may come into another row.
        """
        of_user, shared = placed.function, self._shared
        watched = shared is not None and shared.watched and id(of_user) in shared.functions
        first = watched and id(of_user) not in self._before
        if first:
            self._before[id(of_user)] = of_user, kept_by(of_user)
        elif watched:
            self._again.add(id(of_user))
        try:
            result = function()
        except Exception as error:
            if not isinstance(error, DitLensError):
                error.add_note(f"in {placed} at {spot}")
            raise
        if first and shared is not None:
            shared.refuse_kept(*self._before[id(of_user)])
        return result

    def _group(self, number: int, edit: Binding) -> int:
        group = self.rows[number].group
        if group is None:
            raise PlanError(
                f"{edit.placed} sees the rows of several seeds together: say which, with groups=."
            )
        return group

    def _meet(self, numbers: list[int], meeting: Meeting, edit: Binding, values: Tensor) -> Tensor:
        if self.exchange is not None:
            return self.exchange.meet(meeting, values[0])[None]
        _, where, branch, _ = meeting
        return apply_to_heads(edit, spot_of(self.rows[numbers[0]], self.moment, where, branch), values)

    def _read(self, number: int, record: Binding, where: Where, branch: str | None, value: Tensor) -> None:
        row = self.rows[number]
        spot = spot_of(row, self.moment, where, branch)
        self._mark(number, record, where, branch)
        for at, part in _parts(record, spot, value):
            function = record.placed.function
            pure = id(function) in PURE
            result = function(part) if pure else self._call_record(number, record, at, part)
            for recorder in row.recorders:
                recorder.take(record, at, part.shape, result)

    def _read_attention(
        self, number: int, record: Binding, where: Where, branch: str, attention: Attention
    ) -> None:
        row = self.rows[number]
        spot = spot_of(row, self.moment, where, branch)
        self._mark(number, record, where, branch)
        attention = attention.of_heads(record.heads).of_keys(record.placed.text_tokens(attention.keys.count))
        if not is_packages_own(record.placed.function):
            attention = attention.copied()
        result = self._call(record.placed, spot, lambda: record.placed.function(attention))
        parts = [(spot, result)]
        if record.by_head:
            if not isinstance(result, Tensor) or not result.ndim or len(result) != len(record.heads):
                raise CaptureError(
                    f"record {record.placed.name} at {spot} reads {len(record.heads)} heads: return a tensor with one value "
                    "each, along its first dimension."
                )
            parts = [(replace(spot, head=head), result[n]) for n, head in enumerate(record.heads)]
        for at, part in parts:
            for recorder in row.recorders:
                recorder.take(record, at, attention.shape, part)

    def _call_record(self, number: int, record: Binding, spot: Spot, value: Tensor) -> Any:
        """Call a record of the user's on a copy of the value, and refuse one that changes it.

        In-place operations are counted by torch; what they do not count (`.data`, numpy) shows in the copy, which is
        compared the first time. Whatever a record does, now or later, the run is not changed.
        """
        with torch.inference_mode(False) if value.is_inference() else nullcontext():
            copy = value.clone()  # operations on inference tensors are not counted
        version = copy._version
        result = self._call(record.placed, spot, lambda: record.placed.function(copy))
        first = (number, record) not in self._seen
        if copy._version != version or (first and not same_bits(copy, value)):
            raise PlanError(
                f"record {record.placed.name} at {spot} changes the value that it reads: compute on a copy (h.clone()), or place "
                "it as an edit, which may change the run."
            )
        if first:
            self._seen.add((number, record))
        return result

    # ---- audit

    def _mark(self, number: int, binding: Binding, where: Where, branch: str | None) -> None:
        if self._repeats:
            return
        place, fired = (branch, where[2]), self._fired[number, binding]
        if place in fired:
            spot = spot_of(self.rows[number], self.moment, where, branch)
            raise CaptureError(
                f"{binding.placed} fired twice at {spot}: the module runs more than once a call."
            )
        fired.add(place)

    def audit(self, branches: Sequence[str]) -> None:
        """Check that everything that is placed at the running step has fired.

        Args:
            branches: guidance branches that the step runs; what is placed on others does not fire there.

        Raises:
            CaptureError: something has not.
        """
        for number, bindings in enumerate(self._active):
            for binding in bindings:
                places = {place for place in binding.places if place[0] is None or place[0] in branches}
                missing = places - self._fired[number, binding]
                if missing:
                    raise self._never_fired(number, binding, missing)
        missing_states = self.watch - self.states.keys()
        if missing_states:
            raise CaptureError(
                f"step {self.moment.step}: nothing ran at (site, branch, layer) = {sorted(missing_states)}, which is watched: "
                "leave the place out, or switch off what skips the module."
            )

    def _never_fired(
        self, number: int, binding: Binding, missing: set[tuple[str | None, int | None]]
    ) -> CaptureError:
        branch, layer = min(missing, key=str)
        moment, sample = self.moment, self.rows[number].sample
        site = self.specimen.sites[binding.placed.stream].get(binding.placed.site)
        kernel = (
            " Or its attention does not go through torch's scaled_dot_product_attention: switch the model to that backend."
            if isinstance(site, AttentionSite)
            else ""
        )
        return CaptureError(
            f"{binding.placed}: nothing was captured at step={moment.step}, branch={branch}, layer={layer}, "
            f"expert={moment.expert}{f', sample={sample}' if sample else ''}{self._module(binding.placed, layer)}, and at "
            f"{len(missing) - 1} more places: the module did not run there. Leave the place out, or switch off what skips the "
            f"module.{kernel}"
        )

    def _module(self, placed: Placed, layer: int | None) -> str:
        """Return the module that a place stands for, in words; empty outside the blocks."""
        if layer is None:
            return ""
        dit = self.specimen.dits[self.moment.expert]
        path, number = self.specimen.family.anatomy.locate(dit, layer)
        below = self.specimen.sites[placed.stream][placed.site].path
        return f" (module {path}.{number}" + (f".{below})" if below else ")")


def _select(
    active: Sequence[Sequence[Binding]],
) -> dict[tuple[Where, str | None], dict[int, Selection]]:
    """Return, by place and branch and then by row, what is placed there."""
    selected: dict[tuple[Where, str | None], dict[int, Selection]] = defaultdict(dict)
    for number, bindings in enumerate(active):
        for binding in bindings:
            for branch, layer in binding.places:
                where = binding.placed.site, binding.placed.stream, layer
                selection = selected[where, branch].setdefault(number, Selection())
                (selection.edits if binding.is_edit else selection.records).append(binding)
    return dict(selected)


def _parts(record: Binding, spot: Spot, value: Tensor) -> Iterator[tuple[Spot, Tensor]]:
    """Yield what a record reads of a value, with its place: the selected heads one by one, the selected channels of each."""
    channel = record.placed.place.channel
    heads = value.unflatten(-1, (record.head_count, -1)) if record.by_head else value[..., None, :]
    for head in record.heads if record.by_head else (0,):
        part = heads[..., head, :]
        if channel is not None:
            part = part[..., list(positions("channel", channel, part.shape[-1]))]
        yield (replace(spot, head=head) if record.by_head else spot), part


def spot_of(row: Row, moment: Moment, where: Where, branch: str | None) -> Spot:
    """Return one place of a row, as edits are told it."""
    site, stream, layer = where
    times = moment.step, moment.sigma, moment.timestep
    return Spot(site, *times, row.seed, moment.expert, branch, layer, row.sample, stream, moment.stage)
