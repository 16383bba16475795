"""Where an effect begins: where it was planted, and nowhere where there is none."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from dit_lens.analysis import effect, mean, onset
from dit_lens.errors import DitLensError


def curves(planted: float, seed: int = 0, samples: int = 24) -> xr.DataArray:
    """Noise about 0 at layers 0, 2, ... 14, and an effect from layer 6 on."""
    layers = np.arange(0, 16, 2)
    values = np.random.default_rng(seed).standard_normal((samples, len(layers)))
    coords = {"sample": np.arange(samples), "layer": layers}
    return xr.DataArray(values + planted * (layers >= 6), coords, ["sample", "layer"])


@pytest.mark.parametrize("sign", [1, -1])
def test_a_planted_effect_begins_where_it_was_planted(sign):
    assert float(onset(mean(curves(3.0 * sign), along="layer"), "layer")) == 6
    values = curves(3.0 * sign)
    assert float(onset(effect(values, xr.zeros_like(values), along="layer"), "layer")) == 6


def test_where_there_is_none_one_is_found_as_often_as_the_level_says():
    found = [
        np.isfinite(onset(mean(curves(0.0, seed), along="layer", draws=500), "layer")) for seed in range(100)
    ]
    assert np.mean(found) < 0.12


def test_each_other_position_has_its_own_onset():
    both = xr.concat([curves(3.0), curves(0.0)], xr.Variable("step", [0, 9]))
    out = onset(mean(both, along=["layer", "step"]), "layer")
    assert out.dims == ("step",) and out.sel(step=0) == 6 and np.isnan(out.sel(step=9))


def test_without_a_band_over_the_dimension_it_is_refused():
    with pytest.raises(DitLensError, match="along='layer'"):
        onset(mean(curves(3.0)), "layer")
    with pytest.raises(DitLensError, match="along='step'"):
        onset(mean(curves(3.0), along="layer"), "step")
