"""CKA from token x token kernels: many small states at once, each kernel made once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dit_lens.analysis.cka_checks import not_finite, require_tokens, require_varied
from dit_lens.analysis.cka_products import CrossProducts
from dit_lens.errors import DitLensError

KERNEL_BYTES = 2**26
"""How much the token x token kernels take at a time, of x and of y: 404 of 144 tokens."""


def cka_matrix(x: ArrayLike, y: ArrayLike, *, debiased: bool = True) -> NDArray[np.float64]:
    """Compute the linear CKA between every state of one set and every state of another.

    Args:
        x: [a, token, channel_x].
        y: [b, token, channel_y]; tokens matched one to one.
        debiased: unbiased HSIC; else the biased, centred one.

    Returns:
        [a, b], float64. Each state takes a kernel of 8 token^2 bytes, a bounded number of them at a time;
        made for some hundreds of tokens, as the organism has. For large states use `cka`.

    Raises:
        DitLensError: shapes do not match, a state holds NaN or Inf, its tokens are all the same, or there
            are too few of them.
    """
    x, y = _stacks(x, y, debiased, "cka_matrix")
    out = np.empty((len(x), len(y)))
    for rows, left in _unit_kernels(x, "x", debiased, "cka_matrix"):
        for columns, right in _unit_kernels(y, "y", debiased, "cka_matrix"):
            out[rows, columns] = left @ right.T
    return out


def cka_pairs(x: ArrayLike, y: ArrayLike, *, debiased: bool = True) -> NDArray[np.float64]:
    """Compute the linear CKA between matched states: x[i] with y[i].

    Args:
        x: [n, token, channel_x].
        y: [n, token, channel_y].
        debiased: unbiased HSIC; else the biased, centred one.

    Returns:
        [n], float64. Memory as `cka_matrix`; where a kernel would be larger than `KERNEL_BYTES` (from 2,897
        tokens on) and than the channel x channel products, those are made instead, a pair at a time:
        8 (channel_x^2 + channel_x channel_y + channel_y^2) bytes, however many tokens.

    Raises:
        DitLensError: as `cka_matrix`; or the numbers of states differ.
    """
    x, y = _stacks(x, y, debiased, "cka_pairs")
    if len(x) != len(y):
        raise DitLensError(f"cka_pairs: {len(x)} states x and {len(y)} states y cannot be paired.")
    out = np.empty(len(x))
    tokens, channels = x.shape[1], max(x.shape[2], y.shape[2])
    if tokens > channels and 8 * tokens**2 > KERNEL_BYTES:
        for i, (left, right) in enumerate(zip(x, y, strict=True)):
            products = CrossProducts(x.shape[2], y.shape[2], (f"x[{i}]", f"y[{i}]"))
            products.add(left, right)
            out[i] = products.cka(debiased=debiased)
        return out
    pairs = (_unit_kernels(v, name, debiased, "cka_pairs", channels) for v, name in ((x, "x"), (y, "y")))
    for (where, left), (_, right) in zip(*pairs, strict=True):
        out[where] = np.einsum("nk,nk->n", left, right)
    return out


def _unit_kernels(
    states: NDArray[Any], name: str, debiased: bool, caller: str, channels: int = 0
) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Yield the centred token x token kernels of some states at a time, [state, token * token], of norm 1.

    CKA is then an inner product: of doubly centred kernels, or, debiased, of U-centred ones, whose inner
    product is the unbiased HSIC (Székely & Rizzo 2014, arXiv 1310.2926, sections 2 and 4).
    """
    n = states.shape[1]
    size = max(1, KERNEL_BYTES // (8 * n * max(n, channels, states.shape[2])))
    for start in range(0, len(states), size):
        where = slice(start, min(start + size, len(states)))
        tokens = states[where].astype(np.float64)
        finite = np.asarray(np.isfinite(tokens).all((1, 2)))
        varied = (tokens != tokens[:, :1]).any((1, 2))
        with np.errstate(over="ignore", invalid="ignore"):
            tokens -= tokens.mean(1, keepdims=True)
            kernels = tokens @ tokens.mT
            terms = np.einsum("stu,stu->s", kernels, kernels)
            if debiased:
                _u_centre(kernels)
            flat = kernels.reshape(len(kernels), -1)
            self_hsic = np.einsum("sk,sk->s", flat, flat)
        for i in range(len(flat)):
            if not finite[i]:
                raise not_finite(f"{name}[{start + i}]", caller)
            require_varied(bool(varied[i]), self_hsic[i], terms[i], f"{name}[{start + i}]", caller)
        flat /= np.sqrt(self_hsic)[:, None]
        yield where, flat


def _u_centre(kernels: NDArray[np.float64]) -> None:
    """U-centre [state, token, token] in place: rows and columns without the diagonal sum to 0."""
    n = kernels.shape[-1]
    diagonal = np.arange(n)
    kernels[:, diagonal, diagonal] = 0
    rows = kernels.sum(2) / (n - 2)
    kernels -= rows[:, :, None]
    kernels -= rows[:, None, :]
    kernels += (rows.sum(1) / (n - 1))[:, None, None]
    kernels[:, diagonal, diagonal] = 0


def _stacks(x: ArrayLike, y: ArrayLike, debiased: bool, caller: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """Check two stacks of states [state, token, channel]."""
    x, y = np.asarray(x), np.asarray(y)
    if x.ndim != 3 or y.ndim != 3 or x.shape[1] != y.shape[1]:
        raise DitLensError(
            f"{caller}: takes [state, token, channel] twice, with as many tokens; x is {list(x.shape)}, "
            f"y is {list(y.shape)}."
        )
    require_tokens(x.shape[1], debiased, caller)
    return x, y
