"""How much a plan will write and hold, before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from dit_lens.engine.request import Request
from dit_lens.errors import PlanError
from dit_lens.families.call import Sizes
from dit_lens.plan.plan import Layout, Placed, Plan
from dit_lens.units import human


@dataclass(frozen=True)
class Line:
    """One record's share.

    Attributes:
        variable: name of what it writes, with the stage where there are several.
        units: how many files.
        bytes: in all, before compression.
        memory: held on the device or on its way to the disk at once, at most.
    """

    variable: str
    units: int
    bytes: int
    memory: int


@dataclass(frozen=True)
class Estimate:
    """What a plan will write; prints as a table."""

    lines: tuple[Line, ...]

    @property
    def bytes(self) -> int:
        """Bytes in all."""
        return sum(line.bytes for line in self.lines)

    @property
    def memory(self) -> int:
        """Memory held at once, at most."""
        return sum(line.memory for line in self.lines)

    def __str__(self) -> str:
        rows = [("record", "files", "size", "memory")]
        rows += [(n.variable, f"{n.units:,}", human(n.bytes), human(n.memory)) for n in self.lines]
        rows += [("all", f"{sum(n.units for n in self.lines):,}", human(self.bytes), human(self.memory))]
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        return "\n".join(
            row[0].ljust(widths[0])
            + "".join(f"  {c.rjust(w)}" for c, w in zip(row[1:], widths[1:], strict=True))
            for row in rows
        )


def estimate(plan: Plan, layout: Layout, sizes: Mapping[str, Sizes], dtype: torch.dtype) -> Estimate:
    """Estimate a plan on one stage of a run.

    Args:
        plan: checked against the layout.
        layout: coordinates of the stage.
        sizes: of its streams, by name.
        dtype: of the states.
    """

    def shape(record: Placed) -> tuple[int, ...]:
        own = sizes[record.stream]
        return (*own.latent[1:], own.latent[0]) if record.on_latents else (*own.tokens, own.channels)

    return Estimate(tuple(_line(record, layout, shape(record), dtype) for record in plan.records))


def _line(record: Placed, layout: Layout, shape: tuple[int, ...], dtype: torch.dtype) -> Line:
    # Run on a tensor without storage: only shapes are computed.
    try:
        result = record.function(torch.empty(shape, dtype=dtype, device="meta"))
    except Exception as error:
        raise PlanError(
            f"record {record.name} does not run on shapes alone ({type(error).__name__}: {error}): it needs values, "
            "as .item() or an if on them does. Leave it out of the estimate."
        ) from error
    if result.ndim != len(record.kept):
        raise PlanError(f"record {record.name} keeps {record.kept} but returns {result.ndim} dimensions.")
    one = result.numel() * (result.dtype.itemsize if record.is_lossless else 4)
    steps = len(record.steps(layout))
    a_step = 1 if record.on_latents else len(record.branches(layout)) * len(record.layers(layout))
    return Line(
        record.variable + (f", stage {layout.stage}" if layout.stages > 1 else ""),
        steps * (a_step if record.is_state else 1),
        steps * a_step * one,
        # A state leaves at once; the writer's queue is bounded. Small records are held for one step.
        min(a_step * one, 256 << 20) if record.is_state else a_step * one,
    )


def estimate_request(request: Request) -> Estimate:
    """Estimate all stages of a request."""
    specimen = request.specimen
    anatomy = specimen.family.anatomy
    lines = [
        line
        for stage in request.stages
        for line in estimate(
            stage.plan,
            stage.layout,
            anatomy.sizes(specimen.pipe, request.sample, request.keywords, stage.layout.stage),
            specimen.dtype,
        ).lines
    ]
    return Estimate(tuple(lines))


__all__ = ["Estimate", "Line", "estimate", "estimate_request"]
