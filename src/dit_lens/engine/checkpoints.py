"""Gradient checkpointing: what runs now, and again in the backward pass.

Of the model's own, the hooks that edit it are gone when it runs again, so an edit there is refused (`is_checkpointed`). The
engine's own, a block at a time, lets the edits act again (`run_again`).
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils import checkpoint

from dit_lens.families.patching import set_attribute, undo_all

if TYPE_CHECKING:
    from dit_lens.engine.visitor import Visitor


def is_checkpointed() -> bool:
    """Say whether what runs now runs again in the backward pass without its edits: a checkpoint that is not `run_again`'s."""
    ours, frame = False, sys._getframe()
    while frame is not None:
        code = frame.f_code
        if code.co_filename == __file__ and code.co_name in ("run", "held"):
            ours = code.co_name == "run"  # until it is left
        elif code.co_filename == checkpoint.__file__ and not ours:
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


@contextmanager
def run_again(blocks: Sequence[nn.Module], visitor: Visitor, dits: Mapping[str, nn.Module]) -> Iterator[None]:
    """Hold of some blocks their input alone, and run each again in the backward pass, with its edits.

    Args:
        blocks: of the model. None of them: nothing is changed.
        visitor: applies the edits.
        dits: the transformer that runs, by the name of its expert.
    """
    undo: list[Callable[[], None]] = []
    try:
        for block in blocks:
            undo.append(set_attribute(block, "forward", _held_by_input(block.forward, visitor, dits)))
        yield
    finally:
        undo_all(undo)()


def _held_by_input(
    forward: Callable[..., Any], visitor: Visitor, dits: Mapping[str, nn.Module]
) -> Callable[..., Any]:
    """Return a block's forward that runs again in the backward pass.

    Hooks on the block itself stand outside of its forward: they act once.
    """

    @functools.wraps(forward)
    def held(*args: Any, **kwargs: Any) -> Any:
        call = visitor.forward
        if call is None or not torch.is_grad_enabled():
            return forward(*args, **kwargs)

        def run(*args: Any, **kwargs: Any) -> Any:
            if visitor.forward is not None:  # the first time
                return forward(*args, **kwargs)
            with visitor.repeating(call, dits):
                return forward(*args, **kwargs)

        return checkpoint.checkpoint(run, *args, use_reentrant=False, **kwargs)

    return held
