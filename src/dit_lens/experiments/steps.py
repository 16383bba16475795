"""The clean steps of a batch, one after another: what each starts from, and what it gives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from tqdm import tqdm

if TYPE_CHECKING:
    from torch import Tensor

    from dit_lens.engine.batch import Batch
    from dit_lens.engine.stepped import Stepped
    from dit_lens.engine.visitor import Place


def clean_steps(
    batch: Batch, watch: Sequence[Place] = (), progress: str = "runs"
) -> Iterator[tuple[int, Tensor, Stepped]]:
    """Run every pair of a batch without edits, step by step.

    Args:
        batch: the pairs.
        watch: states that every step brings along, by (site, branch, layer).
        progress: name of the progress bar.

    Yields:
        The step, the latents that it starts from, [row, channel, frame, y, x], and what it gives.
    """
    x = batch.noise
    for step in tqdm(range(batch.steps), desc=progress, leave=False):
        now = batch.step(step, x, watch=watch)
        yield step, x, now
        x = now.latents


__all__ = ["clean_steps"]
