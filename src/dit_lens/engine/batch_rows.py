"""The rows of a batch: which pairs go through a model together, in which parts, and what the plan places on each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from dit_lens.engine.rows import Row
from dit_lens.errors import PlanError
from dit_lens.plan.places import whole_number
from dit_lens.tasks.pairs import check_pair

if TYPE_CHECKING:
    from dit_lens.engine.batch import Batch
    from dit_lens.engine.recorder import Recorder
    from dit_lens.families.family import Batching
    from dit_lens.families.specimen import Specimen
    from dit_lens.tasks.sample import Sample


def over_seeds(batch: Batch) -> bool:
    """Say whether an edit of the batch's plan sees the seeds of a sample together."""
    return any(edit.over_seeds for edit in batch.requests[0].plan.edits)


def rows_of(batch: Batch, pairs: Sequence[int], recorders: Mapping[int, Recorder]) -> list[Row]:
    """Return a row for each of some pairs, which go through the model together.

    Args:
        batch: whose plan is placed on every row.
        pairs: their numbers.
        recorders: where the records of a pair go. A pair without one records nothing.
    """
    plan = batch.requests[pairs[0]].stages[0].plan
    edits = [batch.binding(edit) for edit in plan.edits]
    records = [batch.binding(record, is_edit=False) for record in plan.records]
    group = 0 if over_seeds(batch) else None
    return [
        Row(
            batch.pairs[n][1],
            edits,
            records if n in recorders else (),
            [recorders[n]] if n in recorders else [],
            group=group,
        )
        for n in pairs
    ]


def batching_of(specimen: Specimen, pairs: Sequence[tuple[Sample, int]], at_once: int) -> Batching:
    """Return the family's way to batch, once the samples are seen to fit together."""
    batching = specimen.family.batching
    if batching is None:
        raise PlanError(
            f"Family {specimen.family.name} does not say how to batch: use lens.run, a run at a time."
        )
    for pair in pairs:
        check_pair(pair)
    if not pairs or whole_number(at_once) is None or at_once < 1:
        raise PlanError(
            f"{len(pairs)} pairs, at_once={at_once}: a batch takes at least one pair, and one row at a time."
        )
    sizes = sorted({(*(s.size or ()), s.num_frames) for s, _ in pairs})
    if len(sizes) > 1:
        raise PlanError(f"The samples of a batch have one (height, width, num_frames); these have {sizes}.")
    for sample, _ in pairs:
        if not isinstance(sample.prompt, str):
            raise PlanError(f"{sample.task}/{sample.id} is a prompt batch: give each prompt as a sample.")
    return batching


def parts(groups: Sequence[int | None], at_once: int) -> Iterator[slice]:
    """Cut rows into parts of at most `at_once`; those of one group stay together, also if they are more.

    Args:
        groups: number of each row's group; None where it has none.
        at_once: rows in one forward.
    """
    start, count = 0, len(groups)
    while start < count:
        stop = min(start + at_once, count)
        while start < stop < count and groups[stop] is not None and groups[stop] == groups[stop - 1]:
            stop -= 1
        if stop == start:
            stop = start + sum(group == groups[start] for group in groups)
        yield slice(start, stop)
        start = stop
