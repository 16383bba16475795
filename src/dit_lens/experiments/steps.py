"""The clean steps of a batch, one after another, and how far x0 is from its end at each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from dit_lens.analysis import trajectory_distance

if TYPE_CHECKING:
    import xarray as xr
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


def distance_to_end(x0: xr.DataArray) -> xr.DataArray:
    """Return the root mean square distance of x0 at every step to that of the last one, [step], over frames that are generated.

    A frame whose x0 is the same at all steps, to the bit, is given: the pipeline puts it back, and nothing moves it.

    Args:
        x0: of a run, [step, frame, latent_y, latent_x, latent_channel].
    """
    off = trajectory_distance(x0).to_final_frame
    moves = (off > 0).any("step")
    off = off.where(moves | ~moves.any())
    return np.sqrt((off**2).mean("frame"))


__all__ = ["clean_steps", "distance_to_end"]
