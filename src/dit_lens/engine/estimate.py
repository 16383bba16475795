"""How much a plan will write and hold, before anything runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from dit_lens.engine.recorder import kept_type
from dit_lens.engine.request import Request
from dit_lens.errors import PlanError
from dit_lens.families.attention import Attention
from dit_lens.families.call import Sizes
from dit_lens.families.site import Tokens
from dit_lens.plan.places import TEXT, positions
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

    Raises:
        PlanError: a record does not run on shapes alone, or returns what a store cannot hold.
    """
    return Estimate(tuple(_line(record, layout, sizes, dtype, samples) for record in plan.records))


def _value(record: Placed, layout: Layout, sizes: Mapping[str, Sizes], dtype: torch.dtype) -> Any:
    """Return what a record reads, without values: a tensor on the meta device, or an attention of such tensors."""

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    held, size = record.held(layout), sizes.get(record.stream)
    if record.on_latents and size is not None:
        return empty(*size.latent[1:], size.latent[0])
    tokens = _tokens(record.stream, layout, sizes)
    channels = held.channels or (0 if size is None else size.channels)
    if not channels:
        raise PlanError(
            "lens.estimate of a bare model: say how wide its states are, with dl.blocks(..., channels=...)."
        )
    place = record.place
    if not held.is_attention:
        return empty(*tokens.grid, len(positions("channel", place.channel, channels)))
    keys = _tokens(held.keys, layout, sizes)
    q, k = (empty(one.count, len(record.heads(layout)), channels) for one in (tokens, keys))
    return Attention(q, k, k, None, 1.0, tokens, keys, record.text_tokens(keys.count))


def _tokens(stream: str, layout: Layout, sizes: Mapping[str, Sizes]) -> Tokens:
    if stream in sizes:
        return Tokens(sizes[stream].tokens)
    if stream == TEXT and (known := layout.text()):
        return Tokens((1, 1, len(next(iter(known.values())))))
    raise PlanError(
        f"How many tokens {stream} has is known only when the model runs: leave its records out of the estimate."
    )


def _line(
    record: Placed, layout: Layout, sizes: Mapping[str, Sizes], dtype: torch.dtype, samples: int
) -> Line:
    result = _on_shapes(record, _value(record, layout, sizes, dtype))
    samples *= (
        record.held(layout).heads if record.by_head(layout) else 1
    )  # heads stand beside one another, too
    if record.by_head(layout) and record.reads_attention:
        result = result[0]
    if result.ndim != len(record.function.dims):  # type: ignore[attr-defined]
        raise PlanError(f"record {record.name} keeps {record.kept} but returns {result.ndim} dimensions.")
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


def _on_shapes(record: Placed, value: Any) -> torch.Tensor:
    """Run a record on tensors without storage: only shapes and types are computed."""
    try:
        result = record.function(value)
    except Exception as error:
        raise PlanError(
            f"record {record.name} does not run on shapes alone ({type(error).__name__}: {error}): it needs values, "
            "as .item() or an if on them does. Leave it out of the estimate."
        ) from error
    if not isinstance(result, torch.Tensor):
        raise PlanError(f"record {record.name} returns {type(result).__name__}: return a tensor.")
    return result


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
        ).lines
    ]
    return Estimate(tuple(lines))


__all__ = ["Estimate", "Line", "estimate", "estimate_request"]
