"""Pairs of a sample and a noise seed: what a clean trajectory starts from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dit_lens.errors import PlanError
from dit_lens.plan.content import content
from dit_lens.plan.digests import digest
from dit_lens.tasks.sample import Sample

Pair = tuple[Sample, int]
"""A sample and a noise seed."""


def check_pair(pair: Any) -> None:
    """Refuse what is no pair.

    Raises:
        PlanError: it says what to give.
    """
    if not (isinstance(pair, tuple | list) and len(pair) == 2 and isinstance(pair[0], Sample)):
        raise PlanError(f"pairs hold {pair!r}: give (sample, noise seed), such as (dl.tasks.maze(7), 0).")


def label(sample: Sample) -> str:
    """Return `task/id`: what results call a sample."""
    return f"{sample.task}/{sample.id}"


def numbers(pairs: Sequence[Pair]) -> list[int]:
    """Number the pairs by their sample, which may be another object in every pair.

    Raises:
        PlanError: the pairs of a sample do not stand side by side.
    """
    counted = counted_by_content([sample for sample, _ in pairs])
    for n, (sample, _) in enumerate(pairs):
        if n and counted[n] < counted[n - 1]:
            raise PlanError(f"The pairs of {label(sample)} do not stand side by side: sort them by sample.")
    return counted


def counted_by_content(samples: Sequence[Sample]) -> list[int]:
    """Number samples in the order in which they first come; those that hold the same have one number."""
    by_object: dict[int, str] = {}
    order: dict[str, int] = {}
    out = []
    for sample in samples:
        if id(sample) not in by_object:
            unnamed: list[str] = []
            key = digest(content(sample, unnamed))
            by_object[id(sample)] = str(id(sample)) if unnamed else key
        out.append(order.setdefault(by_object[id(sample)], len(order)))
    return out


def shape_of(sample: Sample) -> tuple[tuple[int, int] | None, int, bool]:
    """Return size, number of frames, and whether there is an image: samples alike in these go through the model together."""
    return sample.size, sample.num_frames, sample.image is not None


def by_shape(samples: Sequence[Sample]) -> list[list[Sample]]:
    """Sort samples by their size, number of frames and whether they have an image: those go through the model together."""
    shapes: dict[object, list[Sample]] = {}
    for sample in samples:
        shapes.setdefault(shape_of(sample), []).append(sample)
    return list(shapes.values())


def together(pairs: Sequence[Pair]) -> list[tuple[Sample, list[int]]]:
    """Gather the noise seeds of every sample, in the order in which samples first come.

    Raises:
        PlanError: no pairs, a pair that comes twice, two samples of one label, or samples with several numbers of seeds.
    """
    gathered: dict[str, tuple[Sample, list[int]]] = {}
    for pair in pairs:
        check_pair(pair)
        sample, seed = pair[0], int(pair[1])
        first, seeds = gathered.setdefault(label(sample), (sample, []))
        if first is not sample and len(set(counted_by_content([first, sample]))) > 1:
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


__all__ = ["Pair", "by_shape", "check_pair", "counted_by_content", "label", "numbers", "shape_of", "together"]
