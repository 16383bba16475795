"""How alike two sets of states are as geometries of tokens: linear centred kernel alignment (CKA).

Linear CKA (Kornblith, Norouzi, Lee & Hinton 2019, arXiv 1905.00414) compares which tokens are near which, so
it sees through rotations, scalings and shifts of the channels, and x and y may differ in channels. The
biased estimate tends to 1 when channels outnumber tokens, whatever the data; the debiased one (unbiased HSIC,
Song et al. 2012; as CKA in Nguyen, Raghu & Kornblith 2021, arXiv 2010.15327, and Murphy, Zylberberg & Fyshe
2024, arXiv 2405.01012) does not, and may be slightly negative. Dissimilarity is 1 - CKA.

Large states go through `cka` or `CrossProducts`: channel x channel products, never tokens x tokens (at 32,760
tokens one such kernel is 8.6 GB). Many small ones go through `cka_matrix` and `cka_pairs`: one matrix product
of their token x token kernels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from dit_lens.analysis.states import (
    all_nan,
    name_of,
    not_recorded,
    place,
    require_dims,
    shape_of,
    token_dims,
)
from dit_lens.coords import DIMS
from dit_lens.errors import DitLensError

BLOCK_BYTES = 2**25
"""Tokens go into the products this many float64 bytes at a time: 819 of them at 5,120 channels."""

KERNEL_BYTES = 2**26
"""How much the token x token kernels of `cka_matrix` take at a time, of x and of y: 404 of 144 tokens."""

NOTHING = 1e-12
"""An HSIC of a state with itself this far below its terms is their rounding error, not a similarity."""


def cka(x: xr.DataArray, y: xr.DataArray, *, debiased: bool = True) -> xr.DataArray:
    """Compute the linear CKA between two sets of token states.

    Args:
        x: [..., frame, y, x, channel]; any float type, may be lazy and larger than memory.
        y: the same grid of tokens, matched one to one; as many channels as it likes. A further dimension
            (step, layer, ...) that both have is matched by its coordinates; one that only one of them has is
            compared with every state of the other.
        debiased: unbiased HSIC; else the biased, centred one.

    Returns:
        [...] over the further dimensions of both, in the order of `dit_lens.coords.DIMS`; float64,
        dimensionless. 1 is the same geometry, 0 an unrelated one. One pair of states is in memory at a time,
        and 8 (channel_x^2 + channel_x channel_y + channel_y^2) bytes.

    Raises:
        DitLensError: grids or coordinates do not match, a state was not recorded or holds NaN or Inf, its
            tokens are all the same, or there are too few of them.
    """
    grid = _matched_grid(x, y)
    inner = [*grid, "channel"]
    out = _frame(x, inner) * _frame(y, inner)
    known = [d for d in DIMS if d in out.dims]
    out = out.transpose(..., *known)
    x, y = (a.transpose(*(d for d in out.dims if d in a.dims), *inner) for a in (x, y))
    values = np.empty(out.shape)
    held: dict[int, tuple[dict[str, int], str, NDArray[Any]]] = {}
    for position in np.ndindex(*out.shape):
        at = dict(zip(map(str, out.dims), position, strict=True))
        for side, array in enumerate((x, y)):
            index = {d: i for d, i in at.items() if d in array.dims}
            if side not in held or held[side][0] != index:
                held.pop(side, None)  # before the next one is read, not after
                held[side] = (index, *_tokens(array, index))
        values[position] = _compare(held[0][1:], held[1][1:], debiased)
    kind = "debiased" if debiased else "biased"
    return out.copy(data=values).rename("cka").assign_attrs(long_name=f"linear CKA ({kind})", units="1")


def _compare(x: tuple[str, NDArray[Any]], y: tuple[str, NDArray[Any]], debiased: bool) -> float:
    """Return the CKA of two named states [token, channel]."""
    products = CrossProducts(x[1].shape[1], y[1].shape[1], (x[0], y[0]))
    products.add(x[1], y[1])
    return products.cka(debiased=debiased)


class CrossProducts:
    """The sums over tokens from which CKA is computed; tokens come in blocks, in any sizes.

    Everything is relative to the mean of the first block, in float64. CKA does not change by a shift, but its
    digits would: massive activations make a channel's mean a thousand times its spread, and the sums hold
    the fourth power of that.

    Attributes:
        count: number of tokens seen.
    """

    def __init__(self, x_channels: int, y_channels: int, names: tuple[str, str] = ("x", "y")) -> None:
        self.count = 0
        self._sides = (_Side(x_channels, names[0]), _Side(y_channels, names[1]))
        self._xx = _Product(x_channels, None)
        self._xy = _Product(x_channels, y_channels)
        self._yy = _Product(y_channels, None)

    def add(self, x: NDArray[Any], y: NDArray[Any]) -> None:
        """Take in the next tokens, x [token, channel_x] and y [token, channel_y], of any float type.

        Raises:
            DitLensError: the numbers of tokens differ, or there are NaN or Inf among them.
        """
        if len(x) != len(y):
            names = " and ".join(f"{len(v)} of {s.name}" for s, v in zip(self._sides, (x, y), strict=True))
            raise DitLensError(f"cka: tokens are matched one to one, but there are {names}.")
        size = max(1, BLOCK_BYTES // (8 * max(x.shape[1], y.shape[1])))
        for start in range(0, len(x), size):
            block, a = self._sides[0].take(x[start : start + size])
            other, b = self._sides[1].take(y[start : start + size])
            with np.errstate(over="ignore", invalid="ignore"):  # refused by `cka`, with the reason
                self._xx.add(block, block, a, a)
                self._xy.add(block, other, a, b)
                self._yy.add(other, other, b, b)
            self.count += len(block)

    def cka(self, *, debiased: bool = True) -> float:
        """Return the linear CKA of all tokens so far.

        Raises:
            DitLensError: it is not defined: too few tokens, or all of them are the same in x or in y.
        """
        _require_tokens(self.count, debiased, "cka")
        left, right = self._sides
        with np.errstate(over="ignore", invalid="ignore"):
            xx, xx_terms = self._xx.hsic(left, left, self.count, debiased)
            yy, yy_terms = self._yy.hsic(right, right, self.count, debiased)
            xy, _ = self._xy.hsic(left, right, self.count, debiased)
        for side, own, terms in ((left, xx, xx_terms), (right, yy, yy_terms)):
            _require_varied(side.varied, own, terms, side.name, "cka")
        return xy / (np.sqrt(xx) * np.sqrt(yy))


class _Side:
    """The sums of one side alone: [channel] totals of the shifted tokens, and whether any two differ."""

    def __init__(self, channels: int, name: str) -> None:
        self.name = name
        self.total: NDArray[np.float64] = np.zeros(channels)
        self.squares = 0.0
        self.varied = False
        self._first: NDArray[Any] | None = None
        self._shift: NDArray[np.float64] = np.zeros(channels)

    def take(self, tokens: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return a shifted float64 copy of [token, channel], and the squared norms [token] of its tokens."""
        block = tokens.astype(np.float64, order="C")
        if not np.isfinite(block).all():
            raise _not_finite(self.name, "cka")
        if self._first is None:
            self._first, self._shift = block[0].copy(), block.mean(0)
        self.varied = self.varied or bool((block != self._first).any())
        block -= self._shift
        norms = np.einsum("tc,tc->t", block, block)
        self.total += block.sum(0)
        self.squares += norms.sum()
        return block, norms


