from __future__ import annotations

import numpy as np
import pytest
import xarray as xr


@pytest.fixture
def hidden() -> xr.DataArray:
    """States of 4 steps, 2 branches, 3 layers on a grid of 2 x 3 x 4 tokens, with 6 channels."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((4, 2, 3, 2, 3, 4, 6)).astype(np.float32)
    return xr.DataArray(
        values * np.array([5, 1, 3, 0.5, 2, 0.1], np.float32) + 10,
        dims=["step", "branch", "layer", "frame", "y", "x", "channel"],
        coords={
            "step": [0, 5, 10, 15],
            "branch": ["cond", "uncond"],
            "layer": [0, 6, 11],
            "sigma": ("step", [1.0, 0.9, 0.7, 0.3]),
            "timestep": ("step", [1000.0, 900.0, 700.0, 300.0]),
        },
        name="hidden",
    )


@pytest.fixture
def stored(hidden: xr.DataArray, tmp_path: object) -> xr.DataArray:
    """The same states, lazy from a zarr store."""
    hidden.to_dataset().to_zarr(f"{tmp_path}/run.zarr", consolidated=False, zarr_format=3)
    return xr.open_zarr(f"{tmp_path}/run.zarr", chunks=None, consolidated=False)["hidden"]
