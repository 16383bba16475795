"""What takes the place of some frames of a run, in its latents or its states, and another scene beside it to take it from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dit_lens import tasks
from dit_lens.controls import placebo
from dit_lens.edits import generator_at
from dit_lens.errors import TaskError
from dit_lens.plan.functions import options
from dit_lens.plan.places import Spot
from dit_lens.plan.plan import Placed
from dit_lens.plan.selectors import at as place_at
from dit_lens.tasks.sample import Sample

if TYPE_CHECKING:
    from dit_lens.engine.batch import Batch
    from dit_lens.engine.stepped import Stepped
    from dit_lens.engine.visitor import Place

SCENE, RIGHT, ANOTHER = "another scene", "right answer", "another answer"
OF_LATENTS = ("zeros", "mean over time", "token shuffle", SCENE, RIGHT, ANOTHER, "itself")
"""What x0 of the latents becomes."""
OF_STATES = ("zeros", "token mean", "token shuffle", SCENE)
"""What the output of a block becomes."""
OTHER_SCENE = 500_000_000
"""Added to the seed of a scene for that of another one."""

Source = Callable[[Spot], Tensor]
"""A place to what stands there elsewhere, [frame, y, x, channel]."""


@options
def plant(
    h: Tensor, at: Spot, x0: Tensor, *, edit: Callable[[Tensor, Spot], Tensor], noise: Tensor
) -> Tensor:
    """Put another belief into latents at their noise level: x_s becomes (1 - sigma_s) z + sigma_s eps.

    z is what an edit makes of x0 of the step before, and eps the noise that the run began with: of what the run has written
    nothing goes on but what z takes from x0. The noise that its latents imply would hold, with the sign turned, what was
    taken away before.

    Args:
        h: latents x_s, [frame, y, x, channel].
        at: the place, from step 1 on.
        x0: of the step before, on the same grid.
        edit: of the belief.
        noise: that the run began with, on the same grid.
    """
    exact = torch.promote_types(h.dtype, torch.float32)
    belief = edit(x0.to(exact), at)
    return ((1 - at.sigma) * belief + at.sigma * noise.to(h.device, exact)).to(h.dtype)


plant.function.reads_x0 = True  # type: ignore[attr-defined]
plant.function.site = "latents"  # type: ignore[attr-defined]


@options
def overwrite(
    h: Tensor, at: Spot, *, content: str, frames: Sequence[int], source: Source | None = None
) -> Tensor:
    """Put something else into some frames of a value [frame, y, x, channel].

    | content | a token of these frames becomes |
    |---|---|
    | zeros | 0 |
    | mean over time | the mean of its cell over these frames |
    | token mean | the mean of all tokens of these frames |
    | token shuffle | another token of these frames, drawn without replacement, anew at each place |
    | itself | itself |
    | any other | what `source` gives there |
    """
    if content == "itself":
        return h
    inside = h[list(frames)]
    if source is not None:
        new = source(at).to(h)[list(frames)]
    elif content == "zeros":
        new = torch.zeros_like(inside)
    elif content == "token shuffle":
        tokens = inside.flatten(0, 2)
        order = torch.randperm(len(tokens), generator=generator_at(at, "scratch", 0))
        new = tokens[order.to(tokens.device)].view_as(inside)
    else:
        dims = {"mean over time": (0,), "token mean": (0, 1, 2)}[content]
        new = inside.mean(dims, keepdim=True).expand_as(inside)
    out = h.clone()
    out[list(frames)] = new
    return out


@dataclass(frozen=True)
class Change:
    """Some frames of a run, replaced at some steps.

    Attributes:
        content: what takes their place, of `OF_LATENTS`; of a layer's states of `OF_STATES`.
        steps: at which they are replaced, from 1 on.
        frames: latent frames.
        is_placebo: whether what would be replaced (x0, or a state) is changed by as much in a random direction instead
            (`dl.controls.placebo`).
        layer: whose block's output it is; None for the latents.
    """

    content: str
    steps: Sequence[int]
    frames: Sequence[int]
    is_placebo: bool
    layer: int | None = None

    def placed(self, noise: Tensor, source: Source | None) -> list[Placed]:
        """Return the edits of one run.

        Args:
            noise: that the run began with, [channel, frame, y, x].
            source: as in `overwrite`, of contents that take one.
        """
        frames, steps = list(self.frames), list(self.steps)
        edit = overwrite(content=self.content, frames=frames, source=source)
        edit = placebo(edit=edit) if self.is_placebo else edit
        if self.layer is not None:
            return [Placed(edit, place_at(site="block", layer=self.layer, step=steps, frame=frames))]
        planted = plant(edit=edit, noise=noise.permute(1, 2, 3, 0))
        return [Placed(planted, place_at(site="latents", step=steps, frame=frames))]


class OtherScenes:
    """Another scene beside every pair, whose clean run steps together with it.

    Args:
        batch: a row for each pair.
        watch: the states that are wanted, by (site, branch, layer).
    """

    def __init__(self, batch: Batch, watch: Sequence[Place]) -> None:
        self.batch, self.watch = batch, watch
        self._latents = self._x0 = self._x0_before = batch.noise
        self._states: dict[Place, Tensor] = {}

    def follow(self, step: int, _: Stepped) -> None:
        """Take a step; until the next one, `source` gives x0 of the step before it, and the states of this one."""
        out = self.batch.step(step, self._latents, watch=self.watch)
        self._x0_before, self._x0 = self._x0, out.x0
        self._latents, self._states = out.latents, out.states

    def source(self, pair: int) -> Source:
        """Return what stands in the scene beside a pair."""

        def look_up(at: Spot) -> Tensor:
            if at.layer is None:
                return self._x0_before[pair].permute(1, 2, 3, 0)
            return self._states[at.site, str(at.branch), at.layer][pair]

        return look_up


def other_scene(sample: Sample, task: str) -> Sample:
    """Return another scene of a sample's task, the same one every time, whose first frame is another."""
    for n in range(100):
        other = tasks.make(task, int(sample.id) + OTHER_SCENE + n, num_frames=sample.num_frames)
        assert other.truth is not None and sample.truth is not None
        if not np.array_equal(other.truth[0], sample.truth[0]):
            return other
    raise TaskError(f"--task {task}: it has too few scenes to put another one beside {sample.id}.")


__all__ = [
    "ANOTHER",
    "OF_LATENTS",
    "OF_STATES",
    "RIGHT",
    "SCENE",
    "Change",
    "OtherScenes",
    "Source",
    "other_scene",
    "overwrite",
    "plant",
]
