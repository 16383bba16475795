"""From what records return to what the store holds: checks, names and dimensions, copies off the device."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from dit_lens.errors import CaptureError, StoreError
from dit_lens.plan.binding import Binding
from dit_lens.plan.places import GRID_DIMS, TEXT, At, Spot, grid_dim, head_dim
from dit_lens.plan.plan import Layout, Placed
from dit_lens.store import Variable
from dit_lens.store.metadata import Recorded

_AS_THEY_ARE = {
    *(torch.float32, torch.float64, torch.complex64, torch.complex128, torch.bool),
    *(torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
}
_HALF = {torch.float16, torch.bfloat16}
_WIDENED = {
    **dict.fromkeys(_HALF, torch.float32),
    **{dtype: torch.float32 for name, dtype in vars(torch).items() if name.startswith("float8_")},
    torch.complex32: torch.complex64,
}
_CODES = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass
class Sink:
    """Where the values of one record go.

    Attributes:
        record: what returned them.
        spot: where the first of them was read.
        outer: sizes of the dimensions before those of a value in a unit: branch and layer, sample before them, head after.
        shape: of every value.
        dtype: in which every value is kept.
        is_whole: whether the values are whole states, in the model's own number type.
        is_unit: whether each value is a unit of the store: a full state of a block.
        variable: the array in the store; None as long as nothing is written.
        buffer: what was gathered of the running step, on the model's device; `fill_of` where nothing was asked for.
    """

    record: Binding
    spot: Spot
    outer: tuple[int, ...]
    shape: torch.Size
    dtype: torch.dtype
    is_whole: bool
    is_unit: bool
    variable: Variable | None = None
    buffer: Tensor | None = None

    def gather(self, index: tuple[int, ...], value: Tensor) -> None:
        """Put a copy of a value in its place in the running step: the model may write over its own memory."""
        if self.buffer is None and not index:
            self.buffer = value.clone(memory_format=torch.contiguous_format)
            return
        if self.buffer is None:
            fill = fill_of(self.dtype)
            size = (*self.outer, *self.shape)
            self.buffer = torch.full(size, fill, dtype=self.dtype, device=value.device)
        self.buffer[index].copy_(value)


@dataclass
class Arriving:
    """A full state on its way from the device."""

    name: str
    index: dict[str, int]
    host: Tensor
    arrived: torch.cuda.Event


class Writer(Protocol):
    """What a recorder hands its units to; see `RunWriter`."""

    def declare(self, variable: Variable, recorded: Recorded | None = None) -> None:
        """Add an array."""

    def write(self, name: str, index: Mapping[str, int], values: np.ndarray) -> None:
        """Take one unit."""

    def set_coord(self, name: str, values: Any) -> None:
        """Replace a coordinate's values."""

    def set_recorded(self, name: str, recorded: Recorded) -> None:
        """Say anew what was asked of a variable."""

    def commit_step(self, step: int, info: Mapping[str, Any] | None = None) -> None:
        """Make a step exist."""


