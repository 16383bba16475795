"""Seed, steps and guidance scale as plain Python numbers: equal numbers of other types are equal. No torch here."""

from __future__ import annotations

import math
import operator
from typing import Any

from dit_lens.errors import PlanError

MOST_SEEDS = 1 << 63
ENCODINGS = ("float32", "codes", "float16")
"""How bfloat16 states are stored; docs/store-layout.md, "Number types"."""


def seed_of(seed: Any) -> int:
    """Return a seed as a Python int.

    Raises:
        PlanError: it is not one whole number from 0 to 2**63 - 1.
    """
    number = whole_number(seed)
    if number is None or not 0 <= number < MOST_SEEDS:
        several = (
            " For several seeds, call lens.run once for each, or lens.batch." if _is_several(seed) else ""
        )
        raise PlanError(f"seed={seed!r}: give one whole number from 0 to 2**63 - 1.{several}")
    return number


def steps_of(steps: Any, default: int) -> int:
    """Return a number of scheduler steps as a Python int.

    Args:
        steps: as the user gave them; None for the default.
        default: of the family.

    Raises:
        PlanError: it is not a whole number of at least 1.
    """
    number = default if steps is None else whole_number(steps)
    if number is None or number < 1:
        raise PlanError(f"steps={steps!r}: give a whole number; a run has at least one step.")
    return number


def scale_of(cfg_scale: Any, default: float) -> float:
    """Return a guidance scale as a Python float.

    Args:
        cfg_scale: as the user gave it; None for the default.
        default: of the family.

    Raises:
        PlanError: it is not one finite number.
    """
    if cfg_scale is None:
        return float(default)
    number = math.nan
    if not _is_bool(cfg_scale) and not isinstance(cfg_scale, str | bytes) and not _is_several(cfg_scale):
        try:
            number = float(cfg_scale)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
    if not math.isfinite(number):
        raise PlanError(
            f"cfg_scale={cfg_scale!r}: give one finite number; 1 runs the conditional branch alone."
        )
    return number


def encoding_of(encoding: Any, dtype: str) -> str | None:
    """Return how bfloat16 states are stored, checked against the model's number type.

    Args:
        encoding: as the user gave it; None for the default.
        dtype: name of the model's number type, such as "bfloat16".

    Returns:
        One of `ENCODINGS`; None where the model holds no bfloat16.

    Raises:
        PlanError: there is no such encoding, or the model's states are not bfloat16 and would be stored otherwise.
    """
    if encoding is not None and encoding not in ENCODINGS:
        raise PlanError(f"encoding={encoding!r}: one of {', '.join(ENCODINGS)}.")
    if dtype == "bfloat16":
        return encoding or "float32"
    if encoding not in (None, dtype):
        raise PlanError(
            f"encoding={encoding!r} is for bfloat16 states, and those of this model are {dtype}, which are stored as they "
            "are: leave it out."
        )
    return None


def whole_number(value: Any) -> int | None:
    """Return a whole number of Python, numpy or torch as an int; None for anything else, True and False too."""
    if _is_bool(value) or _is_several(value):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool) or "bool" in str(getattr(value, "dtype", ""))


def _is_several(value: Any) -> bool:
    shape = getattr(value, "shape", None)
    return bool(shape) or isinstance(value, list | tuple | set | range)
