"""From what records return to what the store holds: names, dimensions, units, copies off the device."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dit_lens.coords import Spot
from dit_lens.errors import CaptureError
from dit_lens.plan import Layout, Placed
from dit_lens.store import RunWriter, Variable

LATENT_DIMS = {"y": "latent_y", "x": "latent_x", "channel": "latent_channel"}
"""The latent grid is finer than the token grid; one group has one size a dimension, so it has names of its own."""


def kept(record: Placed) -> tuple[str, ...]:
    """Return the dimensions that a record writes beside step, branch and layer."""
    dims = record.function.dims  # type: ignore[attr-defined]  # checked by the plan
    return tuple(LATENT_DIMS.get(d, d) for d in dims) if record.on_latents else tuple(dims)


def is_state(record: Placed) -> bool:
    """Say whether a record keeps full states, each a unit of its own in the store."""
    return not record.on_latents and {"frame", "y", "x", "channel"} <= set(kept(record))


def to_codes(values: Tensor) -> np.ndarray:
    """Return a CPU tensor as numpy, bfloat16 as its codes (uint16)."""
    if values.dtype == torch.bfloat16:
        return values.contiguous().view(torch.uint16).numpy()
    return values.numpy()


@dataclass
class Pending:
    """A full state on its way from the device."""

    name: str
    index: dict[str, int]
    host: Tensor
    arrived: Any  # torch.cuda.Event, or None where it has arrived


class Recorder:
    """Takes what records return, checks it, and hands it to the store in its units.

    Full states go at once; all else is gathered on the device and copied once a step.

    Args:
        layout: coordinates of the run.
        samples: rows of a prompt batch.
        writer: of the run.
        encoding: how bfloat16 states are stored.
    """

    def __init__(self, layout: Layout, samples: int, writer: RunWriter, encoding: str | None = None) -> None:
        self.layout, self.samples, self.writer, self.encoding = layout, samples, writer, encoding
        self.declared: dict[str, tuple[Variable, tuple[int, ...]]] = {}
        self.step_values: dict[str, dict[tuple[int, ...], Tensor]] = defaultdict(dict)
        self.state_rows: dict[tuple[str, tuple[int, ...]], list[Tensor]] = defaultdict(list)
        self.pending: deque[Pending] = deque()
        self.experts = [layout.experts[0]] * layout.steps

    def take(self, record: Placed, spot: Spot, grid: Mapping[str, int], value: Any) -> None:
        """Take what a record returned at a spot.

        Raises:
            CaptureError: it is not a tensor, or not of the dimensions that the record declares.
        """
        name = record.variable
        self._check(record, spot, grid, value)
        where = (
            [] if record.on_latents else [self.layout.branches.index(str(spot.branch)), int(spot.layer or 0)]
        )
        value = value.detach()
        if not is_state(record):
            lossless = {"frame", "latent_y", "latent_x", "latent_channel"} <= set(kept(record))
            # A view of the model's own memory may be written over later in the step.
            held = value.clone() if lossless else value.to(torch.float32, copy=True)
            self.step_values[name][spot.sample, *where] = held
            return
        rows = self.state_rows[name, tuple(where)]
        rows.append(value)
        if len(rows) == self.samples:
            del self.state_rows[name, tuple(where)]
            whole = rows[0] if self.samples == 1 else torch.stack(rows)
            self._send(name, dict(zip(("step", "branch", "layer"), (spot.step, *where), strict=True)), whole)

    def end_step(self, step: int, info: Mapping[str, Any]) -> None:
        """Hand over what was gathered, and commit the step."""
        for name, values in self.step_values.items():
            self.writer.write(name, {"step": step}, self._assemble(name, values))
        self.step_values.clear()
        self._drain(wait=True)
        if len(self.layout.experts) > 1:
            self.experts[step] = str(info["expert"])
            self.writer.set_coord("expert", self.experts)
        self.writer.commit_step(step, info)

    def _check(self, record: Placed, spot: Spot, grid: Mapping[str, int], value: Any) -> None:
        name, dims = record.variable, kept(record)
        if not isinstance(value, Tensor) or value.ndim != len(dims):
            got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise CaptureError(
                f"record {record.name} at {spot} returned {got}; it declares the dimensions {dims}: return a tensor of those."
            )
        for dim, size in zip(dims, value.shape, strict=True):
            if dim in grid and size != grid[dim]:
                raise CaptureError(
                    f"record {record.name} at {spot} returned {dim}={size}, but there are {grid[dim]} there: "
                    f"keep {dim} whole, or declare another dimension with @dl.keeps."
                )
        if name not in self.declared:
            self._declare(record, value)
        elif self.declared[name][1] != tuple(value.shape):
            raise CaptureError(
                f"record {record.name} at {spot} returned shape {tuple(value.shape)}, and {self.declared[name][1]} "
                "before: a record returns one shape everywhere; place the two apart, under two names."
            )

    def _declare(self, record: Placed, value: Tensor) -> None:
        dims, shape = ["step"], [self.layout.steps]
        asked: dict[str, list[int]] = {"step": list(record.steps(self.layout))}
        if not record.on_latents:
            dims += ["branch", "layer"]
            shape += [len(self.layout.branches), self.layout.layers]
            asked["branch"] = [self.layout.branches.index(b) for b in record.branches(self.layout)]
            asked["layer"] = list(record.layers(self.layout))
        if self.samples > 1:
            dims, shape = ["sample", *dims], [self.samples, *shape]
        whole = is_state(record) or (record.on_latents and "latent_channel" in kept(record))
        dtype = str(value.dtype).removeprefix("torch.") if whole else "float32"
        site = "" if record.variable == record.name else f", {record.site}"
        variable = Variable(
            name=record.variable,
            dims=(*dims, *kept(record)),
            shape=(*shape, *value.shape),
            dtype=dtype,
            unit="state" if is_state(record) else "step",
            units=record.function.units,  # type: ignore[attr-defined]
            long_name=record.function.long_name + site,  # type: ignore[attr-defined]
            encoding=self.encoding if dtype == "bfloat16" else None,  # type: ignore[arg-type]
        )
        self.writer.declare(variable, asked)
        self.declared[record.variable] = variable, tuple(value.shape)

    def _assemble(self, name: str, values: Mapping[tuple[int, ...], Tensor]) -> np.ndarray:
        """Put the values of one step on (sample, branch, layer, ...), NaN where nothing was asked for."""
        variable, _ = self.declared[name]
        # One copy off the device for all of them.
        host = to_codes(torch.stack(list(values.values())).cpu())
        if variable.dtype == "bfloat16":
            out = np.full(variable.unit_shape, 0x7FC0, np.uint16)
        else:
            out = np.full(variable.unit_shape, np.nan, host.dtype)
        for (sample, *where), row in zip(values, host, strict=True):
            out[(sample, *where) if self.samples > 1 else tuple(where)] = row
        return out

    def _send(self, name: str, index: dict[str, int], value: Tensor) -> None:
        if value.device.type == "cuda":
            # The copy runs beside the computation; whoever needs the bytes waits for the event, never the hook.
            host = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
            host.copy_(value, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
            self.pending.append(Pending(name, index, host, arrived))
        else:
            self.pending.append(
                Pending(name, index, value.clone(memory_format=torch.contiguous_format), None)
            )
        self._drain(wait=False)

    def _drain(self, wait: bool) -> None:
        while self.pending and (wait or self.pending[0].arrived is None or self.pending[0].arrived.query()):
            item = self.pending.popleft()
            if item.arrived is not None:
                item.arrived.synchronize()
            self.writer.write(item.name, item.index, to_codes(item.host))
