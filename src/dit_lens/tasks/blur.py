"""What a codec makes of a right video, and how far a frame is from a picture.

A frame of a right video comes out of a codec blurred: beside what moves, and along thin lines. Scorers compare each frame with
the right picture, and with what the organism's codec makes of it, so that they need no room for a blur that would hide what is
wrong. That codec is linear (`models/organism/modules.py`), and here without torch, so that offline users and processes that
judge start fast.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FROZEN = Path(__file__).parents[1] / "models/organism/frozen.safetensors"
"""Where the codec is."""
SPACE, TIME = 8, 4
"""Pixels along the sides of a patch, and its frames, but for the first frame, which is alone."""
WINDOW = 5
"""Pixels along the sides of the square over which a difference is averaged: it sees a wall two pixels wide."""

CHANGED = 0.14
"""Difference (`difference`) from which on a picture has changed where nothing moves, as by a line of one pixel."""


def blur(pictures: NDArray[Any]) -> NDArray[np.float32]:
    """Return what the organism's codec makes of a video.

    Args:
        pictures: [time, height, width, rgb] in [0, 1], of sides that are multiples of 8. The last is taken again until there
            are 4k + 1.

    Returns:
        The same shape, in [0, 1].
    """
    video = 2 * pictures.astype(np.float32) - 1
    missing = -(len(video) - 1) % TIME
    whole = np.concatenate([video, np.repeat(video[-1:], missing, 0)])
    parts = [_projected(whole[:1], 1, "first")]
    if len(whole) > 1:
        parts.append(_projected(whole[1:], TIME, "rest"))
    return np.clip((np.concatenate(parts)[: len(video)] + 1) / 2, 0, 1)


def _projected(video: NDArray[np.float32], frames: int, part: str) -> NDArray[np.float32]:
    """Project patches of so many frames on the components of a part of the codec, and go back."""
    times, rows, columns = (n // size for n, size in zip(video.shape, (frames, SPACE, SPACE), strict=False))
    split = video.reshape(times, frames, rows, SPACE, columns, SPACE, 3).transpose(0, 2, 4, 1, 3, 5, 6)
    mean, basis = _codec()[f"vae.{part}_mean"], _codec()[f"vae.{part}_basis"]
    patches = split.reshape(-1, len(mean))
    out = ((patches - mean) @ basis.T @ basis + mean).reshape(split.shape)
    joined: NDArray[Any] = out.transpose(0, 3, 1, 4, 2, 5, 6).reshape(video.shape)
    return joined


@cache
def _codec() -> dict[str, NDArray[np.float32]]:
    from safetensors.numpy import load_file

    return {name: value.astype(np.float32) for name, value in load_file(FROZEN).items()}


def even_change(seen: NDArray[Any], where: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return by how much all of a picture is brighter or darker than it should be, by colour, [rgb].

    What is summed over many pixels counts such a change as often as there are pixels, though each has little of it.

    Args:
        seen: a frame less the picture that it should be, [height, width, rgb].
        where: pixels that show it, [height, width]: where nothing moves.
    """
    if not where.any():
        return np.zeros(3, np.float32)
    change: NDArray[np.float32] = np.clip(np.median(seen[where], axis=0), -CHANGED, CHANGED).astype(
        np.float32
    )
    return change


def difference(frame: NDArray[np.uint8], picture: NDArray[Any]) -> NDArray[np.float32]:
    """Return how far a frame is from a picture around each pixel, [height, width].

    Over a small square the difference is averaged with its sign, which evens out the ripples of a codec; then the largest
    of the three colours counts.
    """
    return largest(smooth(frame / np.float32(255) - picture))


def largest(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the largest absolute value of three colours, [height, width]; a reduction over an axis of 3 is slow."""
    red, green, blue = (np.abs(values[..., i]) for i in range(3))
    return np.maximum(np.maximum(red, green), blue)


def smooth(values: NDArray[Any]) -> NDArray[np.float32]:
    """Return means over small squares, [..., height, width, channel]."""
    from scipy.ndimage import uniform_filter  # slow to import, and needed by who judges alone

    sizes = [1] * (values.ndim - 3) + [WINDOW, WINDOW, 1]
    means: NDArray[np.float32] = uniform_filter(values.astype(np.float32), sizes, mode="constant")
    return means
