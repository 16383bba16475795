"""How much of each of some templates is in a state: the weights of a mixture, and what one template alone leaves unexplained.

The weights w minimise |x - sum w_k z_k| over w_k >= 0 with sum w_k = 1. With f(w) that squared distance, min over u >= 0 of
f(u) + (1 - sum u)^2, f homogeneous because |x| is taken off each template, is reached at a multiple of w: for u = t w it is
t^2 f + (1 - t)^2, least f / (1 + f) in t, which rises with f. So one call of non-negative least squares is exact.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dit_lens.errors import DitLensError

APART = 0.05
"""Smallest singular value of the templates' differences over the largest, below which weights are not told apart."""
FLOOR = 1e-6
"""Least chance that a divergence takes: an answer that is ruled out costs 20 bits, not infinitely many."""


def mixture(x: Any, templates: Any) -> xr.Dataset:
    """Fit states by mixtures of templates.

    Args:
        x: [row, ...], numbers.
        templates: [answer, ...], 2 or more, of the shape of a row.

    Returns:
        Dataset: `weight` [row, answer], 0 or more, of sum 1; `bits` [row], their entropy; `explained` [row], the share of the
        squared distance to the nearest template that the mixture takes away: 0 where one template is as near as any mixture, 1
        where x is a mixture of several; `single` and `mixed` [row], the root mean squared distance to the nearest template and
        to the mixture.

    Raises:
        DitLensError: other shapes, fewer than 2 templates, a value that is no finite number, or templates of which one is nearly
            a mixture of the others (`apart`), so that the weights would not be told by x.
    """
    rows, known = _flat(x, "x"), _flat(templates, "templates")
    if len(known) < 2 or rows.shape[1:] != known.shape[1:]:
        raise DitLensError(
            f"mixture: x is {rows.shape}, the templates {known.shape} [row or answer, value]: give 2 templates or more, of the "
            "shape of a row."
        )
    if not (found := apart(known)) >= APART:
        raise DitLensError(
            f"mixture: some template is nearly a mixture of the others (singular values {found:.1e}, under {APART}), so that "
            "weights are not told: leave it out."
        )
    parts = [_fit(row, known) for row in rows]
    columns = dict(zip(("weight", "single", "mixed"), map(np.array, zip(*parts, strict=True)), strict=True))
    single, mixed = columns["single"], columns["mixed"]
    # A state that is a template leaves nothing to explain, up to rounding.
    nothing = single <= 1e-6 * np.sqrt((known**2).mean())
    gained = np.where(nothing, 0.0, 1 - (mixed / np.where(nothing, 1.0, single)) ** 2)
    return xr.Dataset(
        {
            "weight": (("row", "answer"), columns["weight"]),
            "bits": ("row", bits(columns["weight"])),
            "explained": ("row", np.clip(gained, 0, 1)),
            "single": ("row", single),
            "mixed": ("row", mixed),
        }
    )


def apart(templates: Any) -> float:
    """Return how far templates [answer, ...] are from being mixtures of one another.

    It is the smallest over the largest singular value of their differences from their mean, 0 where one of them is a sum of the
    others with weights of sum 1: then no weights are told apart.
    """
    known = _flat(templates, "templates")
    values = np.linalg.svd(known - known.mean(0), compute_uv=False)[: len(known) - 1]
    return float(values[-1] / values[0]) if len(values) and values[0] > 0 else 0.0


def bits(weights: Any) -> NDArray[np.float64]:
    """Return the entropy of weights [..., answer] of sum 1, in bits [...]."""
    from scipy.stats import entropy

    shares = np.asarray(weights, np.float64)
    return np.clip(
        entropy(shares, base=2, axis=-1), 0.0, np.log2(shares.shape[-1])
    )  # without what rounding adds


def divergence(weights: Any, chances: Any) -> NDArray[np.float64]:
    """Return the Kullback-Leibler divergence of weights from chances, both [..., answer] of sum 1, in bits [...].

    Chances below `FLOOR` are raised to it: at most some 20 bits.
    """
    from scipy.stats import entropy

    raised = np.maximum(np.asarray(chances, np.float64), FLOOR)
    raised /= raised.sum(-1, keepdims=True)
    return np.asarray(entropy(np.asarray(weights, np.float64), raised, base=2, axis=-1))


def _fit(row: NDArray[np.float64], known: NDArray[np.float64]) -> tuple[NDArray[np.float64], float, float]:
    """Return the weights [answer] of one state [value], and its root mean squared distances: single and mixed."""
    from scipy.optimize import nnls

    off = (known - row).T  # [value, answer]
    triangle: NDArray[np.float64] = np.linalg.qr(off)[1]
    scale = float(np.abs(triangle).max()) or 1.0
    system = np.vstack([triangle / scale, np.ones(len(known))])
    found, _ = nnls(system, np.append(np.zeros(len(triangle)), 1.0))
    weights = found / found.sum()
    count = np.sqrt(len(row))
    return (
        weights,
        float(np.linalg.norm(off, axis=0).min() / count),
        float(np.linalg.norm(off @ weights) / count),
    )


def _flat(values: Any, name: str) -> NDArray[np.float64]:
    """Return [n, ...], a tensor of any type or an array, as [n, value] of finite float64."""
    if hasattr(values, "detach"):
        values = values.detach().double().cpu().numpy()
    array = np.asarray(values, np.float64)
    if array.ndim < 2 or array.size == 0 or not np.isfinite(array).all():
        raise DitLensError(f"mixture: {name} is {array.shape}; give finite numbers, [row or answer, ...].")
    return array.reshape(len(array), -1)


__all__ = ["apart", "bits", "divergence", "mixture"]
