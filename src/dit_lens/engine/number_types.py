"""In which number type a record's values are kept: none of them loses anything."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_AS_THEY_ARE = {
    *(torch.float32, torch.float64, torch.complex64, torch.complex128, torch.bool),
    *(torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
}
_HALF = {torch.float16, torch.bfloat16}
_WIDENED = {
    **dict.fromkeys(_HALF, torch.float32),
    **{dtype: torch.float32 for name, dtype in vars(torch).items() if name.startswith("float8_")},
    torch.complex32: torch.complex64,
}


def kept_type(dtype: torch.dtype, is_whole: bool) -> torch.dtype | None:
    """Return the type in which values are kept; None where the store has none for them.

    Args:
        dtype: of the values.
        is_whole: whether they are whole states: those keep 16-bit floats too. Reduced ones are widened to float32.
    """
    if dtype in _AS_THEY_ARE or (is_whole and dtype in _HALF):
        return dtype
    return _WIDENED.get(dtype)


def fill_of(dtype: torch.dtype) -> float | int | bool:
    """Return what stands in a file where nothing was asked for.

    NaN for floats and complex numbers. Integers have none: the lowest of a signed type, the highest of an unsigned
    one, False for booleans. A reader is told by the attribute `recorded` which places these are.
    """
    if dtype.is_floating_point or dtype.is_complex:
        return float("nan")
    if dtype == torch.bool:
        return False
    limits = torch.iinfo(dtype)
    return limits.min if limits.min < 0 else limits.max


def to_codes(values: Tensor) -> np.ndarray:
    """Return a CPU tensor as numpy, bfloat16 as its codes (uint16)."""
    if values.dtype == torch.bfloat16:
        return values.contiguous().view(torch.uint16).numpy()
    return values.numpy()
