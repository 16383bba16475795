"""The object that a prompt names, and the word that names it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dit_lens.experiments.masks import NAMED, OTHERS, regions_of
from dit_lens.plan.text import TextToken, tokens_of_word
from dit_lens.tasks.objects import KINDS
from dit_lens.tasks.sample import Sample

WORDS = ("the object's word", "other words", "special tokens", "padding")
"""Groups of a prompt's tokens."""
EVERYWHERE, ON_IT, ON_OTHERS = "everywhere", "object", "others"
MOVED = ", masks moved"
REGIONS = (EVERYWHERE, ON_IT, ON_OTHERS, ON_IT + MOVED, ON_OTHERS + MOVED)
"""Where tokens look from; the last two are a control, the masks moved by half of the board."""
DRAWN = frozenset({"trail", "rings", "answer"})
"""What the answer draws, which is no object of the scene."""


@dataclass(frozen=True)
class Prompted:
    """An object that a prompt names.

    Attributes:
        word: of the prompt.
        masks: where the object is, and the other objects, [time, height, width].
    """

    word: str
    masks: dict[str, NDArray[np.bool_]]


def prompted(sample: Sample) -> Prompted | None:
    """Return the object that the prompt of a sample names; None where the scene is not known, or it names none of its objects.

    Of `circle` it is what is to be ringed. Of other tasks, the first mask that is called by a word of the prompt, singular or
    plural; the other objects are all other masks but what the answer draws.
    """
    if sample.scene is None or not isinstance(sample.prompt, str):
        return None
    masks, words = sample.masks, sample.prompt.split()
    if NAMED in masks:
        word = next((word for word in words if word in KINDS), None)
        return None if word is None else Prompted(word, {ON_IT: masks[NAMED], ON_OTHERS: masks[OTHERS]})
    for name, mask in masks.items():
        word = next((word for word in words if word.rstrip("s") == name.rstrip("s")), None)
        if word is not None:
            others = [m for n, m in masks.items() if n != name and n.split()[-1] not in DRAWN]
            return Prompted(word, {ON_IT: mask, ON_OTHERS: np.any(np.stack([mask & False, *others]), 0)})
    return None


def regions_to_look_from(
    named: Prompted | None, grid: tuple[int, int, int], threshold: float
) -> NDArray[np.bool_]:
    """Return the tokens of each of `REGIONS`, [region, frame, y, x]; empty where no object is named.

    A token of both is of neither. A moved mask is cut where it falls onto an object.

    Args:
        named: the object.
        grid: (frame, y, x) of the tokens.
        threshold: share of a token's pixels from which on it is the object's.
    """
    out = np.zeros((len(REGIONS), *grid), bool)
    out[0] = True
    if named is not None:
        *both, background = regions_of(named.masks, (ON_IT, ON_OTHERS), grid, threshold)
        own = np.stack(both)
        own &= ~own.all(0)
        out[1:3] = own
        out[3:5] = np.roll(own, [n // 2 for n in grid[1:]], (2, 3)) & background
    return out


def groups_of(tokens: Sequence[TextToken], word: str | None) -> tuple[int, ...]:
    """Return the number of each token's group among `WORDS`."""
    named = set(() if word is None else tokens_of_word(word, tokens))
    kinds = {"word": 1, "special": 2, "padding": 3}
    return tuple(0 if n in named else kinds[token.kind] for n, token in enumerate(tokens))


__all__ = [
    "EVERYWHERE",
    "MOVED",
    "ON_IT",
    "ON_OTHERS",
    "REGIONS",
    "WORDS",
    "Prompted",
    "groups_of",
    "prompted",
    "regions_to_look_from",
]
