"""Runs that a run is compared with, to say how far two runs are apart by themselves."""

from __future__ import annotations

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


__all__ = ["partners"]
