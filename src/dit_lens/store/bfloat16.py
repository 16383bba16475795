"""bfloat16 as uint16 codes: exact ways to other number types and back, and a one-pass survey of values.

A bfloat16 is the upper half of a float32, so widening is a shift, and NaN payloads, infinities, -0.0 and
subnormals all survive it.
"""

from __future__ import annotations

import google_crc32c
import numpy as np

from dit_lens.errors import StoreError

_EXPONENT, _MANTISSA = 0x7F80, 0x007F
_NEGATIVE_EXPONENT = 0xFF80
_LARGEST_FLOAT16 = 65504.0
_BLOCK_BYTES = 1 << 20  # stays in the cache from pass to pass, and lets other threads in between two blocks


def widen(codes: np.ndarray) -> np.ndarray:
    """Return the float32 values of bfloat16 codes, bit-exact; same shape."""
    wide = codes.astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


def widen_into(codes: np.ndarray, out: np.ndarray) -> None:
    """Fill float32 `out` with the values of bfloat16 codes of its shape; fastest if both are contiguous."""
    if not (codes.flags.c_contiguous and out.flags.c_contiguous):
        out[...] = widen(np.ascontiguousarray(codes)).reshape(codes.shape)
        return
    flat, wide = codes.reshape(-1), out.reshape(-1).view(np.uint32)
    block = _BLOCK_BYTES // wide.itemsize
    for start in range(0, flat.size, block):
        part = wide[start : start + block]
        part[...] = flat[start : start + block]
        part <<= 16


def narrow(values: np.ndarray) -> np.ndarray:
    """Return the bfloat16 codes of float32 values that came from `widen`; same shape."""
    return np.ascontiguousarray(values.view(np.uint16)[..., 1::2])  # the upper halves, little-endian


def to_float16(codes: np.ndarray) -> np.ndarray:
    """Return float16 values of bfloat16 codes, same shape.

    Exact for magnitudes from 6.1e-5 to 65504; below that the absolute error is under 3e-8.

    Raises:
        StoreError: If a finite value lies outside the range of float16.
    """
    wide = widen(codes)
    magnitude = np.abs(wide, where=np.isfinite(wide), out=np.zeros_like(wide))
    if (largest := float(magnitude.max(initial=0.0))) > _LARGEST_FLOAT16:
        raise StoreError(
            f"a value of magnitude {largest:.4g} does not fit float16 (65504 at most); "
            "use encoding='float32' or 'codes', which keep bfloat16 whole"
        )
    with np.errstate(invalid="ignore"):  # a signalling NaN becomes a quiet one
        return wide.astype(np.float16)


def checksum(values: np.ndarray) -> int:
    """Return the crc32c of values, of any shape and plain number type."""
    crc: int = google_crc32c.value(np.ascontiguousarray(values).reshape(-1).view(np.uint8))
    return crc


def survey(values: np.ndarray, bfloat16: bool) -> tuple[int, int, int]:
    """Return (crc32c, number of NaN, number of Inf) of C-contiguous values, in one pass over memory.

    Args:
        values: Any shape and plain number type, C-contiguous.
        bfloat16: Whether uint16 values are bfloat16 codes.
    """
    flat = values.reshape(-1)
    block = max(1, _BLOCK_BYTES // values.itemsize)
    crc = nan = inf = 0
    for start in range(0, flat.size, block):
        part = flat[start : start + block]
        crc = google_crc32c.extend(crc, part.view(np.uint8))
        if bfloat16:
            # NaN and Inf have the largest codes of their sign, so two maxima tell whether there are any.
            if part.max() >= _NEGATIVE_EXPONENT or part.view(np.int16).max() >= _EXPONENT:
                special = part[(part & _EXPONENT) == _EXPONENT]
                nans = int(np.count_nonzero(special & _MANTISSA))
                nan, inf = nan + nans, inf + special.size - nans
        elif part.dtype.kind in "fc" and not np.isfinite(part).all():
            nan += int(np.isnan(part).sum())
            inf += int(np.isinf(part).sum())
    return crc, nan, inf
