"""The rows of whole runs in a batch: what the plan of the batch places on each, and where its records go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from dit_lens.engine.rows import Row

if TYPE_CHECKING:
    from dit_lens.engine.batch import Batch
    from dit_lens.engine.recorder import Recorder


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
