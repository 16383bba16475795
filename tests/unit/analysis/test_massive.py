"""States made by hand: a channel that is constant and huge is found, and none where there is none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr

from dit_lens.analysis import massive_channels
from dit_lens.analysis.massive import channel_sizes, largest_channels, matched_channels
from dit_lens.errors import DitLensError


def state(constant: float = 0.0, channel: int = 7) -> xr.DataArray:
    values = np.random.default_rng(0).standard_normal((2, 8, 8, 64))
    values[..., channel] += constant
    return xr.DataArray(values, dims=["frame", "y", "x", "channel"])


def test_a_planted_constant_is_massive_carries_the_energy_and_no_more_variance_than_others():
    out = massive_channels(state(1000.0), k=1)
    assert int(out.massive) == 1 and out.channel.values.tolist() == [7]
    assert float(out.energy_share) > 0.999
    assert float(out.variance_share) == pytest.approx(1 / 64, rel=0.3)
    assert float(out.largest_to_median) == pytest.approx(1000 / np.sqrt(2 / np.pi), rel=0.05)


def test_noise_alone_has_no_massive_channel_and_its_largest_carry_their_share():
    out = massive_channels(state(), k=3)
    assert int(out.massive) == 0
    assert float(out.energy_share) == pytest.approx(3 / 64, rel=0.4)
    assert int(massive_channels(state(60.0), k=1).massive) == 0  # under 100 times the median
    assert int(massive_channels(state(60.0), k=1, times=50).massive) == 1


def test_each_state_has_its_own_channels_by_their_labels():
    both = xr.concat([state(50.0, 3), state(50.0, 9)], xr.Variable("layer", [0, 5]))
    out = massive_channels(both.assign_coords(channel=np.arange(64) + 100), k=1)
    assert out.channel.dims == ("layer", "rank") and out.channel.values.tolist() == [[103], [109]]


def test_sizes_are_those_of_the_definition_on_every_device():
    tokens = state(3.0).values.reshape(-1, 64)
    expected = [np.abs(tokens).mean(0), (tokens**2).mean(0), tokens.var(0)]
    np.testing.assert_allclose(channel_sizes(tokens), expected)
    np.testing.assert_allclose(channel_sizes(torch.from_numpy(tokens)), expected)


def test_states_without_energy_say_so():
    still = xr.zeros_like(state())
    out = massive_channels(still, k=1)
    assert int(out.massive) == 0 and np.isnan(out.energy_share) and np.isnan(out.variance_share)


def test_a_k_that_does_not_fit_and_numbers_that_are_none_are_refused():
    for k in (0, 64):
        with pytest.raises(DitLensError, match="take 1 to 63"):
            massive_channels(state(), k=k)
    with pytest.raises(DitLensError, match="channel 7 is NaN or Inf"):
        massive_channels(state(np.inf), k=1)
    assert largest_channels(np.array([1.0, 3, 3, 2]), 3).tolist() == [1, 2, 3]


def test_channels_are_matched_by_variance_each_once():
    variance = np.array([10.0, 9.9, 5.0, 5.1, 1.0, 9.0])
    assert matched_channels(variance, [0, 2]) == [1, 3]
    assert matched_channels(variance, [0, 1]) == [5, 3]
    with pytest.raises(DitLensError, match="take 3 at most"):
        matched_channels(variance, [0, 1, 2, 3])
