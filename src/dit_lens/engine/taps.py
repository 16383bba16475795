"""Taps: edits of the engine's own, by which the gradient of a number with respect to a state is read at its place.

A tap leaves a state as it is, or moves it towards another one. Where gradients are on, it listens: when the backward pass comes
by, the gradient is multiplied by the difference to the other state and summed over channel at once, so that no gradient is held.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from dit_lens.engine.pipeline_check import rounding
from dit_lens.errors import PlanError
from dit_lens.plan.functions import Configured
from dit_lens.plan.places import Spot

Key = tuple[str, str | None, int | None, int | None]
"""Site, branch, layer and head of a state; branch and layer are None on the latent grid, the head where a site has none."""


def key_of(at: Spot) -> Key:
    """Return the key of a place."""
    return at.site, at.branch, at.layer, at.head


class KeptStates:
    """Keeps a row's states, and leaves them as they are; an edit, which sees a value of any shape after the row's own edits.

    Attributes:
        states: by place, [frame, y, x, channel].
    """

    def __init__(self) -> None:
        self.states: dict[Key, Tensor] = {}

    def __repr__(self) -> str:
        return "states"

    @property
    def edit(self) -> Callable[[Tensor, Spot], Tensor]:
        """The edit that keeps."""
        return Configured(attributed, {"kept": self})


def attributed(h: Tensor, at: Spot, *, kept: KeptStates) -> Tensor:
    """Keep the state of a row, and leave it as it is."""
    kept.states[key_of(at)] = h.detach().clone()  # the model may write over its own memory
    return h


@dataclass(repr=False)
class Taps:
    """The taps of one row at one step.

    Attributes:
        targets: the states of the clean row, by place, [frame, y, x, channel].
        share: how far every tapped state is moved to its target. None: not at all, and what lies before it gets its
            gradient, too.
        products: (target - state) . gradient, summed over channel, by place, [frame, y, x]. A state on which the number
            does not depend has none.
        leaves: states from which on gradients are known.
        listens: whether the row runs for its gradient now.
        follows: whether what the step starts from has a gradient, and with it all states that follow from it.
        cut_off: states of the row that have no gradient though the start has one, by place, where it `follows`.
        compares: whether the row runs from another start, and states that are cut off may not follow it.
    """

    targets: Mapping[Key, Tensor]
    share: float | None = None
    products: dict[Key, Tensor] = field(default_factory=dict)
    leaves: list[Tensor] = field(default_factory=list)
    listens: bool = False
    follows: bool = False
    cut_off: dict[Key, Tensor] = field(default_factory=dict)
    compares: bool = False

    @property
    def edit(self) -> Callable[[Tensor, Spot], Tensor]:
        """The edit that taps."""
        return Configured(_tapped, {"taps": self})

    def __repr__(self) -> str:
        return "states"

    def tap(self, h: Tensor, at: Spot) -> Tensor:
        """Tap a state, which is the edit's own copy.

        Raises:
            PlanError: the model computes here without gradients, though they are asked for.
        """
        if self.listens and not torch.is_grad_enabled():
            raise PlanError(
                f"{at}: the model computes this state under torch.no_grad or in inference mode, so no gradient comes to it: "
                "leave the place out, or take that off the model."
            )
        if self.listens and self.follows and not h.requires_grad:
            self.cut_off[key_of(at)] = h.clone()
        if self.compares and key_of(at) in self.cut_off and differs(h, self.cut_off[key_of(at)]):
            raise PlanError(
                f"{at}: this state follows from the latents, and no gradient comes from them to it, so what lies before it would "
                "count for nothing: a part of the model before it computes under torch.no_grad, in inference mode, or ends in "
                ".detach()."
            )
        difference = self.targets[key_of(at)] - h.detach()
        if self.share is not None:
            h = h.detach() + self.share * difference
        if not torch.is_grad_enabled():
            return h
        if not h.requires_grad:
            h.requires_grad_()
            self.leaves += [h] if self.listens else []
        if self.listens:
            # By the products alone: a hook that holds the leaves holds the tensor that it hangs on.
            h.register_hook(partial(_multiply, self.products, key_of(at), difference))
        return h


def differs(value: Tensor, other: Tensor) -> bool:
    """Say whether two values differ by more than rounding."""
    largest = float((value - other).abs().max())
    return not largest <= rounding(value.dtype) * float(other.abs().max())


def _tapped(h: Tensor, at: Spot, *, taps: Taps) -> Tensor:
    return taps.tap(h, at)


def _multiply(products: dict[Key, Tensor], key: Key, difference: Tensor, gradient: Tensor) -> None:
    exact = torch.promote_types(gradient.dtype, torch.float32)
    products[key] = (difference.to(exact) * gradient.to(exact)).sum(-1)


__all__ = ["KeptStates", "Key", "Taps", "differs", "key_of"]