class Recorder:
    """Takes what records return, checks it, and hands it to the store in its units.

    Full states leave the device at once, each a unit; all else is gathered there and copied once a step.

    Args:
        layout: coordinates of the run.
        samples: rows of a prompt batch.
        writer: of the run, or what opens it when there is something to write.
        encoding: how bfloat16 states are stored.
        words: gives what else the journal says of a step when it is committed.
    """

    def __init__(
        self,
        layout: Layout,
        samples: int,
        writer: Writer | Callable[[], Writer],
        encoding: str | None = None,
        words: Callable[[], Mapping[str, Any]] = dict,
    ) -> None:
        self.layout, self.samples, self._writer, self.encoding = layout, samples, writer, encoding
        self._words = words
        self.experts = [layout.experts[0]] * layout.steps
        self.branches: list[tuple[str, ...]] = [layout.branches] * layout.steps  # that ran
        self._sinks: dict[Binding, Sink] = {}
        self._arriving: deque[Arriving] = deque()

    @property
    def writer(self) -> Writer:
        """Writes the run."""
        if callable(self._writer):
            self._writer = self._writer()
        return self._writer

    def take(self, record: Binding, spot: Spot, read: Sequence[int], value: Any) -> None:
        """Take what a record returned at a spot.

        Args:
            record: what read it.
            spot: where it read.
            read: shape of what it was given, (frame, y, x, channel).
            value: what it returned.

        Raises:
            CaptureError: it is not a tensor with values, not of the dimensions that the record declares, or of another
                shape or type than before.
        """
        value = _arranged(record, _with_values(record, spot, value))
        sink = self._sinks.get(record) or self._open(record, spot, read, value)
        if value.shape != sink.shape or kept_type(value.dtype, sink.is_whole) != sink.dtype:
            raise self._changed(record, spot, sink, value)
        value = value.to(sink.dtype)
        index: tuple[int, ...] = ()
        if spot.branch is not None and spot.layer is not None:
            index = (self.layout.branches.index(spot.branch), spot.layer)
        head = () if spot.head is None else (spot.head,)
        if not sink.is_unit:
            sink.gather((spot.sample, *index, *head) if self.samples > 1 else (*index, *head), value)
        elif self.samples > 1 or head:
            self._gather_state(sink, spot, index, value)
        else:
            # A GPU copies to the host before it computes what may write over the value.
            own = value if value.is_cuda else value.clone(memory_format=torch.contiguous_format)
            self._send(sink, (spot.step, *index), own)

    def drop_step(self) -> None:
        """Forget what was gathered of a step that did not end; the writer forgets what it was given."""
        self._arriving.clear()
        for sink in self._sinks.values():
            sink.buffer = None

    def end_step(self, step: int, info: Mapping[str, Any]) -> None:
        """Hand over what was gathered, and commit the step."""
        for sink in self._sinks.values():
            if sink.buffer is not None:
                self.writer.write(self._declared(sink), {"step": step}, to_codes(sink.buffer.cpu()))
                sink.buffer = None
        self._hand_over(wait=True)
        if len(self.layout.experts) > 1:
            self.experts[step] = str(info["expert"])
            self.writer.set_coord("expert", self.experts)
        self.branches[step] = tuple(info.get("branches", self.layout.branches))
        self.writer.commit_step(step, {**info, **self._words()})

    def end_run(self, bindings: Iterable[Binding]) -> None:
        """Say which steps served the records on some experts, and which branches ran there: known only now.

        Args:
            bindings: all that was placed on the run, edits too.

        Raises:
            CaptureError: something placed fired in no step.
        """
        bindings = list(bindings)
        for binding in bindings:
            if problem := binding.never_fired(self.experts, self.branches):
                raise CaptureError(problem)
        everywhere = set(self.branches) == {self.layout.branches}
        for record in bindings:
            if not record.is_edit and not (everywhere and record.placed.place.expert is None):
                self.writer.set_recorded(record.placed.variable, self._recorded(record))

    # ---- what a record writes

    def _open(self, record: Binding, spot: Spot, read: Sequence[int], value: Tensor) -> Sink:
        """Check a record's first value."""
        placed, dims = record.placed, _dims(record)
        if value.ndim != len(dims):
            raise CaptureError(
                f"record {placed.name} at {spot} returned {_named(value)}; it declares the dimensions {dims}: "
                "return a tensor of those."
            )
        names = [_of_head(record, grid_dim(dim, placed.site, placed.stream)) for dim in GRID_DIMS]
        grid = dict(zip(names, read, strict=True))
        for dim, size in zip(dims, value.shape, strict=True):
            if dim in grid and size != grid[dim]:
                raise CaptureError(
                    f"record {placed.name} at {spot} returned {dim}={size}, but there are {grid[dim]} there: "
                    f"keep {dim} whole, or declare another dimension with @dl.keeps."
                )
        dtype = kept_type(value.dtype, placed.is_whole)
        if dtype is None or 0 in value.shape:
            raise CaptureError(
                f"record {placed.name} at {spot} returned {_named(value)}, which a store cannot hold: return at least one "
                "value, of a float, complex, integer or bool type."
            )
        outer = () if placed.on_latents else (len(self.layout.branches), self.layout.layers)
        if self.samples > 1:
            outer = (self.samples, *outer)
        if record.by_head:
            outer = (*outer, record.head_count)
        sink = Sink(record, spot, outer, value.shape, dtype, placed.is_whole, placed.is_state)
        self._sinks[record] = sink
        return sink

    def _declared(self, sink: Sink) -> str:
        """Return the name of a record's array, which is declared when its first unit is written."""
        if sink.variable is None:
            sink.variable = self._variable(sink)
            try:
                self.writer.declare(sink.variable, self._asked(sink.record))
            except StoreError as error:
                raise CaptureError(f"record {sink.record.placed.name} at {sink.spot}: {error}") from error
        return sink.variable.name

    def _variable(self, sink: Sink) -> Variable:
        placed, layout = sink.record.placed, self.layout
        sizes = {"step": layout.steps}
        if not placed.on_latents:
            sizes |= {"branch": len(layout.branches), "layer": layout.layers}
        if self.samples > 1:
            sizes = {"sample": self.samples, **sizes}
        if sink.record.by_head:
            sizes[head_dim(placed.stream)] = sink.record.head_count
        stored = str(sink.dtype).removeprefix("torch.")
        function: Any = placed.function
        try:
            return Variable(
                name=placed.variable,
                dims=(*sizes, *_dims(sink.record)),
                shape=(*sizes.values(), *sink.shape),
                dtype=stored,
                unit="state" if placed.is_state else "step",
                units=getattr(function, "units", "1"),
                long_name=getattr(function, "long_name", "") + _elsewhere(placed),
                encoding=self.encoding if stored == "bfloat16" else None,  # type: ignore[arg-type]
            )
        except StoreError as error:
            raise CaptureError(f"record {placed.name} at {sink.spot}: {error}") from error

    def _asked(self, record: Binding) -> dict[str, list[int]]:
        """Return the positions that a record was asked for."""
        if record.placed.on_latents:
            return {"step": sorted(record.steps)}
        branches = sorted(self.layout.branches.index(b) for b in record.branches)
        asked = {"step": sorted(record.steps), "branch": branches, "layer": sorted(record.layers)}
        return asked | ({head_dim(record.placed.stream): [*record.heads]} if record.by_head else {})

    def _recorded(self, record: Binding) -> list[dict[str, list[int]]] | dict[str, list[int]]:
        """Return the positions at which a record fired: for each set of branches that ran, the steps in which they did."""
        asked, steps_of = self._asked(record), dict[tuple[int, ...], list[int]]()
        for step in asked["step"]:
            if self.experts[step] in record.experts:
                ran = (n for n in asked.get("branch", ()) if self.layout.branches[n] in self.branches[step])
                steps_of.setdefault(tuple(ran), []).append(step)
        if record.placed.on_latents:
            return {"step": steps_of[()]}
        parts = [asked | {"step": steps, "branch": [*ran]} for ran, steps in steps_of.items() if ran]
        return parts[0] if len(parts) == 1 else parts

    def _changed(self, record: Binding, spot: Spot, sink: Sink, value: Any) -> CaptureError:
        before = f"{sink.dtype} {tuple(sink.shape)}"
        return CaptureError(
            f"record {record.placed.name} at {spot} returned {_named(value)}, and {before} before: a record returns "
            "one shape and type everywhere; place the two apart, under two names."
        )

    # ---- full states

    def _gather_state(self, sink: Sink, spot: Spot, index: tuple[int, ...], value: Tensor) -> None:
        """Put the rows of a prompt batch and the heads of an attention together; they come one after another."""
        outer = ((self.samples,) if self.samples > 1 else ()) + (
            (sink.record.head_count,) if sink.record.by_head else ()
        )
        if sink.buffer is None:
            sink.buffer = value.new_full((*outer, *value.shape), fill_of(value.dtype))
        place = ((spot.sample,) if self.samples > 1 else ()) + (() if spot.head is None else (spot.head,))
        sink.buffer[place].copy_(value)
        if spot.sample == self.samples - 1 and spot.head in (None, *sink.record.heads[-1:]):
            whole, sink.buffer = sink.buffer, None
            self._send(sink, (spot.step, *index), whole)

    def _send(self, sink: Sink, index: tuple[int, ...], value: Tensor) -> None:
        """Send a full state on its way: on a CPU one that nobody else holds."""
        name = self._declared(sink)
        at = dict(zip(("step", "branch", "layer"), index, strict=True))
        if value.device.type == "cuda":
            # The copy runs beside the computation; whoever needs the bytes waits for the event, never the hook.
            host = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
            host.copy_(value, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
            self._arriving.append(Arriving(name, at, host, arrived))
            self._hand_over(wait=False)
        else:
            self.writer.write(name, at, to_codes(value))

    def _hand_over(self, wait: bool) -> None:
        while self._arriving and (wait or self._arriving[0].arrived.query()):
            item = self._arriving.popleft()
            item.arrived.synchronize()
            self.writer.write(item.name, item.index, to_codes(item.host))


def _elsewhere(record: Placed) -> str:
    """Return the site and the stream of a record in words, where its name in the store tells them too; and its channels."""
    words = ""
    if record.variable != record.name:
        words = f", {record.site}" + ("" if record.stream == "video" else f", {record.stream}")
    for name in ("channel", "head", "text_token"):  # of these alone
        if (chosen := getattr(record.place, name)) is not None:
            words += f", {At(**{name: chosen})}"
    return words


def _dims(record: Binding) -> tuple[str, ...]:
    """Return the dimensions that a record writes beside step, branch, layer and head."""
    keys = "" if record.keys == "video" else f"_{record.keys}"
    return tuple(_of_head(record, dim + keys if dim == "key_frame" else dim) for dim in record.placed.kept)


def _of_head(record: Binding, dim: str) -> str:
    """Return the name that a dimension of a value has: channels of a head are others than those of a state."""
    return f"head_{dim}" if record.by_head and dim.partition("_")[0] == "channel" else dim


def _arranged(record: Binding, value: Tensor) -> Tensor:
    """Return what a record of text returned without the two dimensions that text does not have in an array.

    Raises:
        CaptureError: it is larger there than one.
    """
    placed = record.placed
    if placed.stream != TEXT or value.ndim != len(dims := placed.function.dims):  # type: ignore[attr-defined]
        return value
    dropped = [n for n, dim in enumerate(dims) if not grid_dim(dim, placed.site, placed.stream)]
    if any(value.shape[n] != 1 for n in dropped):
        raise CaptureError(
            f"record {placed.name} returned {_named(value)} for text, whose grid is one frame of one row: keep both whole."
        )
    for n in reversed(dropped):
        value = value.squeeze(n)
    return value


def _with_values(record: Binding, spot: Spot, value: Any) -> Tensor:
    """Return what a record returned as a plain tensor: without gradient, its conjugation and signs carried out.

    Raises:
        CaptureError: it is not a tensor, or one without values of its own.
    """
    if not isinstance(value, Tensor):
        raise CaptureError(
            f"record {record.placed.name} at {spot} returned {_named(value)}; it declares the dimensions "
            f"{record.placed.kept}: return a tensor of those, as torch.as_tensor(...) makes one of a number or an array."
        )
    if value.is_nested or value.layout is not torch.strided or value.is_quantized or value.is_meta:
        kind = "nested" if value.is_nested else f"{value.layout}, on the device {value.device.type!r}"
        raise CaptureError(
            f"record {record.placed.name} at {spot} returned a tensor that is {kind}: return a dense tensor that holds values."
        )
    value = value.detach() if value.requires_grad else value
    return value.resolve_conj().resolve_neg() if value.is_conj() or value.is_neg() else value


def _named(value: Any) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def kept_type(dtype: torch.dtype, is_whole: bool) -> torch.dtype | None:
    """Return the type in which values are kept; None where the store has none for them.

    Args:
        dtype: of the values.
        is_whole: whether they are whole states: those keep 16-bit floats too. Reduced ones are widened to float32.
    """
    if dtype in _AS_THEY_ARE or (is_whole and dtype in _HALF):
        return dtype
    return _WIDENED.get(dtype)


def fill_of(dtype: torch.dtype) -> float | int | bool:
    """Return what stands in a file where nothing was asked for.

    NaN for floats and complex numbers. Integers have none: the lowest of a signed type, the highest of an unsigned
    one, False for booleans. A reader is told by the attribute `recorded` which places these are.
    """
    if dtype.is_floating_point or dtype.is_complex:
        return float("nan")
    if dtype == torch.bool:
        return False
    limits = torch.iinfo(dtype)
    return limits.min if limits.min < 0 else limits.max


def to_codes(values: Tensor) -> np.ndarray:
    """Return a CPU tensor as numpy, bfloat16 as its codes (uint16)."""
    if values.dtype == torch.bfloat16:
        return values.contiguous().view(torch.uint16).numpy()
    return values.numpy()


def is_left_alone(new: Tensor, value: Tensor) -> bool:
    """Say whether an edit changed nothing: no bit, and no gradient that goes through it."""
    if new is value:
        return True
    return not has_gradient(new, value) and same_bits(new, value)


def has_gradient(*tensors: Tensor) -> bool:
    """Say whether a gradient goes through some tensors here."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Say whether two tensors have the same shape, type and bits."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.is_complex():
        a, b = torch.view_as_real(a), torch.view_as_real(b)
    return torch.equal(bits(a), bits(b))


def bits(values: Tensor) -> Tensor:
    """Return the bits of real values, as integers of their size."""
    return values.view(_CODES[values.element_size()])
