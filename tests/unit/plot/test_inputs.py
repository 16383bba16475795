from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from dit_lens.errors import DitLensError
from dit_lens.plot.inputs import labels_of, limits, select, spread, titled

GRID = ["frame", "y", "x"]


def test_what_is_too_much_for_one_picture_says_how_to_select(tokens: xr.DataArray) -> None:
    with pytest.raises(DitLensError, match=r"select, e.g. .sel\(step=.*0.*, branch=.*cond"):
        select(tokens.sel(layer=1), GRID, "energy_frames")
    with pytest.raises(DitLensError, match="at most one of step, layer"):
        select(tokens.sel(branch="cond"), GRID, "curves", ["step", "layer"])
    one = select(tokens.isel(step=[2], branch=[0], layer=[3]).transpose("x", ...), GRID, "energy_frames")
    assert one.dims == ("frame", "y", "x") and one["step"] == 10
    assert select(tokens[0, 0], GRID, "curves", ["layer"]).dims == ("layer", *GRID)


def test_titles_say_where(tokens: xr.DataArray) -> None:
    one = tokens.sel(step=5, branch="cond", layer=6)
    assert titled("Energy", one, None) == "Energy · step 5 (σ 0.9) · cond · layer 6"
    assert titled("Energy", one, "mine") == "mine"


def test_spread_has_both_ends() -> None:
    assert spread(21, 7).tolist() == [0, 3, 7, 10, 13, 17, 20]
    assert spread(3, 8).tolist() == [0, 1, 2] == spread(3, None).tolist()


def test_limits_are_never_empty() -> None:
    assert limits(np.array([np.nan, 1, 3])) == (1, 3)
    assert limits(np.full(4, 2.0)) == (1.5, 2.5)
    assert limits(np.full(4, np.nan)) == (0, 1)
    assert labels_of(xr.DataArray([1, 2], dims="layer"), "layer") == [0, 1]
