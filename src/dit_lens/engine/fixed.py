"""Which latent frames a pipeline gives and puts back: what no velocity moves says nothing of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from dit_lens.engine.in_place import reads_refused, scheduler_in_place
from dit_lens.families.latents import apart

if TYPE_CHECKING:
    from dit_lens.engine.batch import Batch

FAR = 1000.0
"""A velocity that moves latents of any type by more than they have digits."""


@torch.no_grad()
def fixed_frames(batch: Batch) -> int:
    """Return how many of a batch's first latent frames stay as they are, whatever the model says.

    The first frame of models that carry the picture in their latents (Wan 2.2 TI2V, LTX-2, HunyuanVideo's token replacement) is
    such a frame. A model that is given the picture beside the latents, as Wan's I2V and the organisms are, makes all of them. A
    step is taken from the same latents with two velocities, without the model: a frame that comes out the same is fixed.

    Args:
        batch: the rows; all have as many.

    Returns:
        How many. 0 where that would be all frames, which leaves nothing to look at.
    """
    pipe, scheduler, batching = batch.specimen.pipe, batch.scheduler, batch.batching
    start, inputs = apart(batch.noise[:1])["video"], batch.inputs.of_branch(batch.layout.branches[0], [0])
    step = int(np.argmin(np.diff([*batch.sigmas, 0.0])))  # the widest one
    ends = []
    with scheduler_in_place(pipe, scheduler, batching.place, step), reads_refused(pipe):
        for number in (0.0, FAR):
            velocity = torch.full_like(start, number)
            blended = batching.blend(scheduler, scheduler.timesteps[step], velocity, start, inputs, "video")
            ends.append(batching.settle(batching.advance(scheduler, blended, step, start.clone()), inputs))
    is_fixed = (ends[0] == ends[1]).all(4).all(3).all(1)[0].tolist()
    count = [*is_fixed, False].index(False)
    return count if count < len(is_fixed) else 0


__all__ = ["fixed_frames"]
