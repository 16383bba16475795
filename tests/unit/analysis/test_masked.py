"""States made by hand: an object with more energy is found on its masks, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr

from dit_lens.analysis import masked_energy, token_shares
from dit_lens.analysis.masked import region_energy
from dit_lens.errors import DitLensError

GRID = ["frame", "y", "x"]


@pytest.fixture
def masks() -> xr.DataArray:
    values = np.zeros((2, 2, 4, 4), bool)
    values[0, :, 1, 1:3] = True
    values[1] = ~values[0]
    return xr.DataArray(values, {"region": ["object", "background"]}, ["region", *GRID])


def state(masks: xr.DataArray, times: float = 1.0, constant: float = 0.0) -> xr.DataArray:
    """Noise that is `times` as strong on the object, and a constant in channel 0 of every token."""
    values = np.random.default_rng(0).standard_normal((2, 4, 4, 200))
    values[masks[0].values] *= times
    values[..., 0] += constant
    return xr.DataArray(values, dims=[*GRID, "channel"])


def ratio(out: xr.Dataset, name: str) -> float:
    return float(out[name].sel(region="object") / out[name].sel(region="background"))


def test_an_object_of_twice_the_norm_has_twice_the_energy_and_one_of_the_same_has_not(masks):
    planted, null = masked_energy(state(masks, times=2.0), masks), masked_energy(state(masks), masks)
    assert ratio(planted, "raw") == pytest.approx(2, rel=0.05)
    assert ratio(planted, "centred") == pytest.approx(2, rel=0.1)
    for name in ("raw", "centred"):
        assert ratio(null, name) == pytest.approx(1, abs=0.05)


def test_a_constant_channel_hides_the_object_from_raw_energy_and_not_from_centred(masks):
    plain, hidden = (masked_energy(state(masks, 2.0, constant), masks) for constant in (0.0, 1000.0))
    assert ratio(hidden, "raw") == pytest.approx(1, abs=0.01)
    np.testing.assert_allclose(hidden.centred, plain.centred, rtol=1e-9)
    np.testing.assert_allclose(hidden.variance, plain.variance, rtol=1e-6)


def test_numbers_are_those_of_the_definition(masks):
    hidden = state(masks, 3.0, 5.0)
    tokens, inside = hidden.values.reshape(-1, 200), masks[0].values.ravel()
    out = masked_energy(hidden, masks).sel(region="object")
    assert float(out.raw) == pytest.approx(np.linalg.norm(tokens[inside], axis=1).mean())
    assert float(out.centred) == pytest.approx(
        np.linalg.norm((tokens - tokens.mean(0))[inside], axis=1).mean()
    )
    assert float(out.variance) == pytest.approx(tokens[inside].var(0).sum())
    # On the device, in float32, the same numbers come out.
    regions = torch.from_numpy(masks.values.reshape(2, -1)).float()
    found = region_energy(torch.from_numpy(tokens).float(), regions)
    np.testing.assert_allclose(found[:, 0], [out.raw, out.centred, out.variance], rtol=1e-4)


def test_each_state_is_measured_by_itself(masks):
    both = xr.concat([state(masks, 2.0), state(masks)], xr.Variable("layer", [4, 9]))
    out = masked_energy(both, masks)
    assert out.raw.dims == ("layer", "region") and out.layer.values.tolist() == [4, 9]
    xr.testing.assert_allclose(out.sel(layer=9, drop=True), masked_energy(state(masks), masks))


def test_a_region_without_a_token_is_nan_and_one_token_has_no_variance(masks):
    few = masks.copy()
    few[0] = False
    few[1] = False
    few[1, 0, 0, 0] = True
    out = masked_energy(state(masks), few)
    assert out.sel(region="object").to_array().isnull().all()
    assert np.isfinite(out.raw[1]) and np.isnan(out.variance[1])


def test_masks_of_another_grid_are_refused(masks):
    with pytest.raises(DitLensError, match="on the states' grid"):
        masked_energy(state(masks), masks.isel(x=slice(0, 2)))


@pytest.mark.parametrize(
    "time, frames, expected",
    [
        (9, 3, [0, 0.25, 1]),  # causal: frame 0 alone, then 1 to 4 and 5 to 8
        (9, 9, [0, 0, 0, 0, 1, 1, 1, 1, 1]),
        (8, 2, [0, 1]),  # evenly: 0 to 3 and 4 to 7
        (9, 1, [5 / 9]),
    ],
)
def test_frames_of_a_video_go_to_the_tokens_that_stand_for_them(time, frames, expected):
    mask = np.zeros((time, 4, 4), bool)
    mask[4:] = True
    shares = token_shares(mask, (frames, 2, 1))
    assert shares.shape == (frames, 2, 1)
    np.testing.assert_allclose(shares, np.broadcast_to(np.array(expected)[:, None, None], shares.shape))


def test_pixels_of_a_picture_go_to_their_tiles_and_stay_at_all_times():
    mask = np.zeros((4, 6), bool)
    mask[0, :4] = True
    np.testing.assert_allclose(token_shares(mask, (2, 2, 2)), [[[0.5, 1 / 6], [0, 0]]] * 2)


def test_shares_follow_the_organisms_own_codec(lens):
    """What is painted into one pixel frame moves the latents of the token frame that it is counted to, and no other's."""
    video = np.zeros((13, 16, 16, 3), np.uint8)
    painted = video.copy()
    painted[6, 8:, 8:] = 255
    moved = (lens.encode(painted) - lens.encode(video)).abs().amax(
        -1
    ).numpy() > 1e-6  # [frame, latent_y, latent_x]
    shares = token_shares((painted > 0).any(-1), moved.shape)
    np.testing.assert_array_equal(moved, shares > 0)


def test_what_does_not_share_out_is_refused():
    with pytest.raises(DitLensError, match="does not share out among 3 x 2"):
        token_shares(np.zeros((4, 4), bool), (1, 3, 2))
    with pytest.raises(DitLensError, match="6 frames do not share out among 4"):
        token_shares(np.zeros((6, 4, 4), bool), (4, 2, 2))
    with pytest.raises(DitLensError, match=r"give \[time, height, width\]"):
        token_shares(np.zeros(4, bool), (1, 1, 1))


def test_the_variance_of_a_region_far_from_the_others_is_exact():
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(40, 3)).astype(np.float32)
    regions = np.repeat(np.eye(2, dtype=np.float32), 20, 1)
    near = region_energy(tokens, regions)[2]
    far = region_energy(tokens + 1e4 * regions[0][:, None], regions)[2]
    assert np.allclose(far, near, rtol=1e-2)
