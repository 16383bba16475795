"""States of clean runs, looked at while the runs are made, and never stored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

if TYPE_CHECKING:
    from torch import Tensor

    from dit_lens.engine.batch import Batch

Look = Callable[[int, tuple[int, int, int], "Tensor"], None]
"""Called with the row, where its state stands among the steps, branches and layers that are asked for, and its tokens."""


def look_at_states(batch: Batch, steps: Sequence[int], layers: Sequence[int], look: Look) -> None:
    """Run all rows of a batch up to the last step that is asked for, and show what blocks return, where it is.

    States of one forward at one step are held: at_once x branches x layers x tokens x channels.

    Args:
        batch: the rows.
        steps: whose states are shown.
        layers: whose states are shown, on every branch.
        look: called with the tokens of a state, [token, channel], of float32 at least.
    """
    branches, count, x = batch.layout.branches, len(batch.pairs), batch.noise
    for step in tqdm(range(max(steps) + 1), desc="clean runs", leave=False):
        watch = [("block", b, n) for b in branches for n in layers] if step in steps else []
        after = []
        for start in range(0, count, batch.at_once):
            rows = list(range(start, min(start + batch.at_once, count)))
            now = batch.step(step, x[rows], rows, watch=watch)
            after.append(now.latents)
            for (_, branch, layer), states in now.states.items():
                at = steps.index(step), branches.index(str(branch)), layers.index(layer)
                for row, state in zip(rows, states, strict=True):
                    exact = torch.promote_types(state.dtype, torch.float32)
                    look(row, at, state.flatten(0, -2).to(exact))
        x = torch.cat(after)


__all__ = ["Look", "look_at_states"]
