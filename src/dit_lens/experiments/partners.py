"""Runs that a run is compared with, to say how far two runs are apart by themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dit_lens.tasks.pairs import numbers

if TYPE_CHECKING:
    from dit_lens.engine.batch import Batch


def partners(batch: Batch) -> dict[str, dict[int, int]]:
    """Return the pair that each is compared with: `seed`, the next one of its sample, and `sample`, that of another sample."""
    samples = numbers(batch.pairs)
    out: dict[str, dict[int, int]] = {"seed": {}, "sample": {}}
    for pair, sample in enumerate(samples):
        for other in (*range(pair + 1, len(samples)), *range(pair)):
            out["seed" if samples[other] == sample else "sample"].setdefault(pair, other)
    return out


__all__ = ["partners"]
