"""What the body of a trace holds of the model: copies. One that is written to takes the place of what it is a copy of.

The tensors of a model share memory: the first block's input may be a view of the latents, and queries, keys and values are
made of one tensor. A write into the model's own would reach all of them, and another branch; a copy reaches its own place.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from dit_lens.engine.recorder import same_bits
from dit_lens.errors import CaptureError


class StatePart(Protocol):
    """A value in what a place of the model carries."""

    @property
    def what(self) -> str:
        """The value in words."""

    def key(self, carried: Any) -> Hashable:
        """Return what tells it from the other values there."""

    def pick(self, carried: Any) -> Tensor:
        """Return it, as the model has it."""

    def put(self, carried: Any, new: Tensor) -> Any:
        """Return what the place carries with a copy of another value; refuse one of another shape or type."""

    def check(self, carried: Any, new: Any) -> None:
        """Refuse another value that `put` would."""


@dataclass
class BodyCopy:
    """What the body holds of one value.

    Attributes:
        part: The value.
        tensor: A copy of it, or what the body has set in its place.
        writes: Torch's count of writes into the copy when it was handed out; None where it was set.
        source: Torch's count of writes into the model's own tensor then; None where it has none.
    """

    part: StatePart
    tensor: Tensor
    writes: int | None
    source: int | None

    @property
    def is_written(self) -> bool:
        """Whether the body has set it, or written into it."""
        return self.writes is None or self.tensor._version != self.writes

    def refuse_two_writers(self, carried: Any) -> None:
        """Raise CaptureError where the model's own tensor was written to as well, through an envoy of nnsight's."""
        if self.source is not None and _writes(self.part.pick(carried)) != self.source:
            raise CaptureError(
                f"{self.part.what} was written to through an envoy as well, which the body's copy does not have: write to one "
                "of the two."
            )

    def refuse_uncounted(self, carried: Any) -> None:
        """Raise CaptureError where the copy was written to, and torch has not counted it."""
        own = self.part.pick(carried)
        if _writes(own) == self.source and not same_bits(self.tensor, own):
            raise CaptureError(
                f"{self.part.what} was changed in place in a way that torch does not count (.data, .numpy()), so it would not "
                "act: write into the tensor itself, h[...] = ..., or set the value."
            )


class BodyCopies:
    """What the body holds of a place where the model waits.

    Args:
        visit: Of the place: nnsight's name, and the number of the visit.
        carried: What the model has there, any tree of tensors.
    """

    def __init__(self, visit: tuple[str, int], carried: Any) -> None:
        self.visit, self.carried = visit, carried
        self._copies: dict[Hashable, BodyCopy] = {}

    def read(self, part: StatePart) -> Tensor:
        """Return the body's tensor of a value: the same one each time."""
        key = part.key(self.carried)
        if key not in self._copies:
            own = part.pick(self.carried)
            copy = _counted_copy(own)
            self._copies[key] = BodyCopy(part, copy, copy._version, _writes(own))
        return self._copies[key].tensor

    def set(self, part: StatePart, value: Tensor) -> None:
        """Let another tensor of the body's take the place of a value."""
        part.check(self.carried, value)
        self._copies[part.key(self.carried)] = BodyCopy(part, value, None, None)

    def outcome(self, first: bool) -> Any:
        """Return what the model goes on with: the very same where nothing is written.

        Args:
            first: Whether the body holds something of this place for the first time: then also what torch does not count is
                looked for.

        Raises:
            CaptureError: There is some, or the model's own was written to as well.
        """
        out = self.carried
        for copy in self._copies.values():
            if copy.is_written:
                copy.refuse_two_writers(self.carried)
                out = copy.part.put(out, copy.tensor)
            elif first:
                copy.refuse_uncounted(self.carried)
        return out


def _counted_copy(value: Tensor) -> Tensor:
    """Return a copy whose writes torch counts, which it does not for tensors of inference mode."""
    if not torch.is_inference_mode_enabled():
        return value.clone()
    with torch.inference_mode(False), torch.no_grad():
        return value.clone()


def _writes(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version


__all__ = ["BodyCopies", "BodyCopy", "StatePart"]
