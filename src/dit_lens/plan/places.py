"""Coordinates: where in a trajectory a value stands, and how a set of such places is selected.

`at(step="0-4", layer=[5, 6], branch="cond")` is frozen data that selects; a `Spot` is one concrete place.
Places are named by meaning, never by the count of a hook's calls. No torch here.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from dit_lens.errors import PlanError

DIMS = ("sample", "seed", "step", "branch", "layer", "head", "frame", "y", "x", "text_token", "channel")
"""Dimension names, in the order in which every array has them."""

GRID_SITES = ("latents", "velocity", "x0")
"""Sites outside the blocks, on the latent grid: one value a step, no branch and no layer."""

LATENT_DIMS = {"y": "latent_y", "x": "latent_x", "channel": "latent_channel"}
"""The latent grid is finer than the token grid; one group has one size a dimension, so it has names of its own."""

GRID_DIMS = ("frame", "y", "x", "channel")
"""Dimensions of a value arranged on its grid; every stream has its own sizes of them."""

TEXT = "text"
"""The stream of a prompt's tokens. Its grid is one frame of one row, so in arrays it stands on `text_token` alone."""

Selector = int | str | slice | Iterable[int] | None
Ranges = tuple[tuple[int, int | None], ...]
"""Inclusive ranges; an end of None is open. Negative positions count from the end."""

Words = tuple[str, ...]
"""Words of a prompt, by name."""

Mask = tuple[tuple[int, int, int], str]
"""A boolean mask over (frame, y, x) as data: its shape, and its values packed, in hex."""


@dataclass(frozen=True)
class Spot:
    """One concrete place: what an edit is told of where it is.

    Attributes:
        site: `block`, `self_attn`, ..., or `latents`, `velocity`, `x0`.
        step: scheduler step, 0 the noisiest.
        sigma: its noise level in [0, 1].
        timestep: what the model is told.
        seed: of the trajectory.
        expert: the DiT that serves the step.
        branch: guidance branch; None on the latent grid.
        layer: block index; None on the latent grid.
        head: of an attention, at a site that has its heads apart; None elsewhere.
        channel: positions of the channels on which an edit acts; None for all.
        sample: row of a prompt batch.
        stream: `video`, or another that the model carries beside it.
        stage: pass of the sampling loop.
    """

    site: str
    step: int
    sigma: float
    timestep: float
    seed: int
    expert: str
    branch: str | None = None
    layer: int | None = None
    sample: int = 0
    stream: str = "video"
    stage: int = 0
    head: int | None = None
    channel: tuple[int, ...] | None = None

    def __str__(self) -> str:
        known = {
            k: v
            for k, v in asdict(self).items()
            if v is not None and k in ("step", "branch", "layer", "expert", "head")
        }
        if self.stream != "video":
            known["stream"] = self.stream
        if self.stage:
            known["stage"] = self.stage
        return f"{self.site}({', '.join(f'{k}={v}' for k, v in known.items())})"


ROUNDING = 1e-6
"""Of a noise level, at most."""


@dataclass(frozen=True)
class At:
    """A selection of places; make it with `at(...)`. None selects everything along a coordinate."""

    site: str | None = None
    step: Ranges | None = None
    branch: tuple[str, ...] | None = None
    layer: Ranges | None = None
    expert: tuple[str, ...] | None = None
    sigma: tuple[float, float] | None = None
    frame: Ranges | None = None
    y: Ranges | None = None
    x: Ranges | None = None
    mask: Mask | None = None
    stream: str = "video"
    stage: Ranges | None = None
    head: Ranges | None = None
    channel: Ranges | None = None
    text_token: Ranges | Words | None = None

    def __str__(self) -> str:
        shown = {f.name: getattr(self, f.name) for f in fields(self)}
        parts = [f"{k}={_spell(k, v)}" for k, v in shown.items() if v not in (None, "video")]
        return f"at({', '.join(parts)})" if parts else "everywhere"

    @property
    def region(self) -> dict[str, Any]:
        """The selected part of a value, by dimension or as a mask; empty where all of it is."""
        names = ("frame", "y", "x", "mask", "text_token", "channel")
        return {k: v for k in names if (v := getattr(self, k)) is not None}

    @property
    def words(self) -> Words:
        """Words of the prompt that are selected by name; none where text tokens are selected by position."""
        chosen = self.text_token or ()
        return tuple(word for word in chosen if isinstance(word, str))

    def holds_sigma(self, sigma: float) -> bool:
        """Say whether a noise level is in the selected range, both ends included; schedules are float32, whose 0.9 is less."""
        low, high = self.sigma or (0.0, 1.0)
        return low - ROUNDING <= sigma <= high + ROUNDING

    def inside(self, shape: tuple[int, int, int]) -> np.ndarray:
        """Return which cells of a grid (frame, y, x) are selected, as booleans.

        Raises:
            PlanError: a position is not there, the mask is of another grid, or no cell is selected.
        """
        chosen = np.ones(shape, bool)
        for axis, dim in ((0, "frame"), (1, "y"), (2, "x"), (2, "text_token")):
            here = np.zeros(shape[axis], bool)
            here[list(positions(dim, getattr(self, dim), shape[axis]))] = True
            chosen &= here.reshape([-1 if a == axis else 1 for a in range(3)])
        if self.mask is not None:
            if self.mask[0] != tuple(shape):
                raise PlanError(
                    f"The mask is (frame, y, x) = {self.mask[0]}, the grid at the site {tuple(shape)}."
                )
            packed = np.frombuffer(bytes.fromhex(self.mask[1]), np.uint8)
            chosen &= np.unpackbits(packed, count=chosen.size).astype(bool).reshape(shape)
        if not chosen.any():
            raise PlanError(f"{self}: no cell of the grid {tuple(shape)} is in all of frame, y, x and mask.")
        return chosen

    def to_json(self) -> dict[str, Any]:
        """Return plain data that `from_json` turns back."""
        return {k: v for k, v in asdict(self).items() if v is not None}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> At:
        """Read what `to_json` wrote."""
        return cls(**{k: _tuples(v) for k, v in data.items()})


