"""What records read of clean runs, kept in memory where it is small, and of what records need nothing is stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from dit_lens.engine.recorder import Recorder
from dit_lens.engine.rows import Row

if TYPE_CHECKING:
    from torch import Tensor

    from dit_lens.engine.batch import Batch
    from dit_lens.plan.plan import Placed
    from dit_lens.store import Variable


class Readings:
    """Takes what the records of one row read, in place of a store.

    Args:
        steps: that are kept.
        layers: that are kept, of the first branch.
        heads: that are kept.

    Attributes:
        values: [step, layer, head, ...] by the name of the record; NaN where nothing was read.
    """

    def __init__(self, steps: Sequence[int], layers: Sequence[int], heads: Sequence[int]) -> None:
        self.steps, self.layers, self.heads = list(steps), list(layers), list(heads)
        self.values: dict[str, NDArray[np.float32]] = {}

    def declare(self, variable: Variable, recorded: Any = None) -> None:
        """Make room for a record, [step, branch, layer, head, ...]."""
        size = len(self.steps), len(self.layers), len(self.heads), *variable.shape[4:]
        self.values[variable.name] = np.full(size, np.nan, np.float32)

    def write(self, name: str, index: Mapping[str, int], values: NDArray[Any]) -> None:
        """Take a step of a record, [branch, layer, head, ...]."""
        of_branch = values[0][self.layers][:, self.heads]
        self.values[name][self.steps.index(index["step"])] = of_branch

    def set_coord(self, name: str, values: Any) -> None:
        """Take no notice: the coordinates are the batch's."""

    def set_recorded(self, name: str, recorded: Any) -> None:
        """Take no notice: what is read is what was asked for."""

    def commit_step(self, step: int, info: Mapping[str, Any] | None = None) -> None:
        """Take no notice: nothing is written."""


def read_runs(
    batch: Batch,
    records: Sequence[Sequence[Placed]],
    readings: Sequence[Readings],
    progress: str,
    shown: Tensor | None = None,
    steps: int | None = None,
) -> Tensor:
    """Run every pair of a batch as it is, with records of its own.

    Args:
        batch: the pairs.
        records: of each pair; each keeps every head apart, on the first branch.
        readings: of each pair, which are filled.
        progress: name of the progress bar.
        shown: clean latents [pair, channel, frame, y, x], which every step starts from, under its own noise level. Default: what
            the step before made.
        steps: how many are taken. Default: all.

    Returns:
        The latents after them, [pair, channel, frame, y, x].
    """
    edits = [batch.binding(edit) for edit in batch.requests[0].plan.edits]
    rows = [
        Row(
            seed,
            edits,
            records=[batch.binding(record, is_edit=False) for record in placed],
            recorders=[Recorder(batch.layout, 1, reading)],
        )
        for (_, seed), placed, reading in zip(batch.pairs, records, readings, strict=True)
    ]
    x = noise = batch.noise
    for step in tqdm(range(batch.steps if steps is None else steps), desc=progress, leave=False):
        if shown is not None:
            x = ((1 - batch.sigmas[step]) * shown + batch.sigmas[step] * noise.to(shown)).to(noise)
        x = batch.advance(step, x, list(range(len(rows))), rows).latents
    return x


__all__ = ["Readings", "read_runs"]
