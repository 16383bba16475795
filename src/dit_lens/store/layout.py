"""Layout version 1 as data: what a variable is, how it is cut into units, what each unit's file is called.

Nothing here touches a disk. `docs/store-layout.md` is the same in prose, and normative.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from dit_lens.errors import StoreError
from dit_lens.plan.names import folder_problem, units_problem
from dit_lens.plan.places import DIMS

LAYOUT_VERSION = 1
STATE_DIMS = ("step", "branch", "layer")
"""The dimensions that a full state is cut along: one file per position on these."""


def is_place_dim(dim: str) -> bool:
    """Say whether a dimension is a coordinate of places, of which a record may be asked for some only."""
    return dim in STATE_DIMS or dim.partition("_")[0] == "head"


Unit = Literal["state", "step", "run"]
Encoding = Literal["raw", "float32", "codes", "float16"]

_UNIT_DIMS = {"state": STATE_DIMS, "step": ("step",), "run": ()}
_PLAIN_DTYPES = (
    *("float16", "float32", "float64", "complex64", "complex128", "bool"),
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
)
_BF16_STORED = {"float32": "float32", "codes": "uint16", "float16": "float16"}
_BLOSC_LIMIT = 2**31 - 1


@dataclass(frozen=True)
class Variable:
    """One array of a run: its dimensions, its number type, and the unit in which it is written.

    Attributes:
        name: Name of the array in its run, e.g. `energy` or `hidden_self_attn`.
        dims: Dimension names; those of `dit_lens.plan.places.DIMS` stand in that order.
        shape: Full sizes, one per dimension; also `step`, `branch` and `layer` are those of the whole run.
        dtype: The logical number type: `bfloat16`, or the name of a plain numpy float, complex, integer or bool.
        unit: What is written at once: a `state` (one step, branch, layer), all of a `step`, or of the `run`.
        units: Physical units, as xarray expects them; "1" where there are none.
        long_name: What a plot's axis says.
        encoding: `raw`, or for bfloat16 one of `float32` (the default), `codes` and `float16`.
        rate: Positions per second along `time` or `audio_time`, where the variable is a video or a sound.

    Raises:
        StoreError: If the fields do not fit one another.

    Example:
        >>> v = Variable("hidden", ("step", "layer", "y", "x", "channel"), (4, 2, 3, 5, 8), unit="state")
        >>> v.unit_shape, v.chunk_name((3, 1))
        ((3, 5, 8), 'c.3.1.0.0.0')
    """

    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str = "float32"
    unit: Unit = "step"
    units: str = "1"
    long_name: str = ""
    encoding: Encoding | None = None
    rate: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "dims", tuple(self.dims))
        object.__setattr__(self, "shape", tuple(int(size) for size in self.shape))
        if self.encoding is None:
            object.__setattr__(self, "encoding", "float32" if self.dtype == "bfloat16" else "raw")
        if problem := self._number_problem() or self._dims_problem() or self._name_problem():
            raise StoreError(f"variable {self.name!r}: {problem}")

    def _name_problem(self) -> str:
        return folder_problem(self.name) or units_problem(self.units)

    def _dims_problem(self) -> str:
        known = [dim for dim in self.dims if dim in DIMS and dim != "head"]
        if len(self.dims) != len(self.shape):
            return f"{len(self.dims)} dims {self.dims} but {len(self.shape)} sizes {self.shape}"
        if len(set(self.dims)) != len(self.dims) or min(self.shape, default=1) < 1:
            return f"dims {self.dims} must differ, and sizes {self.shape} must be at least 1"
        if known != sorted(known, key=DIMS.index):
            return f"dims {self.dims} must keep the order {DIMS}; transpose the values"
        if self.unit not in _UNIT_DIMS:
            return f"unit={self.unit!r} is not one of {list(_UNIT_DIMS)}"
        if (self.unit != "run") != ("step" in self.dims):
            return f"unit={self.unit!r} with dims {self.dims}: 'state' and 'step' need 'step', 'run' has none"
        if self.compressed and math.prod(self.inner_shape) * 4 > _BLOSC_LIMIT:
            return (
                f"one inner chunk {self.inner_shape} of float32 is over blosc's 2 GiB; use encoding='codes'"
            )
        return ""

    def _number_problem(self) -> str:
        if self.dtype == "bfloat16":
            choices: tuple[str, ...] = tuple(_BF16_STORED)
        elif self.dtype in _PLAIN_DTYPES:
            choices = ("raw",)
        else:
            return f"dtype={self.dtype!r} is not one of {('bfloat16', *_PLAIN_DTYPES)}"
        return (
            ""
            if self.encoding in choices
            else f"dtype {self.dtype} takes encoding {choices}, not {self.encoding!r}"
        )

    @cached_property
    def unit_dims(self) -> tuple[str, ...]:
        """The dimensions along which units lie, in order: those that an index names."""
        return tuple(dim for dim in self.dims if dim in _UNIT_DIMS[self.unit])

    @cached_property
    def unit_shape(self) -> tuple[int, ...]:
        """Shape of the values of one unit: every dimension but `unit_dims`."""
        return tuple(n for dim, n in zip(self.dims, self.shape, strict=True) if dim not in self.unit_dims)

    @cached_property
    def chunk_shape(self) -> tuple[int, ...]:
        """Shape of one unit on all dimensions: 1 along `unit_dims`, whole along the others."""
        return tuple(1 if dim in self.unit_dims else n for dim, n in zip(self.dims, self.shape, strict=True))

    @cached_property
    def inner_shape(self) -> tuple[int, ...]:
        """Shape of what is read alone: a row of tokens, (1, ..., 1, x, channel), of a state; or the unit."""
        if self.unit != "state":
            return self.chunk_shape
        return (1,) * (len(self.chunk_shape) - 2) + self.chunk_shape[-2:]

    @cached_property
    def stored_dtype(self) -> np.dtype:
        """Number type in the files."""
        return np.dtype(_BF16_STORED[str(self.encoding)] if self.dtype == "bfloat16" else self.dtype)

    @cached_property
    def value_dtype(self) -> np.dtype:
        """Number type of the values handed to the writer: numpy has no bfloat16, so its codes as uint16."""
        return np.dtype("uint16" if self.dtype == "bfloat16" else self.dtype)

    @property
    def sharded(self) -> bool:
        """Whether a unit's file is a shard of several inner chunks, with an index."""
        return self.unit == "state"

    @property
    def compressed(self) -> bool:
        """Whether the chunks are blosc-compressed: only bfloat16 widened to float32 is."""
        return self.dtype == "bfloat16" and self.encoding == "float32"

    def key(self, index: Mapping[str, int]) -> tuple[int, ...]:
        """Return the checked positions of a unit, in the order of `unit_dims`.

        Raises:
            StoreError: If `index` names other dimensions, or a position outside the run.
        """
        if len(index) != len(self.unit_dims) or any(dim not in index for dim in self.unit_dims):
            raise StoreError(
                f"{self.name} at {dict(index)}: a unit of it is named by positions on {self.unit_dims}"
            )
        key = tuple(int(index[dim]) for dim in self.unit_dims)
        for dim, position in zip(self.unit_dims, key, strict=True):
            size = self.shape[self.dims.index(dim)]
            if not 0 <= position < size:
                raise StoreError(
                    f"{self.name} at {dict(index)}: {dim} position {position} is not in 0..{size - 1}"
                )
        return key

    def chunk_name(self, key: tuple[int, ...]) -> str:
        """Return the file name of a unit inside the variable's folder."""
        return self._chunk_pattern.format(*key)

    @cached_property
    def _chunk_pattern(self) -> str:
        return ".".join(["c", *("{}" if dim in self.unit_dims else "0" for dim in self.dims)])
