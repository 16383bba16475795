"""Which tokens are an object's: by the masks of its scene, and by masks that are a control."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dit_lens import tasks
from dit_lens.errors import TaskError
from dit_lens.experiments.masks import masks_of, regions_of
from dit_lens.tasks.sample import Sample

OTHER_SCENE = 500_009
"""Added to the seed of a scene for the one whose masks are a control."""
OWN, ELSEWHERE, MOVED = "own", "another scene", "moved"
"""Masks: of the scene, of another one, and of the scene moved by half of the board."""


def regions_by_kind(
    sample: Sample,
    kinds: Sequence[str],
    names: Sequence[str],
    grid: Sequence[int],
    threshold: float,
    folder: Path | None = None,
) -> NDArray[np.bool_]:
    """Return which tokens are whose by each kind of masks, [kind, object, frame, y, x], the background last.

    Args:
        sample: whose objects they are.
        kinds: of masks.
        names: of the objects.
        grid: (frame, y, x) of the tokens.
        threshold: share of a token's pixels from which on it is an object's.
        folder: of mask files. Default: the scene's own masks.

    Raises:
        TaskError: a mask is missing or does not fit, or there is no other scene.
    """
    own = regions_of(masks_of(sample, folder), names, grid, threshold)
    # Where a moved mask would fall onto an object, it is cut: named and others would trade places there.
    moved = np.roll(own, [n // 2 for n in grid[1:]], (2, 3))
    moved[:-1] &= own[-1]
    regions = {OWN: own, MOVED: moved}
    if ELSEWHERE in kinds:
        masks = masks_of(another_scene(sample))
        regions[ELSEWHERE] = regions_of(masks, names, grid, threshold)
    return np.stack([regions[kind] for kind in kinds])


def another_scene(sample: Sample) -> Sample:
    """Return another scene of the task, of the same size.

    Raises:
        TaskError: none is found.
    """
    first = int(sample.id) + OTHER_SCENE
    for seed in range(first, first + 100):
        other = tasks.make(sample.task, seed, num_frames=sample.num_frames)
        if other.size == sample.size:
            return other
    raise TaskError(f"--task {sample.task}: no other scene is of the size of {sample.id}, {sample.size}.")


__all__ = ["ELSEWHERE", "MOVED", "OWN", "another_scene", "regions_by_kind"]
