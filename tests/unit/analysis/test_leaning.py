"""`leaning`: exact at both ends and in between, and not defined where there is nothing to lean to."""

import numpy as np
import pytest
import xarray as xr

import dit_lens as dl

DIMS = ("frame", "latent_y", "latent_x", "latent_channel")


def videos():
    rng = np.random.default_rng(0)
    a, b = (xr.DataArray(rng.standard_normal((2, 3, 3, 4)), dims=DIMS) for _ in range(2))
    return a, b


def test_it_is_minus_1_at_the_one_1_at_the_other_and_linear_between():
    a, b = videos()
    shares = xr.DataArray([0.0, 0.25, 0.5, 1.0], dims="step")
    found = dl.analysis.leaning(a + shares * (b - a), a, b)
    assert found.dims == ("step",)
    assert np.allclose(found, [-1, -0.5, 0, 1])


def test_beyond_the_other_it_stays_1_and_far_from_both_it_is_near_0():
    a, b = videos()
    away = xr.DataArray(np.random.default_rng(1).standard_normal(a.shape), dims=DIMS)
    assert float(dl.analysis.leaning(b + 3 * (b - a), a, b)) == 1
    assert abs(float(dl.analysis.leaning(a + 1e6 * away, a, b))) < 0.5
    far = away - ((away * (b - a)).sum() / ((b - a) ** 2).sum()) * (b - a)
    assert abs(float(dl.analysis.leaning((a + b) / 2 + 1e3 * far, a, b))) < 1e-6


def test_between_equal_videos_it_is_not_defined_and_rounding_counts_as_equal():
    a, b = videos()
    assert np.isnan(dl.analysis.leaning(b, a, a))
    assert np.isnan(dl.analysis.leaning(b, a, a + 1e-7))
    assert float(dl.analysis.leaning(b, a, a + 1e-2 * (b - a))) == pytest.approx(1)


def test_what_is_no_video_on_this_grid_is_refused():
    a, b = videos()
    with pytest.raises(dl.DitLensError, match="no dimension latent_channel"):
        dl.analysis.leaning(a.rename(latent_channel="channel"), a, b)
    with pytest.raises(dl.DitLensError, match="one grid"):
        dl.analysis.leaning(a.isel(frame=slice(1)), a, b)
    with pytest.raises(dl.DitLensError, match="NaN or Inf"):
        dl.analysis.leaning(a.where(a < a.max()), a, b)
