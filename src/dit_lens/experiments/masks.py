"""Where the objects of samples are: as the scene says, or as files of the user's say (`--masks DIR`).

A folder has one file for each sample, `DIR/TASK/ID.png` (of VBVR-Bench `DIR/SPLIT/TASK/ID.png`), or `.npy` in its place. It
holds a number for every pixel: 0 is background, 1 the object that the prompt names, 2 the other objects, 3 and more further
ones. A PNG is [height, width] in grey levels, the same in all frames; one of 0 and 255 alone shows the named object. An NPY is
that, or [time, height, width], of whole numbers or bools. Sizes are those of the video that the model makes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dit_lens.analysis.masked import token_shares
from dit_lens.errors import DitLensError, TaskError
from dit_lens.tasks.files import check
from dit_lens.tasks.pairs import label
from dit_lens.tasks.sample import Sample
from dit_lens.tasks.scene import Masks

NAMED, OTHERS, BACKGROUND = "named", "others", "background"
"""The objects that the prompt names, the other ones, and all that is no object's."""
ENDINGS = (".png", ".npy")


def masks_of(sample: Sample, folder: Path | None = None) -> Masks:
    """Return where each object of a sample is, [time, height, width]; [1, height, width] where it is the same at all times.

    Args:
        sample: with a scene, where there is no folder.
        folder: of mask files. Default: the scene's own masks.

    Raises:
        TaskError: the sample has no scene, or its file is missing, cannot be read, or is of another size.
    """
    if folder is None:
        return sample.masks
    path = file_of(sample, folder)
    numbers = _read(path)
    sizes = {(time, sample.height, sample.width) for time in (1, sample.num_frames)}
    if numbers.shape not in sizes:
        raise TaskError(
            f"{path}: the mask is {numbers.shape} [time, height, width]; the video of {label(sample)} takes one of "
            f"{' or '.join(map(str, sorted(sizes)))}."
        )
    names = {1: NAMED, 2: OTHERS}
    return {names.get(n, f"object {n}"): numbers == n for n in np.unique(numbers).tolist() if n}


def file_of(sample: Sample, folder: Path) -> Path:
    """Return the mask file of a sample.

    Raises:
        TaskError: there is none, or there are two.
    """
    stem = folder / sample.subfolder
    found = [path for end in ENDINGS if (path := stem.with_name(stem.name + end)).is_file()]
    if len(found) != 1:
        wanted = " or ".join(f"{stem}{end}" for end in ENDINGS)
        raise TaskError(f"--masks {folder}: there is {'no' if not found else 'more than one'} {wanted}.")
    return found[0]


def digests(samples: Iterable[Sample], folder: Path) -> dict[str, str]:
    """Read the mask files of all samples, before anything is computed; return a hash of each by `task/id`.

    Raises:
        TaskError: one is missing, cannot be read, shows no object, or is of another size.
    """
    out = {}
    for sample in samples:
        if not masks_of(sample, folder):
            raise TaskError(f"{file_of(sample, folder)}: the mask shows no object, all of it is 0.")
        out[label(sample)] = hashlib.sha256(file_of(sample, folder).read_bytes()).hexdigest()
    return out


def _read(path: Path) -> NDArray[np.int64]:
    """Read the numbers of a mask file, [time, height, width]."""
    check(path)
    try:
        if path.suffix == ".npy":
            values = np.load(path, allow_pickle=False)
        else:
            with Image.open(path) as picture:
                values = np.array(picture)
    except Exception as error:  # a decoder of damaged bytes raises anything
        raise TaskError(f"{path}: the mask cannot be read ({type(error).__name__}: {error}).") from error
    if values.dtype.kind not in "biu" or values.ndim not in (2, 3):
        raise TaskError(
            f"{path}: the mask is {values.dtype} of shape {values.shape}; give whole numbers or bools, [height, width] or, "
            "as .npy, [time, height, width]."
        )
    if path.suffix == ".png" and values.ndim != 2:
        raise TaskError(f"{path}: the mask has colours; give grey levels, a number for each object.")
    numbers = values.astype(np.int64)
    if path.suffix == ".png" and set(np.unique(numbers).tolist()) <= {0, 255}:
        numbers = numbers // 255
    return numbers if numbers.ndim == 3 else numbers[None]


def regions_of(
    masks: Masks, names: Sequence[str], grid: Sequence[int], threshold: float
) -> NDArray[np.bool_]:
    """Return which tokens each object takes up, and which no object does.

    Args:
        masks: where the objects are, by name.
        names: of the objects that are wanted; one that is not there takes up no token.
        grid: (frame, y, x) of the tokens.
        threshold: share of a token's pixels from which on it is the object's.

    Returns:
        [object, frame, y, x]; the last is the background, tokens of none of `masks`.

    Raises:
        DitLensError: a mask does not fit the grid.
    """
    taken = {}
    for name, mask in masks.items():
        try:
            taken[name] = token_shares(mask, grid) >= threshold
        except DitLensError as error:
            raise TaskError(f"The mask of {name!r}: {error}") from None
    nothing = np.zeros(tuple(grid), bool)
    background = ~np.any([nothing, *taken.values()], 0)
    return np.stack([*(taken.get(name, nothing) for name in names), background])


__all__ = ["BACKGROUND", "NAMED", "OTHERS", "digests", "file_of", "masks_of", "regions_of"]
