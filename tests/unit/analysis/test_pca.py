from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from sklearn.decomposition import PCA

from dit_lens.analysis import pca_basis, pca_maps, to_rgb
from dit_lens.errors import DitLensError


def test_equals_the_full_pca_of_sklearn_up_to_sign(hidden: xr.DataArray, stored: xr.DataArray) -> None:
    tokens = hidden.to_numpy().reshape(-1, 6).astype(float)
    reference = PCA(3, svd_solver="full").fit(tokens)
    out = pca_maps(stored, n=3)
    signs = np.sign((out["components"].to_numpy() * reference.components_).sum(1))
    np.testing.assert_allclose(out["components"], signs[:, None] * reference.components_, atol=1e-9)
    np.testing.assert_allclose(out["mean"], reference.mean_, rtol=1e-9)
    np.testing.assert_allclose(
        out["explained_variance_ratio"], reference.explained_variance_ratio_, rtol=1e-9
    )
    maps = out["maps"].to_numpy().reshape(-1, 3)
    np.testing.assert_allclose(maps, signs * reference.transform(tokens), atol=1e-5)
    assert out["maps"].dims == (*hidden.dims[:-1], "component") and out["maps"].dtype == np.float32


def test_signs_are_fixed_by_the_largest_loading(hidden: xr.DataArray) -> None:
    components = pca_basis(hidden, n=6)["components"].to_numpy()
    assert (components[np.arange(6), np.abs(components).argmax(1)] > 0).all()
    np.testing.assert_allclose(components @ components.T, np.eye(6), atol=1e-12)
    flipped = pca_basis(-hidden, n=6)["components"].to_numpy()
    np.testing.assert_allclose(flipped, components, atol=1e-9)


def test_a_planted_direction_is_found_under_massive_channels() -> None:
    rng = np.random.default_rng(3)
    shape = (6, 3, 5, 5)
    signal = rng.standard_normal(shape)
    direction = np.zeros(32)
    direction[[4, 9]] = [0.8, -0.6]
    values = signal[..., None] * 5 * direction + rng.standard_normal((*shape, 32)) * 0.1
    values[..., 17] += 4000  # a massive activation, the same everywhere
    states = xr.DataArray(values.astype(np.float32), dims=["step", "frame", "y", "x", "channel"])
    out = pca_maps(states, n=1)
    np.testing.assert_allclose(out["components"][0], direction, atol=0.01)
    assert abs(np.corrcoef(out["maps"].to_numpy().ravel(), signal.ravel())[0, 1]) > 0.999
    assert out["explained_variance_ratio"][0] > 0.95


def test_one_basis_is_fitted_over_everything_and_says_so(hidden: xr.DataArray) -> None:
    basis = pca_basis(hidden.isel(layer=1))
    assert basis.attrs["fitted_on"] == "layer 6, 4 step (0 to 15), 2 branch (cond, uncond)"
    assert basis.attrs["tokens"] == 4 * 2 * 24
    part = pca_maps(hidden.isel(step=[0], layer=2), basis=basis)
    np.testing.assert_array_equal(part["components"], basis["components"])
    whole = pca_maps(hidden.isel(layer=2), basis=pca_maps(hidden.isel(layer=1), basis=basis))
    assert whole["layer"] == 11 and whole.attrs == basis.attrs
    np.testing.assert_array_equal(part["maps"], whole["maps"].isel(step=[0]))


def test_colours_have_one_scale_over_the_set(hidden: xr.DataArray) -> None:
    maps = pca_maps(hidden)["maps"]
    rgb = to_rgb(maps)
    assert rgb.dims == (*maps.dims[:-1], "rgb") and rgb["rgb"].values.tolist() == ["r", "g", "b"]
    assert rgb.min() == 0 and rgb.max() == 1
    low, high = np.percentile(maps.to_numpy().reshape(-1, 3), [1, 99], axis=0)
    np.testing.assert_allclose(rgb, np.clip((maps - low) / (high - low), 0, 1), atol=1e-5)
    flat = to_rgb(xr.zeros_like(maps))
    assert (flat == 0.5).all()


def test_errors(hidden: xr.DataArray) -> None:
    with pytest.raises(DitLensError, match="n is 7, but there are 6"):
        pca_basis(hidden, n=7)
    with pytest.raises(DitLensError, match="all tokens are the same"):
        pca_basis(xr.ones_like(hidden))
    with pytest.raises(DitLensError, match="6 channels, but the states have 5"):
        pca_maps(hidden.isel(channel=slice(5)), basis=pca_basis(hidden))
    with pytest.raises(DitLensError, match="3 components, but there are 2"):
        to_rgb(pca_maps(hidden, n=2)["maps"])
    with pytest.raises(DitLensError, match="percentiles"):
        to_rgb(pca_maps(hidden)["maps"], low=99, high=1)
    hidden[3, 1, 0, 0, 0, 0, 0] = np.inf
    with pytest.raises(DitLensError, match="NaN or Inf in the state at step 15, branch uncond, layer 0"):
        pca_basis(hidden)