class _Product:
    """Sums over tokens of products of two sides: X'Y, and what HSIC takes off its diagonal.

    With a_i = |x_i|^2 and b_i = |y_i|^2: `cross` is X'Y [channel_x, channel_y], `bx` is sum b_i x_i, `ay` is
    sum a_i y_i, `ab` is sum a_i b_i. Where both sides are the same, only the upper triangle is computed.
    """

    def __init__(self, x_channels: int, y_channels: int | None) -> None:
        self.own = y_channels is None
        y_channels = x_channels if y_channels is None else y_channels
        # Column order, as BLAS adds to in place: `cross += x.T @ y` would hold a second matrix.
        self.cross: NDArray[np.float64] = np.zeros((x_channels, y_channels), order="F")
        self.bx: NDArray[np.float64] = np.zeros(x_channels)
        self.ay: NDArray[np.float64] = np.zeros(y_channels)
        self.ab = 0.0

    def add(
        self,
        x: NDArray[np.float64],
        y: NDArray[np.float64],
        a: NDArray[np.float64],
        b: NDArray[np.float64],
    ) -> None:
        """Take in tokens [token, channel] and their squared norms [token]."""
        from scipy.linalg import blas

        if self.own:
            self.cross = blas.dsyrk(1.0, x.T, 1.0, self.cross, overwrite_c=1)
        else:
            self.cross = blas.dgemm(1.0, x.T, y.T, 1.0, self.cross, trans_b=1, overwrite_c=1)
        self.bx += b @ x
        self.ay += a @ y
        self.ab += float(a @ b)

    def hsic(self, left: _Side, right: _Side, n: int, debiased: bool) -> tuple[float, float]:
        """Return HSIC but for a factor of n alone, and |X'Y|^2, the size of its terms.

        Unbiased, with zero diagonals in K = XX' and L = YY' (Song et al. 2012):
        tr(KL) + 1'K1 1'L1 / ((n - 1) (n - 2)) - 2 / (n - 2) 1'KL1. Biased: |X'Y|^2 of the centred tokens.
        """
        sx, sy = left.total, right.total
        flat = self.cross.ravel(order="K")
        norm, between = float(flat @ flat), float(sx @ self.cross @ sy)
        if self.own:  # of a triangle: both halves, less the diagonal that was counted twice
            diagonal = self.cross.diagonal()
            norm = 2 * norm - float(diagonal @ diagonal)
            between = 2 * between - float(diagonal @ np.square(sx))
        if not debiased:
            return norm - 2 / n * between + float(sx @ sx) * float(sy @ sy) / n**2, norm
        trace = norm - self.ab
        k_sum, l_sum = float(sx @ sx) - left.squares, float(sy @ sy) - right.squares
        kl_sum = between - float(self.bx @ sx) - float(self.ay @ sy) + self.ab
        return trace + k_sum * l_sum / ((n - 1) * (n - 2)) - 2 / (n - 2) * kl_sum, norm


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
    for rows, left in _kernels(x, "x", debiased, "cka_matrix"):
        for columns, right in _kernels(y, "y", debiased, "cka_matrix"):
            out[rows, columns] = left @ right.T
    return out


