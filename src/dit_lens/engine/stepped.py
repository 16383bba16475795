"""What one step of a batch gave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dit_lens.engine.visitor import Place


@dataclass
class Stepped:
    """What one step gave. Other streams' rows come with each tensor of latents (see `families/latents.py`).

    Attributes:
        velocity: after guidance, [row, channel, frame, y, x].
        x0: the clean latents that it stands for, [row, channel, frame, y, x].
        latents: what the next step starts from, [row, channel, frame, y, x].
        states: watched states by (site, branch, layer), [row, frame, y, x, channel].
    """

    velocity: Tensor
    x0: Tensor
    latents: Tensor
    states: dict[Place, Tensor] = field(default_factory=dict)

    def __getitem__(self, part: slice) -> Stepped:
        states = {place: value[part] for place, value in self.states.items()}
        return Stepped(self.velocity[part], self.x0[part], self.latents[part], states)

    @classmethod
    def cat(cls, parts: Sequence[Stepped]) -> Stepped:
        """Put the rows of several together."""
        if len(parts) == 1:
            return parts[0]
        velocity, x0, latents = (
            torch.cat([getattr(p, n) for p in parts]) for n in ("velocity", "x0", "latents")
        )
        states = {place: torch.cat([p.states[place] for p in parts]) for place in parts[0].states}
        return cls(velocity, x0, latents, states)
