"""How a set of places is selected: `at(step="0-4", layer=[5, 6], branch="cond")`. No torch here."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Set
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from dit_lens.errors import PlanError
from dit_lens.plan.places import At, Mask, Ranges, Selector, Words, whole_number

MOST_POSITIONS = 1 << 20
"""Of a slice with a stride, which lists its positions."""

LONGEST_RANGE = 40
"""Characters of a range: Python refuses to read numbers of thousands of digits."""

_RANGE = re.compile(r"(?P<low>-?\d+)\s*((?P<dash>-)\s*(?P<high>-?\d+)?)?", re.ASCII)


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
    head: Selector = None,
    channel: Selector = None,
    text_token: Selector | Iterable[str] = None,
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
        head: of an attention, like step, at a site that has its heads apart (`heads`, `attn_q`, ...) and in records of
            attention.
        channel: channels of the value at the site, like step; at a site with heads, those of each head.
        text_token: tokens of the prompt, like step, or words of it by name ("maze", or a list): where a site holds the
            prompt's tokens, and in records of attention to them.

    Returns:
        Frozen data; hashable, and equal to another that selects the same, as long as neither counts from the end.

    Raises:
        PlanError: a selector that cannot be read.
    """
    ranges = {
        k: parse_selector(k, v)
        for k, v in {
            **{"step": step, "layer": layer, "frame": frame, "y": y, "x": x, "stage": stage},
            **{"head": head, "channel": channel},
        }.items()
    }
    return At(
        site=None if site is None else _word("site", site),
        branch=_names("branch", branch),
        expert=_names("expert", expert),
        sigma=_sigmas(sigma),
        mask=_mask(mask),
        stream=_word("stream", stream),
        text_token=_text_tokens(text_token),
        **ranges,
    )


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


def _text_tokens(value: Any) -> Ranges | Words | None:
    """Read positions of text tokens, or words of the prompt: text that is no range is a word."""
    is_word = isinstance(value, str) and value.strip() != "all" and any(c.isalpha() for c in value)
    listed = [value] if is_word else list(value) if isinstance(value, list | tuple | set) else []
    if not any(isinstance(word, str) for word in listed):
        return parse_selector("text_token", value)
    if not all(isinstance(word, str) and word.strip() for word in listed):
        raise PlanError(f"at(text_token={value!r}): give positions, or words of the prompt, not both.")
    return tuple(sorted({word.strip() for word in listed}))


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
        return _merged([_range(name, value, part.strip()) for part in value.split(",")])
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
    return _merged([(n, n) for n in numbers if n is not None])


def _merged(ranges: Iterable[tuple[int, int | None]]) -> Ranges:
    """Return ranges in order, those that touch as one: equal selections are equal data. Ends from the last stay apart."""
    merged: list[tuple[int, int | None]] = []
    from_end: set[tuple[int, int | None]] = set()
    for low, high in sorted(set(ranges), key=lambda pair: (pair[0], -1 if pair[1] is None else pair[1])):
        before = merged[-1] if merged else None
        if low < 0 or (high is not None and high < 0):
            from_end.add((low, high))
        elif before is not None and (before[1] is None or low <= before[1] + 1):
            merged[-1] = before[0], None if None in (high, before[1]) else max(high or 0, before[1] or 0)
        else:
            merged.append((low, high))
    return (*merged, *sorted(from_end, key=str))


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
    return _merged((n, n) for n in chosen)


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
