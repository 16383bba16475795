from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from dit_lens.analysis import energy


@pytest.fixture
def hidden() -> xr.DataArray:
    """States of 4 steps, 2 branches, 8 layers on 5 x 3 x 4 tokens, 6 channels; energy grows with depth."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((4, 2, 8, 5, 3, 4, 6)).astype(np.float32)
    values *= 2.0 ** np.arange(8)[:, None, None, None, None]
    return xr.DataArray(
        values,
        dims=["step", "branch", "layer", "frame", "y", "x", "channel"],
        coords={
            "step": [0, 5, 10, 15],
            "branch": ["cond", "uncond"],
            "layer": np.arange(8),
            "sigma": ("step", [1.0, 0.9, 0.7, 0.3]),
        },
        name="hidden",
    )


@pytest.fixture
def tokens(hidden: xr.DataArray) -> xr.DataArray:
    """The energy of those states."""
    return energy(hidden)


@pytest.fixture
def video() -> np.ndarray:
    """A red square that walks to the right: 9 frames of 48 x 64 pixels."""
    frames = np.full((9, 48, 64, 3), 230, np.uint8)
    for t, frame in enumerate(frames):
        frame[16:32, 4 + 4 * t : 20 + 4 * t] = (200, 30, 30)
    return frames
