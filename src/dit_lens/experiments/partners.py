"""Runs that a run is compared with, to say how far two runs are apart by themselves."""

from __future__ import annotations

from collections.abc import Container
from typing import TYPE_CHECKING

from dit_lens.tasks.pairs import numbers

if TYPE_CHECKING:
    from dit_lens.engine.batch import Batch


def partners(batch: Batch) -> dict[str, dict[int, int]]:
    """Return the pairs that are compared: by what differs, the number of a pair to that of the other one.

    `seed`: each with the next one of its sample. `sample`: samples by two, each with the one beside it, seed by seed, so that no
    sample is in two couples and couples are independent; they stand at the first of the two. Which two these are depends on the
    block, and the last sample of an odd number is left alone.
    """
    samples = numbers(batch.pairs)
    pairs_of: dict[int, list[int]] = {}
    for pair, sample in enumerate(samples):
        pairs_of.setdefault(sample, []).append(pair)
    groups = list(pairs_of.values())
    seeds = {
        pair: group[(n + 1) % len(group)]
        for group in groups
        if len(group) > 1
        for n, pair in enumerate(group)
    }
    couples = zip(groups[::2], groups[1::2], strict=False)
    return {
        "seed": seeds,
        "sample": {a: b for one, other in couples for a, b in zip(one, other, strict=False)},
    }


NO_REFERENCE = {
    "seed": "one noise seed of each sample: take more --seeds",
    "sample": "fewer than 2 couples of samples stand side by side in a block: take more --samples, or a larger --block",
}
"""Why two runs are not compared, by what differs between them."""


def told_missing(references: Container[str]) -> dict[str, str]:
    """Return why references are missing, for a summary.

    Args:
        references: by what differs, "seed" and "sample": those of at least 2 samples, which an interval takes.
    """
    return {f"no runs of another {n}": why for n, why in NO_REFERENCE.items() if n not in references}


__all__ = ["partners", "told_missing"]
