"""Objects that move, followed from latent frame to latent frame, and how many matches between frames find them.

Tracks come from the scene's masks, so they are those of the right video.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dit_lens.analysis.masked import token_shares
from dit_lens.tasks.sample import Sample
from dit_lens.tasks.scene import Masks

Array = NDArray[np.float64]

MOVERS = ("agent", "ball", "other")
"""Objects that move and keep their shape, by the last word of their name. Trails and rings grow, which is no motion."""
SEEN = 0.5
"""Share of an object's largest size, below which it counts as hidden in a frame: its centre is unknown."""
WHICH = ("all", "moved")
"""Which pairs of frames are counted: all, or those between which the object has moved by more than the radius."""


@dataclass(frozen=True)
class Tracks:
    """Where points of moving objects are.

    Attributes:
        places: (frame, y, x) of the token nearest to an object's centre, one for every object and frame where it is seen.
        centres: [place, frame, (y, x)], the centre of the same object in every frame, in tokens; NaN where it is not seen.
    """

    places: tuple[tuple[int, int, int], ...]
    centres: Array


def tracks_of(masks: Masks, grid: tuple[int, int, int]) -> Tracks:
    """Follow the objects of a scene that move from token to token."""
    places: list[tuple[int, int, int]] = []
    centres: list[Array] = []
    for name, mask in masks.items():
        path = centre_by_frame(token_shares(mask, grid))
        nearest = np.rint(path)
        moves = len({tuple(place) for place in nearest[np.isfinite(path[:, 0])].tolist()}) > 1
        if name.split()[-1] not in MOVERS or not moves:
            continue
        for frame in np.flatnonzero(np.isfinite(path[:, 0])).tolist():
            y, x = nearest[frame].astype(int).tolist()
            places.append((frame, y, x))
            centres.append(path)
    return Tracks(tuple(places), np.array(centres, float).reshape(len(places), grid[0], 2))


def centre_by_frame(shares: Array) -> Array:
    """Return the centre of mass of an object in every frame, [frame, (y, x)], in tokens; NaN where it is mostly hidden.

    Args:
        shares: of the pixels of each token that are the object's, [frame, y, x].
    """
    size = shares.sum((1, 2))
    axes = np.arange(shares.shape[1])[:, None], np.arange(shares.shape[2])[None]
    with np.errstate(divide="ignore", invalid="ignore"):
        centre = np.stack([(shares * axis).sum((1, 2)) / size for axis in axes], -1)
    centre[size <= SEEN * size.max()] = np.nan
    return centre


def has_movers(sample: Sample) -> bool:
    """Say whether the scene of a sample is known and holds an object that may move."""
    return sample.scene is not None and any(name.split()[-1] in MOVERS for name in sample.masks)


def count_matches(
    found: Array, tracks: Tracks, grid: tuple[int, int, int], radius: float
) -> dict[str, Array]:
    """Count the matches that are within a radius of the truth (PCK, Yang and Ramanan 2013, with a fixed radius in tokens).

    A pair is a place and another frame in which the object is seen, and which may be looked at.

    Args:
        found: [..., place, frame, (y, x)], of the tokens that match best; NaN in frames that may not be looked at.
        tracks: where the places are.
        grid: (frame, y, x) of the tokens.
        radius: in tokens, Euclidean.

    Returns:
        `hits` [..., apart, which], matches within the radius, by the distance in frames (from 1 on) and by `WHICH`. And on
        [apart, which]: `points`, how many pairs there are; `same_place`, how many the place itself would hit, unmoved; `chance`,
        how many a token would hit that is drawn from the frame, on average.
    """
    frame = np.array([place[0] for place in tracks.places], int)
    token = np.array([place[1:] for place in tracks.places], float).reshape(-1, 1, 2)
    apart = np.abs(np.arange(grid[0])[None] - frame[:, None])
    visible = np.isfinite(found[..., 0]).any(tuple(range(found.ndim - 3)))
    pairs = np.isfinite(tracks.centres[..., 0]) & visible & (apart > 0)
    still = _within(token, tracks.centres, radius)
    kinds = [pairs, pairs & ~still]

    def counted(values: NDArray[Any]) -> Array:
        by_kind = [
            [(values * (kind & (apart == n))).sum((-2, -1)) for kind in kinds] for n in range(1, grid[0])
        ]
        return np.moveaxis(np.array(by_kind, float), (0, 1), (-2, -1))

    return {
        "hits": counted(_within(found, tracks.centres, radius)),
        "points": counted(pairs),
        "same_place": counted(still),
        "chance": counted(_shares_within(tracks.centres, grid, radius)),
    }


def _within(points: Array, centres: Array, radius: float) -> NDArray[np.bool_]:
    """Say which points are within a radius of their centres; not where either is NaN."""
    with np.errstate(invalid="ignore"):
        near: NDArray[np.bool_] = np.linalg.norm(points - centres, axis=-1) <= radius
    return near


def _shares_within(centres: Array, grid: tuple[int, int, int], radius: float) -> Array:
    """Return the share of a frame's tokens that is within a radius of each centre, [place, frame]; 0 where it is NaN."""
    tokens = np.stack(np.meshgrid(*map(np.arange, grid[1:]), indexing="ij"), -1).astype(float)
    shares: Array = _within(tokens, centres[:, :, None, None], radius).mean((2, 3))
    return shares


__all__ = ["MOVERS", "WHICH", "Tracks", "centre_by_frame", "count_matches", "has_movers", "tracks_of"]
