"""Maps of tokens over the frames that they belong to."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray

from dit_lens.errors import DitLensError

STRENGTH = 0.8
"""How much of a frame the colour of the largest value hides."""


def overlay(
    frame: NDArray[np.uint8],
    values: Any,
    limit: float,
    mark: tuple[int, int] | None = None,
) -> NDArray[np.uint8]:
    """Draw a map of tokens over a frame in grey: the larger a value, the brighter and the more opaque its colour.

    Args:
        frame: [height, width, rgb], uint8.
        values: [y, x], 0 or more; an array of any library. NaN is left as it is.
        limit: the value of the full colour; larger ones have it, too.
        mark: (y, x) of a token that gets a frame of its own.

    Returns:
        [height, width, rgb], uint8.

    Raises:
        DitLensError: the frame is no picture, its pixels do not share out among the tokens, or the limit is not over 0.
    """
    picture, cells = np.asarray(frame), np.asarray(values, float)
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
        raise DitLensError(
            f"overlay: the frame is {picture.dtype} {picture.shape}; give uint8 [height, width, rgb]."
        )
    if cells.ndim != 2 or picture.shape[0] % cells.shape[0] or picture.shape[1] % cells.shape[1]:
        raise DitLensError(
            f"overlay: a map of {cells.shape} tokens does not share out over {picture.shape[:2]} pixels; give [y, x]."
        )
    if not limit > 0:
        raise DitLensError(f"overlay: limit={limit}: give the value of the full colour, over 0.")
    tile = picture.shape[0] // cells.shape[0], picture.shape[1] // cells.shape[1]
    shares = np.kron(np.nan_to_num(np.clip(cells / limit, 0, 1)), np.ones(tile))[..., None]
    grey = np.repeat(picture.mean(2, keepdims=True), 3, 2)
    colour = 255 * colormaps["plasma"](shares[..., 0])[..., :3]
    out = np.rint(grey + STRENGTH * shares * (colour - grey)).astype(np.uint8)
    if mark is not None:
        box = tuple(slice(n * size, (n + 1) * size) for n, size in zip(mark, tile, strict=True))
        inside = out[box].copy()
        out[box] = (0, 0, 0)
        edge = max(1, min(tile) // 8)
        out[box][edge:-edge, edge:-edge] = inside[edge:-edge, edge:-edge]
    return out


__all__ = ["overlay"]
