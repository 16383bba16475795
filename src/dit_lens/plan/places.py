"""Coordinates: where in a trajectory a value stands, and how a set of such places is selected.

`at(step="0-4", layer=[5, 6], branch="cond")` is frozen data that selects; a `Spot` is one concrete place.
Places are named by meaning, never by the count of a hook's calls. No torch here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from dit_lens.errors import PlanError

DIMS = ("sample", "seed", "step", "branch", "layer", "frame", "y", "x", "channel")
"""Dimension names, in the order in which every array has them."""

GRID_SITES = ("latents", "velocity", "x0")
"""Sites outside the blocks, on the latent grid: one value a step, no branch and no layer."""

LATENT_DIMS = {"y": "latent_y", "x": "latent_x", "channel": "latent_channel"}
"""The latent grid is finer than the token grid; one group has one size a dimension, so it has names of its own."""

GRID_DIMS = ("frame", "y", "x", "channel")
"""Dimensions of a value arranged on its grid; every stream has its own sizes of them."""

Selector = int | str | slice | Iterable[int] | None
Ranges = tuple[tuple[int, int | None], ...]
"""Inclusive ranges; an end of None is open. Negative positions count from the end."""

Mask = tuple[tuple[int, int, int], str]
"""A boolean mask over (frame, y, x) as data: its shape, and its values packed, in hex."""

_RANGE = re.compile(r"(?P<low>-?\d+)\s*((?P<dash>-)\s*(?P<high>-?\d+)?)?", re.ASCII)


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

    def __str__(self) -> str:
        known = {
            k: v
            for k, v in asdict(self).items()
            if v is not None and k in ("step", "branch", "layer", "expert")
        }
        if self.stream != "video":
            known["stream"] = self.stream
        if self.stage:
            known["stage"] = self.stage
        return f"{self.site}({', '.join(f'{k}={v}' for k, v in known.items())})"


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

    def __str__(self) -> str:
        shown = {f.name: getattr(self, f.name) for f in fields(self)}
        parts = [f"{k}={_spell(k, v)}" for k, v in shown.items() if v not in (None, "video")]
        return f"at({', '.join(parts)})" if parts else "everywhere"

    @property
    def region(self) -> dict[str, Any]:
        """The selected part of the grid, by dimension or as a mask; empty where all of it is."""
        return {k: v for k in ("frame", "y", "x", "mask") if (v := getattr(self, k)) is not None}

    def inside(self, shape: tuple[int, int, int]) -> np.ndarray:
        """Return which cells of a grid (frame, y, x) are selected, as booleans.

        Raises:
            PlanError: a position is not there, or the mask is of another grid.
        """
        chosen = np.ones(shape, bool)
        for axis, dim in enumerate(("frame", "y", "x")):
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
        return chosen

    def to_json(self) -> dict[str, Any]:
        """Return plain data that `from_json` turns back."""
        return {k: v for k, v in asdict(self).items() if v is not None}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> At:
        """Read what `to_json` wrote."""
        return cls(**{k: _tuples(v) for k, v in data.items()})


def at(
    *,
    site: str | None = None,
    step: Selector = None,
    branch: str | Iterable[str] | None = None,
    layer: Selector = None,
    expert: str | Iterable[str] | None = None,
    sigma: tuple[float, float] | None = None,
    frame: Selector = None,
    y: Selector = None,
    x: Selector = None,
    mask: ArrayLike | None = None,
    stream: str = "video",
    stage: Selector = None,
) -> At:
    """Select places over the coordinates; what is not named is selected whole.

    Args:
        site: where the value is read; the default is the record's own, else `block`.
        step: an int (negative from the end), a list, a slice, or a text such as "0-19,45-49", "-5-" (the last
            five) or "all".
        branch: one or more branch names.
        layer: like step.
        expert: one or more expert names.
        sigma: (low, high), inclusive: steps at noise levels in between.
        frame: latent frames, like step; for edits.
        y: rows of the grid at the site (of tokens; of latents outside the blocks), like step; for edits.
        x: columns, likewise.
        mask: booleans [frame, y, x], the cells of the grid at the site; with frame, y and x, what all select.
        stream: `video`, or `audio` where a block carries both.
        stage: pass of the sampling loop, like step, where a pipeline has several.

    Returns:
        Frozen data; hashable, and equal to another that selects the same in the same words.

    Raises:
        PlanError: a selector that cannot be read.
    """
    ranges = {
        k: parse_selector(k, v)
        for k, v in {"step": step, "layer": layer, "frame": frame, "y": y, "x": x, "stage": stage}.items()
    }
    return At(
        site=site,
        branch=_names("branch", branch),
        expert=_names("expert", expert),
        sigma=_sigmas(sigma),
        mask=_mask(mask),
        stream=stream,
        **ranges,
    )


def grid_dim(dim: str, site: str, stream: str) -> str:
    """Return the name that a dimension of the grid has in an array: its own for latents, and for each stream.

    Example:
        >>> grid_dim("y", "block", "video"), grid_dim("y", "x0", "video"), grid_dim("y", "x0", "audio")
        ('y', 'latent_y', 'latent_y_audio')
    """
    if dim not in GRID_DIMS:
        return dim
    name = LATENT_DIMS.get(dim, dim) if site in GRID_SITES else dim
    return name if stream == "video" else f"{name}_{stream}"


def _names(name: str, value: str | Iterable[str] | None) -> tuple[str, ...] | None:
    if value is None or (isinstance(value, str) and value == "all"):
        return None
    names = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Iterable) else ()
    if not names or not all(isinstance(n, str) and n for n in names):
        raise PlanError(f"at({name}={value!r}): give a name, a list of names, or 'all'.")
    return tuple(dict.fromkeys(names))


def _sigmas(value: tuple[float, float] | None) -> tuple[float, float] | None:
    if value is None:
        return None
    try:
        low, high = (float(v) for v in value)
    except (TypeError, ValueError):
        low, high = 1.0, 0.0
    if not 0 <= low <= high <= 1:
        raise PlanError(f"at(sigma={value!r}): give (low, high) with 0 <= low <= high <= 1.")
    return low, high


def _mask(value: ArrayLike | None) -> Mask | None:
    if value is None:
        return None
    mask = np.asarray(value)
    if mask.ndim != 3 or mask.dtype != bool or not mask.any():
        raise PlanError(
            f"at(mask=...): give booleans [frame, y, x], some of them true; this is {mask.dtype} of shape {mask.shape}."
        )
    return (int(mask.shape[0]), int(mask.shape[1]), int(mask.shape[2])), np.packbits(mask).tobytes().hex()


def parse_selector(name: str, value: Selector) -> Ranges | None:
    """Read a selector of whole numbers; numpy's count as such.

    Raises:
        PlanError: it cannot be read, or selects nothing.
    """
    if value is None or (isinstance(value, str) and value.strip() == "all"):
        return None
    if isinstance(value, str):
        return tuple(_range(name, value, part.strip()) for part in value.split(","))
    if isinstance(value, slice):
        return _slice(name, value)
    numbers = [_whole(n) for n in value] if isinstance(value, Iterable) else [_whole(value)]
    known = {n for n in numbers if n is not None}
    if not known or None in numbers:
        raise PlanError(
            f"at({name}={value!r}): give a whole number, a list of at least one, a slice, '0-4,7' or 'all'."
        )
    return tuple((n, n) for n in sorted(known))


def _whole(value: object) -> int | None:
    """Return a Python or numpy integer as an int; None for anything else, True and False too."""
    return int(value) if isinstance(value, Integral) and not isinstance(value, bool) else None


def _slice(name: str, value: slice) -> Ranges:
    start, stop = (None if v is None else _whole(v) for v in (value.start, value.stop))
    stride = 1 if value.step is None else _whole(value.step)
    if stride is None or stride < 1 or (start, stop) != (value.start, value.stop):
        raise PlanError(f"at({name}={value!r}): a slice is of whole numbers, its stride at least 1.")
    first = start or 0
    # Ends counted from different sides can only be compared once the count is known: `positions` does.
    same_side = stop is not None and (first < 0) == (stop < 0)
    if stop == 0 or (same_side and not range(first, stop or 0)):
        raise PlanError(f"at({name}={value!r}) selects nothing.")
    if stride == 1:
        return ((first, None if stop is None else stop - 1),)
    if not same_side:
        raise PlanError(
            f"at({name}={value!r}): a slice with a stride needs an end, counted from the side of its start."
        )
    return tuple((n, n) for n in range(first, stop or 0, stride))


def _range(name: str, whole: str, part: str) -> tuple[int, int | None]:
    found = _RANGE.fullmatch(part)
    if found is None:
        raise PlanError(
            f"at({name}={whole!r}): cannot read {part!r}; write '3', '0-19' or '45-', '-1' for the last."
        )
    low = int(found["low"])
    high = low if found["dash"] is None else int(found["high"]) if found["high"] else None
    if high is not None and (low < 0) == (high < 0) and high < low:
        raise PlanError(f"at({name}={whole!r}): {part!r} runs backwards.")
    return low, high


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
                f"{name}={_spell(name, ranges)} is out of range: there are {count} of them, 0 to {count - 1}."
            )
        if last < first:
            raise PlanError(
                f"{name}={_spell(name, ranges)} runs backwards: {first} to {last}, with {count} of them."
            )
        out.update(range(first, last + 1))
    return tuple(sorted(out))


def _spell(name: str, value: Any) -> str:
    if name in ("step", "layer", "frame", "y", "x", "stage"):
        return ",".join(str(a) if a == b else f"{a}-{'' if b is None else b}" for a, b in value)
    if name == "mask":
        return f"{int(value[1], 16).bit_count()} of {'x'.join(map(str, value[0]))} cells"
    if name == "sigma":
        return f"{value[0]}..{value[1]}"
    return "/".join(value) if isinstance(value, tuple) else str(value)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list | tuple) else value
