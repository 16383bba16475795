from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from dit_lens.analysis.states import float64_blocks, map_units, require_dims, require_recorded, units
from dit_lens.errors import DitLensError

INNER = ["frame", "y", "x", "channel"]


def test_units_are_all_there_once_and_in_order(hidden: xr.DataArray) -> None:
    seen = list(units(hidden, INNER, "test"))
    assert len(seen) == 4 * 2 * 3
    index, values = seen[7]
    assert index == {"step": 1, "branch": 0, "layer": 1}
    np.testing.assert_array_equal(values, hidden[1, 0, 1])


def test_units_transpose_to_the_order_asked_for(hidden: xr.DataArray) -> None:
    moved = hidden.transpose("channel", "x", "y", "frame", ...)
    _, values = next(units(moved, INNER, "test"))
    np.testing.assert_array_equal(values, hidden[0, 0, 0])


def test_a_lazy_array_is_not_loaded_as_a_whole(stored: xr.DataArray) -> None:
    for _ in units(stored, INNER, "test"):
        pass
    assert not stored.variable._in_memory


def test_map_units_keeps_the_coordinates_that_still_apply(hidden: xr.DataArray) -> None:
    hidden = hidden.assign_coords(channel=list("abcdef"))
    out = map_units(hidden, INNER, ["frame"], lambda v: v.sum((1, 2, 3)), "test")
    assert out.dims == ("step", "branch", "layer", "frame")
    assert set(out.coords) == {"step", "branch", "layer", "sigma", "timestep"}
    np.testing.assert_allclose(out, hidden.sum(["y", "x", "channel"]), rtol=1e-6)


def test_a_state_that_was_not_recorded_is_named(hidden: xr.DataArray) -> None:
    hidden[2, 1, 1] = np.nan
    with pytest.raises(DitLensError, match="step 10, branch uncond, layer 6") as error:
        list(units(hidden, INNER, "energy"))
    assert "energy: hidden was not recorded" in str(error.value)


def test_require_recorded_names_places_and_scalar_coordinates(hidden: xr.DataArray) -> None:
    hidden[:, 1, 1] = np.nan
    with pytest.raises(DitLensError, match=r"step 0, branch uncond, layer 6; .*step 15"):
        require_recorded(hidden.sel(branch="uncond", layer=6), "plot")
    with pytest.raises(DitLensError, match="and 2 more"):
        require_recorded(hidden.isel(step=[0, 1, 2, 3, 0, 1]), "plot")
    one_token_missing = hidden.sel(branch="cond").copy()
    one_token_missing[0, 0, 0, 0, 0] = np.nan
    require_recorded(one_token_missing, "plot")


def test_require_dims_says_what_to_do(hidden: xr.DataArray) -> None:
    latents = xr.DataArray(np.zeros((2, 3, 4)), dims=["frame", "latent_y", "latent_channel"])
    with pytest.raises(DitLensError, match=r"rename\(latent_y='y', latent_channel='channel'\)"):
        require_dims(latents, ["channel"], "energy")
    with pytest.raises(DitLensError, match="empty"):
        require_dims(hidden.isel(step=slice(0)), ["channel"], "energy")
    codes = hidden.astype(np.uint16).assign_attrs(logical_dtype="bfloat16")
    with pytest.raises(DitLensError, match=r"bfloat16 codes in uint16.*open_runs"):
        require_dims(codes, ["channel"], "energy")


def test_blocks_cover_all_tokens() -> None:
    tokens = np.arange(70, dtype=np.float16).reshape(10, 7)
    blocks = list(float64_blocks(tokens, size=3 * 7 * 8))
    assert [len(b) for _, b in blocks] == [3, 3, 3, 1]
    np.testing.assert_array_equal(np.concatenate([b for _, b in blocks]), tokens)
    assert len(list(float64_blocks(tokens, size=1))) == 10
