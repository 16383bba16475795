"""What a study costs, said before it begins."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from tqdm import tqdm

from dit_lens.engine.sweep import Arm
from dit_lens.errors import DitLensError, TaskError
from dit_lens.experiments.options import StudyOptions
from dit_lens.experiments.samples import batch_of, pairs_of
from dit_lens.tasks.sample import Sample

if TYPE_CHECKING:
    from dit_lens.engine.batch import Batch
    from dit_lens.lens import Lens

Runs = Callable[["Batch"], float]
"""A batch to how many whole runs a study makes of each of its pairs, the clean one counted."""


class RefusedError(TaskError):
    """No sample can be measured by these options: the study ends, and what an earlier one came to stays."""


def runs_of_arms(batch: Batch, arms: Sequence[Arm]) -> float:
    """Return how many whole runs the arms of a sweep cost for a pair: an arm is the clean run up to its first edit."""
    total = 1.0
    for arm in arms:
        edits = arm(0) if callable(arm) else arm
        first = min((min(batch.binding(edit).steps) for edit in edits), default=batch.steps)
        total += (batch.steps - first) / batch.steps
    return total


def announce(
    name: str, lens: Lens, count: int, options: StudyOptions, runs: Runs, block: Sequence[Sample]
) -> None:
    """Say on stderr how many runs a study makes, and how long these take, by the time of two steps of one row.

    Args:
        name: of the script.
        lens: the model.
        count: of the study's samples.
        options: of the script.
        runs: gives the whole runs of each pair.
        block: samples that are measured first: their batch is compared with the pipeline's loop once, here.

    Raises:
        RefusedError: a place that the options name does not exist in the batch.
    """
    batch = batch_of(lens, pairs_of(block, options), options)
    try:
        each = runs(batch)
    except DitLensError as error:
        raise RefusedError(str(error)) from error
    pairs = count * options.seeds
    begun = time.perf_counter()
    x = batch.step(0, batch.noise[:1], rows=[0]).latents
    if batch.steps > 1:
        begun = time.perf_counter()  # the first step warms up
        batch.step(1, x, rows=[0])
    seconds = (time.perf_counter() - begun) * batch.steps * each * pairs
    tqdm.write(
        f"{name}: {count} samples x {options.seeds} seeds x {each:.1f} runs = {pairs * each:,.0f} runs of {batch.steps} "
        f"steps; {_spoken(seconds)} by the speed of one row alone, less where rows share a forward.",
        file=sys.stderr,
    )


def announce_fit(what: str, lens: Lens, scenes: Sequence[Sample], options: StudyOptions, runs: Runs) -> None:
    """Say on stderr what a fit costs, which is made on training scenes of one noise seed each; see `announce`.

    Args:
        what: is fitted.
        lens: the model.
        scenes: that it is fitted on.
        options: of the script.
        runs: gives the whole runs of each scene.
    """
    announce(what, lens, len(scenes), replace(options, seeds=1), runs, scenes[: options.block])


def _spoken(seconds: float) -> str:
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"


def spoken_bytes(count: float) -> str:
    """Return a number of bytes in the unit in which it is read."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} bytes"


__all__ = ["RefusedError", "Runs", "announce", "announce_fit", "runs_of_arms", "spoken_bytes"]
