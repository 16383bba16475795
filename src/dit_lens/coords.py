"""Coordinates: where in a trajectory a value stands, and how a set of such places is selected.

`at(step="0-4", layer=[5, 6], branch="cond")` is frozen data that selects; a `Spot` is one concrete place.
Places are named by meaning, never by the count of a hook's calls. No torch here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from dit_lens.errors import PlanError

DIMS = ("sample", "seed", "step", "branch", "layer", "frame", "y", "x", "channel")
"""Dimension names, in the order in which every array has them."""

GRID_SITES = ("latents", "velocity", "x0")
"""Sites outside the blocks, on the latent grid: one value a step, no branch and no layer."""

Selector = int | str | slice | Iterable[int] | None
Ranges = tuple[tuple[int, int | None], ...]
"""Inclusive ranges; an end of None is open. Negative positions count from the end."""


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

    def __str__(self) -> str:
        known = {
            k: v
            for k, v in asdict(self).items()
            if v is not None and k in ("step", "branch", "layer", "expert")
        }
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
    stream: str = field(default="video")

    def __str__(self) -> str:
        shown = {f.name: getattr(self, f.name) for f in fields(self)}
        parts = [f"{k}={_spell(k, v)}" for k, v in shown.items() if v not in (None, "video")]
        return f"at({', '.join(parts)})" if parts else "everywhere"

    @property
    def region(self) -> dict[str, Ranges]:
        """The selected part of the grid, by dimension; empty where all of it is."""
        return {k: v for k in ("frame", "y", "x") if (v := getattr(self, k)) is not None}

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
    stream: str = "video",
) -> At:
    """Select places over the coordinates; what is not named is selected whole.

    Args:
        site: where the value is read; the default is the record's own, else `block`.
        step: an int (negative from the end), a list, a slice, a text such as "0-19,45-49", or "all".
        branch: one or more branch names.
        layer: like step.
        expert: one or more expert names.
        sigma: (low, high), inclusive: steps at noise levels in between.
        frame: latent frames, like step; for edits.
        y: token rows, like step; for edits.
        x: token columns, like step; for edits.
        stream: `video`, or `audio` where a block carries both.

    Returns:
        Frozen data; hashable, and equal to another that selects the same in the same words.

    Raises:
        PlanError: a selector that cannot be read.
    """
    if sigma is not None:
        low, high = sigma
        if not 0 <= low <= high <= 1:
            raise PlanError(f"at(sigma={sigma!r}): give (low, high) with 0 <= low <= high <= 1.")
        sigma = (float(low), float(high))
    ranges = {
        k: parse_selector(k, v)
        for k, v in {"step": step, "layer": layer, "frame": frame, "y": y, "x": x}.items()
    }
    return At(site=site, branch=_names(branch), expert=_names(expert), sigma=sigma, stream=stream, **ranges)


def _names(value: str | Iterable[str] | None) -> tuple[str, ...] | None:
    if value is None or value == "all":
        return None
    return (value,) if isinstance(value, str) else tuple(value)


def parse_selector(name: str, value: Selector) -> Ranges | None:
    """Read a selector of whole numbers.

    Raises:
        PlanError: it cannot be read, or selects nothing.
    """
    if value is None or value == "all":
        return None
    if isinstance(value, bool):
        raise PlanError(f"at({name}={value!r}): give an int, a list, a slice, '0-4,7' or 'all'.")
    if isinstance(value, int):
        return ((value, value),)
    if isinstance(value, slice):
        if value.step not in (None, 1):
            return parse_selector(name, range(value.start or 0, _closed(name, value), value.step))
        last = None if value.stop is None else value.stop - 1
        if last is not None and value.stop > 0 and last < (value.start or 0):
            raise PlanError(f"at({name}={value!r}) selects nothing.")
        return ((value.start or 0, last),)
    if isinstance(value, str):
        return tuple(_range(name, value, part.strip()) for part in value.split(","))
    numbers = list(value)
    if not numbers or not all(isinstance(n, int) and not isinstance(n, bool) for n in numbers):
        raise PlanError(f"at({name}={numbers!r}): a list selects by whole numbers, at least one.")
    return tuple((n, n) for n in sorted(set(numbers)))


def _closed(name: str, value: slice) -> int:
    if value.stop is None:
        raise PlanError(f"at({name}={value!r}): a slice with a stride needs an end.")
    return int(value.stop)


def _range(name: str, whole: str, part: str) -> tuple[int, int | None]:
    first, dash, last = part.partition("-")
    try:
        low, high = int(first), (int(last) if last.strip() else None) if dash else int(first)
    except ValueError:
        raise PlanError(f"at({name}={whole!r}): cannot read {part!r}; write '3', '0-19' or '45-'.") from None
    if high is not None and high < low:
        raise PlanError(f"at({name}={whole!r}): {part!r} runs backwards.")
    return low, high


def positions(name: str, ranges: Ranges | None, count: int) -> tuple[int, ...]:
    """Return the selected positions out of `count`, sorted.

    Raises:
        PlanError: a position that is not there.
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
        out.update(range(first, last + 1))
    if not out:
        raise PlanError(f"{name}={_spell(name, ranges)} selects nothing out of {count}.")
    return tuple(sorted(out))


def _spell(name: str, value: Any) -> str:
    if name in ("step", "layer", "frame", "y", "x"):
        return ",".join(str(a) if a == b else f"{a}-{'' if b is None else b}" for a, b in value)
    if isinstance(value, tuple):
        return "/".join(map(str, value))
    return str(value)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list | tuple) else value
