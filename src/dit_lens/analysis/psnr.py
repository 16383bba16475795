"""How near two videos are, in decibels."""

from __future__ import annotations

from typing import Any

import numpy as np

from dit_lens.errors import DitLensError

MOST = 100.0
"""Decibels that equal values count as: their ratio has no end."""


def psnr(values: Any, original: Any, peak: float = 255.0) -> float:
    """Compute the peak signal-to-noise ratio, 10 log10(peak² / mean squared difference), in dB.

    Args:
        values: a video [time, height, width, rgb], latents, or any other numbers.
        original: what they should be, of the same shape.
        peak: range that one value can have. Default: that of uint8.

    Returns:
        dB, 100 at most, which equal values count as.

    Raises:
        DitLensError: the shapes differ, nothing is compared, a value is NaN or Inf, or the peak is not over 0.
    """
    first, second = np.asarray(values, np.float64), np.asarray(original, np.float64)
    if first.shape != second.shape or not first.size:
        raise DitLensError(f"psnr: {first.shape} and {second.shape}: give two arrays of one shape.")
    if not peak > 0:
        raise DitLensError(f"psnr: peak={peak}: give the range of a value, over 0.")
    error = float(np.square(first - second).mean())
    if not np.isfinite(error):
        raise DitLensError("psnr: a value is NaN or Inf.")
    return MOST if error == 0 else min(float(10 * np.log10(peak**2 / error)), MOST)
