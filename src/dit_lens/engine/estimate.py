"""How much a plan will write and hold, before anything runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from dit_lens.engine.recorder import kept_type
from dit_lens.engine.request import Request
from dit_lens.errors import PlanError
from dit_lens.families.call import Sizes
from dit_lens.families.site import submodule
from dit_lens.families.specimen import Specimen
from dit_lens.plan.plan import Layout, Placed, Plan
from dit_lens.units import human


@dataclass(frozen=True)
class Line:
    """One record's share.

    Attributes:
        variable: name of what it writes, with the stage where there are several.
        units: how many files.
        bytes: of its files in all; bfloat16 states before compression.
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


def estimate(
    plan: Plan,
    layout: Layout,
    sizes: Mapping[str, Sizes],
    dtype: torch.dtype,
    samples: int = 1,
    widths: Mapping[tuple[str, str], int] | None = None,
) -> Estimate:
    """Estimate a plan on one stage of a run.

    The bytes are those of the files: a small record has one a step, which spans all branches and layers, whatever
    places were asked for. Places on a sigma range or an expert count with all steps, as it is not known yet which
    these are. bfloat16 states count two bytes a value, as `encoding="codes"` stores them.

    Args:
        plan: checked against the layout.
        layout: coordinates of the stage.
        sizes: of its streams, by name.
        dtype: of the states.
        samples: rows of a prompt batch.
        widths: channels at sites whose width is not that of the residual stream, by (stream, site).

    Raises:
        PlanError: a record does not run on shapes alone, or returns what a store cannot hold.
    """

    def shape(record: Placed) -> tuple[int, ...]:
        size = sizes[record.stream]
        if record.on_latents:
            return (*size.latent[1:], size.latent[0])
        if not size.channels:
            raise PlanError(
                "lens.estimate of a bare model: say how wide its states are, with dl.blocks(..., channels=...)."
            )
        return (*size.tokens, (widths or {}).get((record.stream, record.site), size.channels))

    return Estimate(tuple(_line(record, layout, shape(record), dtype, samples) for record in plan.records))


def _line(record: Placed, layout: Layout, shape: tuple[int, ...], dtype: torch.dtype, samples: int) -> Line:
    result = _on_shapes(record, shape, dtype)
    number = kept_type(result.dtype, record.is_whole)
    if number is None:
        raise PlanError(f"record {record.name} returns {result.dtype}, which a store cannot hold.")
    one = samples * result.numel() * number.itemsize
    steps = len(record.steps(layout))
    name = record.variable + (f", stage {layout.stage}" if layout.stages > 1 else "")
    if record.is_state:
        states = len(record.branches(layout)) * len(record.layers(layout))
        # The index of a shard: two numbers for every row of tokens, and a checksum.
        rows = samples * math.prod(result.shape[:-2])
        file = one + 16 * rows + 4
        # A state leaves at once; the writer's queue is bounded. Rows of a prompt batch wait for one another.
        memory = min(states * one, 256 << 20) + (one if samples > 1 else 0)
        return Line(name, steps * states, steps * states * file, memory)
    file = one * (1 if record.on_latents else len(layout.branches) * layout.layers)
    return Line(name, steps, steps * file, file)  # gathered for one step


def _on_shapes(record: Placed, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Run a record on a tensor without storage: only shapes and types are computed."""
    try:
        result = record.function(torch.empty(shape, dtype=dtype, device="meta"))
    except Exception as error:
        raise PlanError(
            f"record {record.name} does not run on shapes alone ({type(error).__name__}: {error}): it needs values, "
            "as .item() or an if on them does. Leave it out of the estimate."
        ) from error
    if not isinstance(result, torch.Tensor):
        raise PlanError(f"record {record.name} returns {type(result).__name__}: return a tensor.")
    if result.ndim != len(record.kept):
        raise PlanError(f"record {record.name} keeps {record.kept} but returns {result.ndim} dimensions.")
    return result


def _widths(specimen: Specimen) -> dict[tuple[str, str], int]:
    """Return the channels at the sites that a linear layer gives or is given, by (stream, site)."""
    block = specimen.blocks(next(iter(specimen.dits.values())))[0]
    widths = {}
    for stream, sites in specimen.sites.items():
        for name, site in sites.items():
            layer = submodule(block, site.path)
            while isinstance(layer, nn.Sequential) and len(layer):
                layer = layer[-1 if site.end == "output" else 0]
            if isinstance(layer, nn.Linear):
                widths[stream, name] = layer.out_features if site.end == "output" else layer.in_features
    return widths


def estimate_request(request: Request) -> Estimate:
    """Estimate all stages of a request."""
    specimen, prompt = request.specimen, request.sample.prompt
    anatomy = specimen.family.anatomy
    lines = [
        line
        for stage in request.stages
        for line in estimate(
            stage.plan,
            stage.layout,
            anatomy.sizes(specimen.pipe, request.sample, request.keywords, stage.layout.stage),
            specimen.dtype,
            samples=1 if isinstance(prompt, str) else len(prompt),
            widths=_widths(specimen),
        ).lines
    ]
    return Estimate(tuple(lines))


__all__ = ["Estimate", "Line", "estimate", "estimate_request"]