def cka_pairs(x: ArrayLike, y: ArrayLike, *, debiased: bool = True) -> NDArray[np.float64]:
    """Compute the linear CKA between matched states: x[i] with y[i].

    Args:
        x: [n, token, channel_x].
        y: [n, token, channel_y].
        debiased: unbiased HSIC; else the biased, centred one.

    Returns:
        [n], float64; memory as `cka_matrix`.

    Raises:
        DitLensError: as `cka_matrix`; or the numbers of states differ.
    """
    x, y = _stacks(x, y, debiased, "cka_pairs")
    if len(x) != len(y):
        raise DitLensError(f"cka_pairs: {len(x)} states x and {len(y)} states y cannot be paired.")
    out = np.empty(len(x))
    channels = max(x.shape[2], y.shape[2])
    pairs = (_kernels(v, name, debiased, "cka_pairs", channels) for v, name in ((x, "x"), (y, "y")))
    for (where, left), (_, right) in zip(*pairs, strict=True):
        out[where] = np.einsum("nk,nk->n", left, right)
    return out


def _kernels(
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
            own = np.einsum("sk,sk->s", flat, flat)
        for i in range(len(flat)):
            if not finite[i]:
                raise _not_finite(f"{name}[{start + i}]", caller)
            _require_varied(bool(varied[i]), own[i], terms[i], f"{name}[{start + i}]", caller)
        flat /= np.sqrt(own)[:, None]
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


def _matched_grid(x: xr.DataArray, y: xr.DataArray) -> list[str]:
    """Check that two arrays can be compared token by token; return the dimensions of the tokens."""
    for array in (x, y):
        require_dims(array, ["channel"], "cka")
    grid = token_dims(x, "cka")
    shapes = f"x is {name_of(x)} {shape_of(x)}, y is {name_of(y)} {shape_of(y)}"
    if set(token_dims(y, "cka")) != set(grid):
        raise DitLensError(f"cka: both need the same of frame, y, x, to match their tokens; {shapes}.")
    for dim in (str(d) for d in x.dims if d in y.dims and d != "channel"):
        if x.sizes[dim] != y.sizes[dim]:
            what = "tokens are matched one to one" if dim in grid else "states are matched one to one"
            raise DitLensError(
                f"cka: {what}, but {dim} differs; {shapes}. Select the same {dim} in both, or rename it in "
                "one of them to compare all with all."
            )
        if dim in x.coords and dim in y.coords and not np.array_equal(x[dim].values, y[dim].values):
            raise DitLensError(
                f"cka: the coordinates of {dim} differ: {x[dim].values} in {name_of(x)}, {y[dim].values} in "
                f"{name_of(y)}. Select the same {dim} in both (xarray.align), or rename it in one of them to "
                "compare all with all."
            )
    return grid


def _frame(array: xr.DataArray, inner: list[str]) -> xr.DataArray:
    """Return NaN on the dimensions and coordinates of an array that are left without the inner ones."""
    dims = [d for d in array.dims if d not in inner]
    coords = {name: c for name, c in array.coords.items() if set(c.dims) <= set(dims)}
    return xr.DataArray(np.full([array.sizes[d] for d in dims], np.nan), coords, dims)


def _tokens(array: xr.DataArray, index: dict[str, int]) -> tuple[str, NDArray[Any]]:
    """Load one state as [token, channel], with its name for messages; the channels are its last dimension."""
    values = array.isel(index).to_numpy()
    where = place(array, index)
    if all_nan(values):
        raise not_recorded(array, [where], "cka")
    return f"{name_of(array)} at {where}" if where else name_of(array), values.reshape(-1, values.shape[-1])


def _stacks(x: ArrayLike, y: ArrayLike, debiased: bool, caller: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """Check two stacks of states [state, token, channel]."""
    x, y = np.asarray(x), np.asarray(y)
    if x.ndim != 3 or y.ndim != 3 or x.shape[1] != y.shape[1]:
        raise DitLensError(
            f"{caller}: takes [state, token, channel] twice, with as many tokens; x is {list(x.shape)}, "
            f"y is {list(y.shape)}."
        )
    _require_tokens(x.shape[1], debiased, caller)
    return x, y


def _require_tokens(count: int, debiased: bool, caller: str) -> None:
    """Check that there are as many tokens as the estimate needs."""
    if count < (4 if debiased else 2):
        which = "debiased CKA needs 4 tokens or more" if debiased else "CKA needs 2 tokens or more"
        raise DitLensError(f"{caller}: {which}, but there are {count}; select more of frame, y, x.")


def _require_varied(varied: bool, own: float, terms: float, name: str, caller: str) -> None:
    """Check that a state is like itself: HSIC(x, x) is not 0."""
    if not varied:
        raise DitLensError(
            f"{caller}: all tokens of {name} are the same, so nothing tells them apart and CKA is not "
            "defined; leave this state out."
        )
    if not own > NOTHING * terms:
        raise DitLensError(
            f"{caller}: the HSIC of {name} with itself is {own:g}, within rounding of 0, so CKA is not "
            "defined: its tokens are equally unlike each other, or its values too large or too small to be "
            "squared twice. Rescale it, compare more tokens, or leave this state out."
        )


def _not_finite(name: str, caller: str) -> DitLensError:
    """Return the error for NaN or Inf among the tokens of a state."""
    return DitLensError(
        f"{caller}: there are NaN or Inf in {name}; leave this state out, or select tokens without them."
    )
