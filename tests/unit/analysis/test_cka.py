from __future__ import annotations

import weakref
from typing import ClassVar

import numpy as np
import pytest
import xarray as xr
from numpy.typing import NDArray
from xarray.backends import BackendArray
from xarray.core import indexing

from dit_lens.analysis import cka_kernels, cka_products
from dit_lens.analysis.cka import CrossProducts, cka, cka_matrix, cka_pairs
from dit_lens.analysis.cka_sampled import kernel_cka, sample_tokens, unit_kernel
from dit_lens.errors import DitLensError

# A name that the function of the same name does not hide.


def reference(x: NDArray, y: NDArray, debiased: bool = True) -> float:
    """CKA from its definition, with token x token matrices: Kornblith et al. 2019, Song et al. 2012."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    x, y = x - x.mean(0), y - y.mean(0)
    n = len(x)
    ones = np.ones(n)

    def hsic(k: NDArray, l: NDArray) -> float:  # noqa: E741
        if not debiased:
            h = np.eye(n) - 1 / n
            return np.trace(k @ h @ l @ h) / (n - 1) ** 2
        k, l = k - np.diag(np.diag(k)), l - np.diag(np.diag(l))  # noqa: E741
        sums = (ones @ k @ ones) * (ones @ l @ ones) / ((n - 1) * (n - 2))
        return (np.trace(k @ l) + sums - 2 / (n - 2) * (ones @ k @ l @ ones)) / (n * (n - 3))

    kx, ky = x @ x.T, y @ y.T
    return hsic(kx, ky) / np.sqrt(hsic(kx, kx) * hsic(ky, ky))


def states(values: NDArray, grid: tuple[int, int, int], name: str = "hidden") -> xr.DataArray:
    """[token, channel] on a grid."""
    return xr.DataArray(values.reshape(*grid, -1), dims=["frame", "y", "x", "channel"], name=name)


def related(seed: int, tokens: int, channels: tuple[int, int]) -> tuple[NDArray, NDArray]:
    """Two sets of states that have some directions in common, on channels of unequal strength."""
    rng = np.random.default_rng(seed)
    common = rng.standard_normal((tokens, 3))
    x, y = (common @ rng.standard_normal((3, c)) + rng.standard_normal((tokens, c)) for c in channels)
    return x * np.linspace(0.1, 3, channels[0]), y * np.linspace(4, 0.2, channels[1])


@pytest.mark.parametrize("debiased", [True, False])
@pytest.mark.parametrize(
    ("grid", "channels"),
    [((1, 2, 2), (3, 5)), ((2, 3, 4), (6, 6)), ((3, 4, 5), (7, 1)), ((2, 3, 3), (40, 30))],
)
def test_equals_the_definition(grid: tuple[int, int, int], channels: tuple[int, int], debiased: bool) -> None:
    for seed in range(3):
        x, y = related(seed, int(np.prod(grid)), channels)
        expected = reference(x, y, debiased)
        np.testing.assert_allclose(
            cka(states(x, grid), states(y, grid), debiased=debiased), expected, rtol=0, atol=1e-10
        )
        np.testing.assert_allclose(cka_pairs(x[None], y[None], debiased=debiased), expected, atol=1e-10)


@pytest.mark.parametrize("debiased", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_does_not_change_by_rotation_scale_or_shift(seed: int, debiased: bool) -> None:
    rng = np.random.default_rng(seed)
    x, y = related(seed, 30, (6, 9))
    before = cka(states(x, (2, 3, 5)), states(y, (2, 3, 5)), debiased=debiased)
    turned, _ = np.linalg.qr(rng.standard_normal((6, 6)))
    moved = 1e-3 * (x @ turned) + rng.standard_normal(6) * 10
    after = cka(states(moved, (2, 3, 5)), states(-50 * y - 7, (2, 3, 5)), debiased=debiased)
    assert abs(float(before)) < 0.9  # or there would be nothing to keep
    np.testing.assert_allclose(after, before, atol=1e-9)
    np.testing.assert_allclose(
        cka(states(x, (2, 3, 5)), states(moved, (2, 3, 5)), debiased=debiased), 1, atol=1e-9
    )
    stretched = x * [1, 1, 1, 1, 1, 9]  # not a rotation: seen
    assert cka(states(x, (2, 3, 5)), states(stretched, (2, 3, 5)), debiased=debiased) < 0.99


@pytest.mark.parametrize("debiased", [True, False])
def test_is_one_with_itself_and_symmetric(hidden: xr.DataArray, debiased: bool) -> None:
    np.testing.assert_allclose(cka(hidden, hidden, debiased=debiased), 1, rtol=1e-12)
    x, y = hidden.sel(layer=0), hidden.sel(layer=6).isel(channel=slice(4))
    there, back = cka(x, y, debiased=debiased), cka(y, x, debiased=debiased)
    assert (abs(there) < 0.9).all()
    np.testing.assert_allclose(there, back, atol=1e-12)


@pytest.mark.parametrize("debiased", [True, False])
@pytest.mark.parametrize("size", [1, 3, 7, 24, 100])
def test_streaming_in_odd_sizes_equals_whole(
    size: int, debiased: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = related(4, 101, (6, 9))
    x[-1], y[-1] = x[0], y[0]  # a last block without a new token does not make them all the same
    whole = CrossProducts(6, 9)
    whole.add(x, y)
    parts = CrossProducts(6, 9)
    for start in range(0, 101, size):
        parts.add(x[start : start + size], y[start : start + size])
    assert parts.count == whole.count == 101
    np.testing.assert_allclose(parts.cka(debiased=debiased), whole.cka(debiased=debiased), atol=1e-11)
    np.testing.assert_allclose(whole.cka(debiased=debiased), reference(x, y, debiased), atol=1e-11)
    monkeypatch.setattr(cka_products, "BLOCK_BYTES", size * 8 * 9)  # add cuts long blocks itself
    cut = CrossProducts(6, 9)
    cut.add(x, y)
    np.testing.assert_allclose(cut.cka(debiased=debiased), whole.cka(debiased=debiased), atol=1e-11)


@pytest.mark.parametrize("debiased", [True, False])
def test_massive_means_in_float32_do_not_swallow_the_similarity(debiased: bool) -> None:
    x, y = related(5, 60, (8, 8))
    x, y = ((v + np.where(np.arange(8) == 3, 1e4, 1e4 / 7)).astype(np.float32) for v in (x, y))
    expected = reference(x, y, debiased)
    got = cka(states(x, (3, 4, 5)), states(y, (3, 4, 5)), debiased=debiased)
    np.testing.assert_allclose(got, expected, atol=1e-10)
    np.testing.assert_allclose(cka_matrix(x[None], y[None], debiased=debiased), expected, atol=1e-10)
    # Blocks of 7, the first of them far from the rest: the shift is then wrong by ten spreads.
    x[:7] += 30
    parts = CrossProducts(8, 8)
    for start in range(0, 60, 7):
        parts.add(x[start : start + 7], y[start : start + 7])
    np.testing.assert_allclose(parts.cka(debiased=debiased), reference(x, y, debiased), atol=1e-10)


def test_only_the_debiased_form_is_zero_for_unrelated_states_with_many_channels() -> None:
    rng = np.random.default_rng(6)
    x, y = rng.standard_normal((2, 20, 40, 400))
    debiased, biased = cka_pairs(x, y), cka_pairs(x, y, debiased=False)
    # U-centred kernels of n tokens span n (n - 3) / 2 = 740 dimensions, where unrelated directions have a
    # cosine of 0 +- 1 / sqrt(740) = 0.037: bounds are four of these for one pair, and for the mean of 20.
    assert np.abs(debiased).max() < 4 * 0.037 and abs(debiased.mean()) < 4 * 0.037 / np.sqrt(20)
    assert debiased.std() > 0.037 / 2  # not 0 because nothing is seen
    assert biased.min() > 0.85
    one = [states(v[0], (1, 5, 8)) for v in (x, y)]
    np.testing.assert_allclose(cka(*one), debiased[0], atol=1e-10)
    np.testing.assert_allclose(cka(*one, debiased=False), biased[0], atol=1e-10)


def test_shared_dimensions_are_matched_and_others_are_crossed(hidden: xr.DataArray) -> None:
    clean = hidden.sel(branch="cond").transpose("channel", "x", "layer", ...)  # the order does not matter
    other = hidden.isel(channel=slice(4)).transpose("layer", "branch", "step", ...)
    out = cka(clean, other)
    assert out.dims == ("step", "branch", "layer") and out.dtype == np.float64
    assert out.name == "cka" and out.attrs == {"long_name": "linear CKA (debiased)", "units": "1"}
    assert out["branch"].values.tolist() == ["cond", "uncond"] and out["layer"].values.tolist() == [0, 6, 11]
    xr.testing.assert_equal(out["sigma"], hidden["sigma"])
    values = hidden.to_numpy().reshape(4, 2, 3, 24, 6)
    for step, branch, layer in np.ndindex(out.shape):
        expected = reference(values[step, 0, layer], values[step, branch, layer, :, :4])
        np.testing.assert_allclose(out[step, branch, layer], expected, atol=1e-10)
    crossed = cka(hidden[0, 0], hidden[0, 0].rename(layer="other"))
    assert crossed.sizes == {"layer": 3, "other": 3}
    np.testing.assert_allclose(crossed, crossed.T, atol=1e-12)
    np.testing.assert_allclose(np.diag(crossed), 1)
    against_one = cka(hidden[0, 0].sel(layer=6).assign_coords(seed=1), hidden[0, 0].assign_coords(seed=2))
    np.testing.assert_allclose(against_one, crossed[1], atol=1e-12)
    assert against_one["layer"].values.tolist() == [0, 6, 11]  # not the one layer of x
    assert "seed" not in against_one.coords  # it has two


class Counting(BackendArray):
    """A lazy array that notes how many values every read takes, and what is still held by then."""

    held: ClassVar[list[weakref.ref[NDArray]]] = []  # of all of these arrays

    def __init__(self, values: NDArray) -> None:
        self.values, self.shape, self.dtype = values, values.shape, values.dtype
        self.reads: list[int] = []

    def __getitem__(self, key: indexing.ExplicitIndexer) -> NDArray:
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.OUTER_1VECTOR, self._read
        )

    def _read(self, key: tuple) -> NDArray:
        assert sum(array() is not None for array in self.held) <= 1  # the other one of the pair
        part = self.values[key].copy()
        self.held.append(weakref.ref(part))
        self.reads.append(part.size)
        return part


def lazy(array: xr.DataArray) -> tuple[xr.DataArray, list[int]]:
    """The same array, read on demand, and its list of reads."""
    backend = Counting(array.to_numpy())
    variable = xr.Variable(array.dims, indexing.LazilyIndexedArray(backend))
    return xr.DataArray(variable, array.coords, name=array.name), backend.reads


def test_lazy_arrays_are_read_one_state_at_a_time(hidden: xr.DataArray, stored: xr.DataArray) -> None:
    x, x_reads = lazy(hidden.isel(layer=0, drop=True))
    y, y_reads = lazy(hidden)
    out = cka(x, y)
    assert y_reads == [24 * 6] * (4 * 2 * 3)
    assert x_reads == [24 * 6] * (4 * 2)  # kept while layers, which x has not, go by
    xr.testing.assert_equal(out, cka(hidden.isel(layer=0, drop=True), hidden))
    xr.testing.assert_equal(cka(stored.isel(layer=0, drop=True), stored), out)
    assert not stored.variable._in_memory
    assert len(Counting.held) == 8 + 24  # the check of what is held was made


@pytest.mark.parametrize("debiased", [True, False])
@pytest.mark.parametrize("kernel_bytes", [1, 5 * 8 * 24 * 30, 2**27])
def test_many_small_states_equal_one_at_a_time(
    kernel_bytes: int, debiased: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cka_kernels, "KERNEL_BYTES", kernel_bytes)
    x, y = (np.stack(v) for v in zip(*(related(s, 24, (6, 60)) for s in range(7)), strict=True))
    x, y = x.astype(np.float32), y[:, :, ::2] + 100
    matrix = cka_matrix(x, y[:6], debiased=debiased)
    assert matrix.shape == (7, 6) and matrix.dtype == np.float64
    for i, j in np.ndindex(7, 6):
        expected = cka(states(x[i], (2, 3, 4)), states(y[j], (2, 3, 4)), debiased=debiased)
        np.testing.assert_allclose(matrix[i, j], expected, atol=1e-10)
    pairs = cka_pairs(x, y, debiased=debiased)
    np.testing.assert_allclose(pairs[:6], np.diag(matrix), atol=1e-12)
    np.testing.assert_allclose(pairs[6], reference(x[6], y[6], debiased), atol=1e-10)


@pytest.mark.parametrize("debiased", [True, False])
def test_pairs_of_many_tokens_are_compared_without_a_kernel(
    debiased: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = (np.stack(v) for v in zip(*(related(s, 70, (6, 9)) for s in range(3)), strict=True))
    by_kernels = cka_pairs(x, y, debiased=debiased)
    monkeypatch.setattr(cka_kernels, "KERNEL_BYTES", 8 * 70**2 - 1)
    monkeypatch.delattr(cka_kernels, "_unit_kernels")
    np.testing.assert_allclose(cka_pairs(x, y, debiased=debiased), by_kernels, atol=1e-11)
    x[1, 3, 2] = np.nan
    with pytest.raises(DitLensError, match=r"NaN or Inf in x\[1\]"):
        cka_pairs(x, y, debiased=debiased)


def test_a_state_without_a_geometry_is_named(hidden: xr.DataArray) -> None:
    broken = hidden.copy()
    broken[1, 0, 2] = np.float32(0.1)
    broken[1, 0, 2, ..., 3] = 3e4
    for debiased in (True, False):
        with pytest.raises(DitLensError, match=r"of hidden at step 5, branch cond, layer 11 are the same"):
            cka(hidden, broken, debiased=debiased)
        with pytest.raises(DitLensError, match=r"cka_matrix: all tokens of x\[1\] are the same"):
            cka_matrix(broken[1, 0, [0, 2]].to_numpy().reshape(2, 24, 6), np.eye(24)[None], debiased=debiased)
    # Every token on an axis of its own: all the distances are the same.
    corners = states(np.eye(24), (2, 3, 4), "corners")
    for compare in (lambda: cka(corners, corners), lambda: cka_pairs(np.eye(24)[None], np.eye(24)[None])):
        with pytest.raises(DitLensError, match="equally unlike each other"):
            compare()
    np.testing.assert_allclose(cka(corners, corners, debiased=False), 1)
    for scale in (1e100, 1e-100):
        extreme = hidden[0, 0, 0].astype(np.float64) * scale
        with pytest.raises(DitLensError, match=r"hidden at .*layer 0.* Rescale"):
            cka(extreme, extreme)
        with pytest.raises(DitLensError, match=r"x\[0\].* Rescale"):
            cka_matrix(*[extreme.to_numpy().reshape(1, 24, 6)] * 2)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_inf_are_named(hidden: xr.DataArray, value: float) -> None:
    broken = hidden.copy()
    broken[2, 1, 0, 0, 1, 2, 3] = value
    with pytest.raises(DitLensError, match="NaN or Inf in hidden at step 10, branch uncond, layer 0"):
        cka(broken, hidden)
    tokens = broken[2, :, 0].to_numpy().reshape(2, 24, 6)
    with pytest.raises(DitLensError, match=r"cka_pairs: there are NaN or Inf in y\[1\]"):
        cka_pairs(tokens[[0, 0]], tokens)
    broken[2, 1, 0] = np.nan
    with pytest.raises(DitLensError, match="was not recorded at step 10, branch uncond, layer 0"):
        cka(hidden, broken)


def test_too_few_tokens(hidden: xr.DataArray) -> None:
    three = hidden[0, 0, 0, :1, :, :1]
    with pytest.raises(DitLensError, match="4 tokens or more, but there are 3"):
        cka(three, three)
    with pytest.raises(DitLensError, match="4 tokens or more, but there are 3"):
        cka_matrix(np.eye(3)[None], np.eye(3)[None])
    np.testing.assert_allclose(cka(three, three, debiased=False), 1)
    with pytest.raises(DitLensError, match="2 tokens or more, but there are 1"):
        cka(three[:, :1], three[:, :1], debiased=False)


def test_what_does_not_match_is_named(hidden: xr.DataArray) -> None:
    with pytest.raises(DitLensError, match=r"coordinates of step differ: \[0 5\] .*, \[ ?0 10\]"):
        cka(hidden.isel(step=[0, 1]), hidden.isel(step=[0, 2]))
    with pytest.raises(DitLensError, match="states are matched one to one, but layer differs"):
        cka(hidden, hidden.isel(layer=[0, 1]))
    with pytest.raises(DitLensError, match="tokens are matched one to one, but x differs"):
        cka(hidden, hidden.isel(x=slice(3)))
    with pytest.raises(DitLensError, match="the same of frame, y, x"):
        cka(hidden, hidden.isel(frame=0))
    with pytest.raises(DitLensError, match="no dimension channel"):
        cka(hidden, hidden.isel(channel=0))
    x, y = related(0, 8, (3, 2))
    with pytest.raises(DitLensError, match="8 of x and 7 of y"):
        CrossProducts(3, 2).add(x, y[:7])
    with pytest.raises(DitLensError, match=r"x is \[1, 8, 3\], y is \[1, 7, 2\]"):
        cka_matrix(x[None], y[None, :7])
    with pytest.raises(DitLensError, match="2 states x and 1 states y"):
        cka_pairs(np.stack([x, x]), y[None])


# ---- where the states are


def test_of_all_tokens_it_is_the_cka_of_all_tokens() -> None:
    torch = pytest.importorskip("torch")
    for seed, (tokens, channels) in enumerate([(12, (3, 5)), (60, (7, 7)), (30, (40, 50))]):
        x, y = related(seed, tokens, channels)
        chosen = sample_tokens(tokens, 10_000)
        kernels = [unit_kernel(torch.from_numpy(v).float(), chosen) for v in (x, y)]
        assert kernel_cka(*kernels) == pytest.approx(reference(x, y), abs=1e-6)
        on_a_grid = unit_kernel(torch.from_numpy(x).reshape(2, 3, tokens // 6, -1), chosen)
        assert kernel_cka(on_a_grid, kernels[1]) == pytest.approx(reference(x, y), abs=1e-6)


def test_of_a_sample_of_tokens_it_is_an_estimate_without_bias() -> None:
    torch = pytest.importorskip("torch")
    x, y = related(3, 1000, (40, 40))
    whole, found = reference(x, y), []
    for seed in range(40):
        chosen = sample_tokens(1000, 100, seed)
        assert len(set(chosen)) == 100 and chosen == sorted(chosen)
        a, b = (torch.from_numpy(v) for v in (x, y))
        found.append(kernel_cka(unit_kernel(a, chosen), unit_kernel(b, chosen)))
        assert found[-1] == pytest.approx(reference(x[chosen], y[chosen]), abs=1e-9)
    assert np.std(found) > 0.005
    assert abs(np.mean(found) - whole) < 3 * np.std(found) / 40**0.5 + 0.005
    assert sample_tokens(1000, 100, 1) == sample_tokens(1000, 100, 1) != sample_tokens(1000, 100, 2)


def test_states_that_have_no_cka_are_named() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(DitLensError, match="NaN or Inf in layer 3"):
        unit_kernel(torch.full((8, 4), float("nan")), list(range(8)), "layer 3")
    with pytest.raises(DitLensError, match="all tokens of layer 3 are the same"):
        unit_kernel(torch.ones(8, 4), list(range(8)), "layer 3")
    with pytest.raises(DitLensError, match="4 tokens or more"):
        sample_tokens(100, 3)
    a, b = (unit_kernel(torch.randn(n, 4), list(range(n))) for n in (8, 9))
    with pytest.raises(DitLensError, match="there are 8 and 9"):
        kernel_cka(a, b)
