"""A model that gradients go through, for as long as a block runs; none of its parameters gets one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from dit_lens.engine.inputs import PerPair
from dit_lens.errors import PlanError

if TYPE_CHECKING:
    from dit_lens.engine.batch import Batch


@contextmanager
def open_to_gradients(batch: Batch) -> Iterator[None]:
    """Let gradients go through a batch's model while the block runs, and to none of its parameters.

    Flags of parameters are put back as they were, and no parameter gets a `.grad`.

    Raises:
        PlanError: inference mode is on, or the model or its inputs were made in it.
    """
    if torch.is_inference_mode_enabled():
        raise PlanError("Gradients under torch.inference_mode: there are none. Leave that block first.")
    dits = batch.specimen.dits.values()
    _refuse_inference([p for dit in dits for p in (*dit.parameters(), *dit.buffers())], "The model")
    inputs = [leaf.rows if isinstance(leaf, PerPair) else leaf for leaf in tree_leaves(batch.inputs.keywords)]
    _refuse_inference([batch.noise, *inputs], "What this batch gives the model")
    wanted = [p for dit in dits for p in dit.parameters() if p.requires_grad]
    try:
        for parameter in wanted:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)


def _refuse_inference(values: Iterable[object], what: str) -> None:
    if any(isinstance(value, Tensor) and value.is_inference() for value in values):
        raise PlanError(
            f"{what} was made under torch.inference_mode, and no gradient goes through such tensors: load the model, and call "
            "lens.batch, outside of it."
        )


__all__ = ["open_to_gradients"]