def grid_dim(dim: str, site: str, stream: str) -> str:
    """Return the name that a dimension of a value has in an array: its own for latents, and for each stream.

    Text stands on one dimension, `text_token`; "" for the two of its grid that an array of it does not have.

    Example:
        >>> grid_dim("y", "block", "video"), grid_dim("y", "x0", "video"), grid_dim("y", "x0", "audio")
        ('y', 'latent_y', 'latent_y_audio')
        >>> grid_dim("frame", "block", "text"), grid_dim("x", "block", "text")
        ('', 'text_token')
    """
    if stream == TEXT and dim in ("frame", "y", "x"):
        return "text_token" if dim == "x" else ""
    if dim not in GRID_DIMS:
        return dim
    name = LATENT_DIMS.get(dim, dim) if site in GRID_SITES else dim
    return name if stream == "video" else f"{name}_{stream}"


def head_dim(stream: str) -> str:
    """Return the name that the dimension of the heads has in an array; each stream has its own number of them."""
    return "head" if stream == "video" else f"head_{stream}"


def positions(name: str, ranges: Ranges | None, count: int) -> tuple[int, ...]:
    """Return the selected positions out of `count`, sorted.

    Raises:
        PlanError: a position that is not there, or a range that is empty.
    """
    if ranges is None:
        return tuple(range(count))
    out: set[int] = set()
    for low, high in ranges:
        first = low + count if low < 0 else low
        last = count - 1 if high is None else high + count if high < 0 else high
        if not (0 <= first < count and 0 <= last < count):
            raise PlanError(
                f"{name}={_spell_ranges(ranges)} is out of range: there are {count} of them, 0 to {count - 1}."
            )
        if last < first:
            raise PlanError(
                f"{name}={_spell_ranges(ranges)} runs backwards: {first} to {last}, with {count} of them."
            )
        out.update(range(first, last + 1))
    return tuple(sorted(out))


def _spell(name: str, value: Any) -> str:
    if name in ("step", "layer", "frame", "y", "x", "stage", "head", "channel", "text_token"):
        return "/".join(value) if isinstance(value[0], str) else _spell_ranges(value)
    if name == "mask":
        return f"{int(value[1], 16).bit_count()} of {'x'.join(map(str, value[0]))} cells"
    if name == "sigma":
        return f"{value[0]}..{value[1]}"
    return "/".join(value) if isinstance(value, tuple) else str(value)


def _spell_ranges(ranges: Ranges) -> str:
    return ",".join(str(a) if a == b else f"{a}-{'' if b is None else b}" for a, b in ranges)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list | tuple) else value


def whole_number(value: Any) -> int | None:
    """Return a whole number of Python, numpy or torch as an int; None for anything else, True and False too."""
    if is_truth(value) or is_several(value):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def is_truth(value: Any) -> bool:
    """Say whether a value is True or False, of any library."""
    return isinstance(value, bool) or "bool" in str(getattr(value, "dtype", ""))


def is_several(value: Any) -> bool:
    """Say whether a value holds several numbers."""
    shape = getattr(value, "shape", None)
    return bool(shape) or isinstance(value, list | tuple | set | range)
