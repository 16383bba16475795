"""Coordinates: where in a trajectory a value stands, and how a set of such places is selected.

`at(step="0-4", layer=[5, 6], branch="cond")` is frozen data that selects; a `Spot` is one concrete place.
Places are named by meaning, never by the count of a hook's calls. No torch here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Set
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from dit_lens.errors import PlanError
from dit_lens.plan.arguments import whole_number

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

MOST_POSITIONS = 1 << 20
"""Of a slice with a stride, which lists its positions."""
LONGEST_RANGE = 40
"""Characters of a range: Python refuses to read numbers of thousands of digits."""

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
        x: columns, like y.
        mask: booleans [frame, y, x], the cells of the grid at the site; with frame, y and x, what all select. A
            `DataArray` is transposed by its dimensions.
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
        site=None if site is None else _word("site", site),
        branch=_names("branch", branch),
        expert=_names("expert", expert),
        sigma=_sigmas(sigma),
        mask=_mask(mask),
        stream=_word("stream", stream),
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


def _word(name: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise PlanError(f"at({name}={value!r}): give a name, as text.")
    return value


def _names(name: str, value: str | Iterable[str] | None) -> tuple[str, ...] | None:
    if value is None or (isinstance(value, str) and value == "all"):
        return None
    several = isinstance(value, Iterable) and not isinstance(value, Mapping)
    names = (value,) if isinstance(value, str) else tuple(value) if several else ()
    if not names or not all(isinstance(n, str) and n.strip() for n in names):
        raise PlanError(f"at({name}={value!r}): give a name, a list of names, or 'all'.")
    return tuple(sorted({str(n) for n in names}))  # a set has another order in every process


def _sigmas(value: tuple[float, float] | None) -> tuple[float, float] | None:
    if value is None:
        return None
    low, high = _pair(value)
    if not 0 <= low <= high <= 1:
        raise PlanError(f"at(sigma={value!r}): give (low, high), two numbers with 0 <= low <= high <= 1.")
    return low, high


def _pair(value: object) -> tuple[float, float]:
    """Return two numbers; NaN, which no range holds, where it is anything else."""
    numbers = (
        list(value) if isinstance(value, Iterable) and not isinstance(value, str | Mapping | Set) else []
    )
    if len(numbers) != 2 or any(isinstance(n, str | bytes | bool | np.bool_) for n in numbers):
        return math.nan, math.nan
    try:
        return float(numbers[0]), float(numbers[1])
    except (TypeError, ValueError):
        return math.nan, math.nan


def _mask(value: Any) -> Mask | None:
    if value is None:
        return None
    mask = _mask_array(value)
    if mask.ndim != 3 or mask.dtype != bool or not mask.any():
        raise PlanError(
            f"at(mask=...): give booleans [frame, y, x], some of them true; this is {mask.dtype} of shape {mask.shape}."
        )
    return (int(mask.shape[0]), int(mask.shape[1]), int(mask.shape[2])), np.packbits(mask).tobytes().hex()


def _mask_array(value: Any) -> np.ndarray:
    """Return a mask as numpy: of a torch tensor on any device, or of a DataArray with its dimensions in order."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    if dims := getattr(value, "dims", ()):
        plain = {str(dim).removeprefix("latent_").partition("_")[0]: dim for dim in dims}
        if set(plain) != {"frame", "y", "x"} or len(dims) != 3:
            raise PlanError(
                f"at(mask=...): give booleans on frame, y and x; this array has {', '.join(map(str, dims))}."
            )
        value = value.transpose(*(plain[dim] for dim in ("frame", "y", "x")))
    try:
        return np.asarray(value)
    except (TypeError, ValueError):
        raise PlanError(
            f"at(mask=...): {type(value).__name__} is no array of booleans [frame, y, x]."
        ) from None


def parse_selector(name: str, value: Selector) -> Ranges | None:
    """Read a selector of whole numbers; numpy's and torch's count as such.

    Raises:
        PlanError: it cannot be read, or selects nothing.
    """
    if value is None or (isinstance(value, str) and value.strip() == "all"):
        return None
    if isinstance(value, str):
        return tuple(dict.fromkeys(_range(name, value, part.strip()) for part in value.split(",")))
    if isinstance(value, range):
        value = (
            slice(value.start, value.stop, value.step) if value.start >= 0 and value.step > 0 else list(value)
        )
    if isinstance(value, slice):
        return _slice(name, value)
    numbers = _numbers(value)
    if not numbers or None in numbers:
        raise PlanError(
            f"at({name}={value!r}): give a whole number, a list of at least one, a slice, '0-4,7' or 'all'."
        )
    return tuple((n, n) for n in sorted({n for n in numbers if n is not None}))


def _numbers(value: Any) -> list[int | None]:
    """Return what a selector lists; None for what is no whole number."""
    if isinstance(value, bytes | bytearray | Mapping) or getattr(value, "ndim", 0) > 1:
        return []
    single = whole_number(value)
    if single is not None or not isinstance(value, Iterable) or getattr(value, "shape", None) == ():
        return [single]
    return [whole_number(n) for n in value]


def _slice(name: str, value: slice) -> Ranges:
    start, stop = (None if v is None else whole_number(v) for v in (value.start, value.stop))
    stride = 1 if value.step is None else whole_number(value.step)
    unread = (start is None) != (value.start is None) or (stop is None) != (value.stop is None)
    if stride is None or stride < 1 or unread:
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
    chosen = range(first, stop or 0, stride)
    if len(chosen) > MOST_POSITIONS:
        raise PlanError(
            f"at({name}={value!r}) selects {len(chosen):,} positions; give at most {MOST_POSITIONS:,}."
        )
    return tuple((n, n) for n in chosen)


def _range(name: str, whole: str, part: str) -> tuple[int, int | None]:
    read = _RANGE.fullmatch(part)
    if read is None or len(part) > LONGEST_RANGE:
        raise PlanError(
            f"at({name}={whole!r}): cannot read {part!r}; write '3', '0-19' or '45-', '-1' for the last."
        )
    low = int(read["low"])
    high = low if read["dash"] is None else int(read["high"]) if read["high"] else None
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
                f"{name}={_spell_ranges(ranges)} is out of range: there are {count} of them, 0 to {count - 1}."
            )
        if last < first:
            raise PlanError(
                f"{name}={_spell_ranges(ranges)} runs backwards: {first} to {last}, with {count} of them."
            )
        out.update(range(first, last + 1))
    return tuple(sorted(out))


def _spell(name: str, value: Any) -> str:
    if name in ("step", "layer", "frame", "y", "x", "stage"):
        return _spell_ranges(value)
    if name == "mask":
        return f"{int(value[1], 16).bit_count()} of {'x'.join(map(str, value[0]))} cells"
    if name == "sigma":
        return f"{value[0]}..{value[1]}"
    return "/".join(value) if isinstance(value, tuple) else str(value)


def _spell_ranges(ranges: Ranges) -> str:
    return ",".join(str(a) if a == b else f"{a}-{'' if b is None else b}" for a, b in ranges)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list | tuple) else value
