"""CKA where the states are: on a GPU or a CPU, of all tokens of a state or of a sample of them.

A state of a 14B model has 32,760 tokens of 5,120 channels. Its whole CKA takes a minute and more on a CPU; an experiment that
compares thousands of them takes a sample of tokens, the same in both states, whose debiased CKA is an estimate of the whole's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dit_lens.analysis.cka_checks import not_finite, require_tokens, require_varied
from dit_lens.errors import DitLensError

if TYPE_CHECKING:
    from torch import Tensor


def sample_tokens(count: int, most: int, seed: int = 0) -> list[int]:
    """Return which tokens of a state are compared: all, or `most` of them, drawn without replacement, in order.

    Raises:
        DitLensError: fewer than 4 are asked for, which debiased CKA cannot be had of.
    """
    import torch

    require_tokens(min(most, count), True, "sample_tokens")
    if most >= count:
        return list(range(count))
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:most]
    return sorted(int(i) for i in order)


def unit_kernel(state: Tensor, tokens: list[int], name: str = "the state") -> Tensor:
    """Return the U-centred token x token kernel of a state, of norm 1, on the state's device in float64.

    The inner product of two of them, `(a * b).sum()`, is the debiased linear CKA of their states (see
    `dit_lens.analysis.cka`; Székely & Rizzo 2014, arXiv 1310.2926, sections 2 and 4).

    Args:
        state: [token, channel], or [frame, y, x, channel]; any float type.
        tokens: which of its tokens, from `sample_tokens`.
        name: of the state, for messages.

    Returns:
        [token, token] of the chosen ones: 8 tokens^2 bytes.

    Raises:
        DitLensError: it holds NaN or Inf there, or these tokens are all the same.
    """
    flat = state.flatten(0, -2)
    chosen = flat if len(tokens) == len(flat) else flat[tokens]
    x = chosen.double()
    if not bool(x.isfinite().all()):
        raise not_finite(name, "unit_kernel")
    varied = bool((x != x[:1]).any())
    x = x - x.mean(0)
    kernel = x @ x.T
    terms = float(kernel.square().sum())
    count = len(kernel)
    kernel.fill_diagonal_(0)
    rows = kernel.sum(1) / (count - 2)
    kernel = kernel - rows[:, None] - rows[None] + rows.sum() / (count - 1)
    kernel.fill_diagonal_(0)
    norm = float(kernel.square().sum())
    require_varied(varied, norm, terms, name, "unit_kernel")
    return kernel / norm**0.5


def kernel_cka(x: Tensor, y: Tensor) -> float:
    """Return the debiased linear CKA of two states, from their `unit_kernel` of the same tokens.

    Raises:
        DitLensError: they are of other numbers of tokens.
    """
    if x.shape != y.shape:
        raise DitLensError(f"kernel_cka: tokens are matched one to one; there are {len(x)} and {len(y)}.")
    return float((x * y).sum())


def kernel_matrix(
    states: Sequence[Tensor], tokens: list[int], name: str = "the state"
) -> NDArray[np.float64]:
    """Return the debiased linear CKA between every two of some states, [state, state].

    All their kernels are held at once, on the states' device: 8 x states x tokens^2 bytes.

    Args:
        states: [token, channel], or [frame, y, x, channel], each; their tokens matched one to one.
        tokens: which of them, from `sample_tokens`.
        name: of the states, for messages.

    Raises:
        DitLensError: as `unit_kernel`.
    """
    import torch

    flat = torch.empty(len(states), len(tokens) ** 2, dtype=torch.float64, device=states[0].device)
    for n, state in enumerate(states):
        flat[n] = unit_kernel(state, tokens, f"{name} {n}").flatten()
    out: NDArray[np.float64] = (flat @ flat.T).cpu().numpy()
    return out


__all__ = ["kernel_cka", "kernel_matrix", "sample_tokens", "unit_kernel"]
