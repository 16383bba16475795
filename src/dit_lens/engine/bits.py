"""Equality of tensors bit for bit: NaN equals itself, and zeros of two signs differ."""

from __future__ import annotations

import torch
from torch import Tensor

_CODES = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Say whether two tensors have the same shape, type and bits."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.is_complex():
        a, b = torch.view_as_real(a), torch.view_as_real(b)
    codes = _CODES[a.element_size()]
    return torch.equal(a.view(codes), b.view(codes))
