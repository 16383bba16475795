"""A network that ends after a block, by its own code: its blocks pass on what they are given, the last one a state.

All that comes after the blocks (final norm, modulation by the time, projection) is then the model's own, whatever it
is; it costs one forward without blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from dit_lens.families.family import Anatomy
from dit_lens.families.patching import set_attribute, undo_all
from dit_lens.families.site import put

if TYPE_CHECKING:
    from torch import Tensor, nn


@contextmanager
def ending_in(
    anatomy: Anatomy, blocks: Sequence[nn.Module], state: Tensor, before: int = 0, after: int = 0
) -> Iterator[None]:
    """Let every block return what it is given, and the last one a state.

    Args:
        anatomy: says where in a block's input and output the states stand.
        blocks: of one DiT.
        state: the video's tokens, [row, token, channel].
        before: tokens that stand before them; these keep what the first block is given.
        after: tokens that stand after them, which keep it too.
    """
    states = [None] * (len(blocks) - 1) + [state]
    restore = undo_all(
        [
            set_attribute(block, "forward", _passing(anatomy, block, replacement, before, after))
            for block, replacement in zip(blocks, states, strict=True)
        ]
    )
    try:
        yield
    finally:
        restore()


def _passing(
    anatomy: Anatomy, block: Any, state: Tensor | None, before: int, after: int
) -> Callable[..., Any]:
    """Return a block's forward that returns what it was given, or a state in the video's place."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        inputs = args, kwargs
        carried = {stream: sites for stream, sites in anatomy.sites.items() if "block_in" in sites}
        out: Any = (None,) * len(carried) if len(carried) > 1 else None
        for stream, sites in carried.items():
            value = sites["block_in"].of_inputs(block, inputs)
            if stream == "video" and state is not None:
                value = torch.cat([value[:, :before], state, value[:, value.shape[1] - after :]], 1)
            out = put(out, sites["block"].item or (), value)
        return out

    return forward
