"""Pairs of a sample and a noise seed: what a clean trajectory starts from."""

from __future__ import annotations

from collections.abc import Sequence

from dit_lens.errors import PlanError
from dit_lens.tasks.sample import Sample

Pair = tuple[Sample, int]
"""A sample and a noise seed."""


def label(sample: Sample) -> str:
    """Return `task/id`: what results call a sample."""
    return f"{sample.task}/{sample.id}"


def numbers(pairs: Sequence[Pair]) -> list[int]:
    """Number the pairs by their sample, which may be another object in every pair.

    Raises:
        PlanError: the pairs of a sample do not stand side by side.
    """
    counted: list[int] = []
    before: dict[str, list[Sample]] = {}
    for n, (sample, _) in enumerate(pairs):
        if n == 0 or not _is_same(sample, pairs[n - 1][0]):
            namesakes = before.setdefault(label(sample), [])
            if any(_is_same(sample, other) for other in namesakes):
                raise PlanError(
                    f"The pairs of {label(sample)} do not stand side by side: sort them by sample."
                )
            namesakes.append(sample)
            counted.append(counted[-1] + 1 if counted else 0)
        else:
            counted.append(counted[-1])
    return counted


def _is_same(a: Sample, b: Sample) -> bool:
    return a is b or a == b


def by_shape(samples: Sequence[Sample]) -> list[list[Sample]]:
    """Sort samples by their size, number of frames and whether they have an image: those go through the model together."""
    shapes: dict[object, list[Sample]] = {}
    for sample in samples:
        shapes.setdefault((sample.size, sample.num_frames, sample.image is None), []).append(sample)
    return list(shapes.values())


def together(pairs: Sequence[Pair]) -> list[tuple[Sample, list[int]]]:
    """Gather the noise seeds of every sample, in the order in which samples first come.

    Raises:
        PlanError: no pairs, a pair that comes twice, two samples of one label, or samples with several numbers of seeds.
    """
    gathered: dict[str, tuple[Sample, list[int]]] = {}
    for pair in pairs:
        if not (isinstance(pair, tuple | list) and len(pair) == 2 and isinstance(pair[0], Sample)):
            raise PlanError(f"pairs hold {pair!r}: give (sample, noise seed), such as (dl.tasks.maze(7), 0).")
        sample, seed = pair[0], int(pair[1])
        first, seeds = gathered.setdefault(label(sample), (sample, []))
        if first is not sample and first != sample:
            raise PlanError(
                f"Two samples are called {label(sample)}: tell them apart with sample.with_(id=...)."
            )
        if seed in seeds:
            raise PlanError(f"{label(sample)} with noise seed {seed} comes twice: give every pair once.")
        seeds.append(seed)
    counts = {name: len(seeds) for name, (_, seeds) in gathered.items()}
    if len(set(counts.values())) != 1:
        raise PlanError(
            "pairs: give (sample, noise seed) pairs, as many seeds for each sample; "
            + (f"these samples have {counts}." if counts else "there are none.")
        )
    return list(gathered.values())


__all__ = ["Pair", "by_shape", "label", "numbers", "together"]
