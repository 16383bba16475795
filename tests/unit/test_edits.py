"""Edits are pure functions of a small tensor and of where it stands."""

from dataclasses import replace as change

import numpy as np
import pytest
import torch
import xarray as xr

from dit_lens.edits import ablate, add_noise, mean_over_seeds, medoid_over_seeds, patch, replace, scale, zero
from dit_lens.errors import PlanError
from dit_lens.plan.places import Spot

SHAPE = (2, 3, 4, 5)
SPOT = Spot("block", 5, 0.5, 500.0, 7, "dit", "cond", 6)
FLOATS = [torch.float32, torch.bfloat16, torch.float16]
floats = pytest.mark.parametrize("dtype", FLOATS, ids=str)


def state(dtype=torch.float32):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.fixture
def source():
    """States of another run: the value says where each stands, as 1000 step + 100 branch + layer."""
    place = np.add.outer(np.add.outer([0, 5000, 10000], [0, 100]), [0, 6, 11]).astype(np.float32)
    return xr.DataArray(
        np.broadcast_to(place[..., None, None, None, None], (3, 2, 3, *SHAPE)).copy(),
        dims=["step", "branch", "layer", "frame", "y", "x", "channel"],
        coords={"step": [0, 5, 10], "branch": ["cond", "uncond"], "layer": [0, 6, 11]},
    )


@floats
def test_every_edit_keeps_shape_and_type_and_leaves_its_input_alone(dtype):
    value = np.full(SHAPE, 2.0)
    source = xr.DataArray(value, dims=["frame", "y", "x", "channel"])
    for edit in (add_noise(), scale(2.0), zero(), replace(value), replace(3), patch(source)):
        h = state(dtype)
        before = h.clone()
        out = edit(h, SPOT)
        assert (out.dtype, out.shape) == (dtype, h.shape), edit
        assert torch.equal(h, before), edit
        out.zero_()
        assert torch.equal(h, before), f"{edit} returns a view of its input"


# ---- noise


@floats
@pytest.mark.parametrize("nothing", [0, 0.0, -0.0])
def test_noise_of_scale_0_is_the_very_same_value(dtype, nothing):
    h = state(dtype)
    assert add_noise(scale=nothing)(h, SPOT) is h


@floats
def test_noise_depends_on_the_place_alone(dtype):
    h = state(dtype)
    torch.manual_seed(0)
    first = add_noise(scale=0.5)(h, SPOT)
    torch.manual_seed(1)
    state_before = torch.get_rng_state()
    second = add_noise(scale=0.5)(h, SPOT)
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state_before)


@pytest.mark.parametrize(
    "other",
    [
        {"site": "q"},
        {"step": 6},
        {"branch": "uncond"},
        {"branch": None},
        {"layer": 7},
        {"seed": 8},
        {"sample": 1},
    ],
    ids=str,
)
def test_another_place_has_other_noise(other):
    h = torch.zeros(SHAPE)
    assert not torch.equal(add_noise()(h, SPOT), add_noise()(h, change(SPOT, **other)))


def test_another_seed_of_the_edit_has_other_noise():
    h = torch.zeros(SHAPE)
    assert not torch.equal(add_noise(seed=0)(h, SPOT), add_noise(seed=1)(h, SPOT))


def test_places_whose_numbers_read_alike_have_noise_of_their_own():
    h = torch.zeros(SHAPE)
    one = add_noise()(h, change(SPOT, step=1, layer=11))
    assert not torch.equal(one, add_noise()(h, change(SPOT, step=11, layer=1)))


def test_noise_has_the_scale_asked_for_and_no_mean():
    noise = add_noise(scale=0.3)(torch.zeros(10, 20, 20, 50), SPOT)
    assert noise.std().item() == pytest.approx(0.3, rel=0.01)
    assert abs(noise.mean().item()) < 0.005
    assert torch.allclose(add_noise(scale=0.6)(torch.zeros_like(noise), SPOT), 2 * noise)


def test_noise_is_added_to_the_value():
    h = state()
    assert torch.allclose(add_noise()(h, SPOT) - h, add_noise()(torch.zeros(SHAPE), SPOT), atol=1e-6)


# ---- scale, zero, replace


@floats
def test_scale_multiplies_and_zero_clears(dtype):
    h = state(dtype)
    assert torch.equal(scale(factor=-2.0)(h, SPOT), h * -2)
    assert torch.equal(zero()(h, SPOT), torch.zeros_like(h))


def test_zero_also_clears_what_is_not_a_number():
    assert zero()(torch.full(SHAPE, torch.nan), SPOT).abs().sum() == 0


@pytest.mark.parametrize("shape", [(), (5,), (1,), (4, 1), (3, 1, 5), SHAPE])
@pytest.mark.parametrize("form", [np.asarray, torch.as_tensor, np.ndarray.tolist, xr.DataArray])
def test_replace_broadcasts_over_the_leading_dimensions(shape, form):
    value = np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape)
    out = replace(form(value))(state(), SPOT)
    np.testing.assert_array_equal(out.numpy(), np.broadcast_to(value, SHAPE))


def test_replace_gives_away_neither_its_value_nor_one_number_for_many():
    value = torch.ones(SHAPE)
    replace(value)(state(), SPOT).zero_()
    assert (value == 1).all()
    out = replace(torch.ones(5))(state(), SPOT)
    out[0, 0, 0] = 7
    assert (out[1:] == 1).all()


@pytest.mark.parametrize("shape", [(4,), (2, 1, 1), (1, *SHAPE), (3, *SHAPE)])
def test_replace_refuses_a_value_that_does_not_broadcast(shape):
    with pytest.raises(PlanError) as error:
        replace(np.ones(shape))(state(), SPOT)
    for part in ("replace at block(step=5", str(shape), str(SHAPE), "[frame, y, x, channel]"):
        assert part in str(error.value)


# ---- patch


@floats
@pytest.mark.parametrize(
    "step, branch, layer, value", [(0, "cond", 0, 0), (5, "uncond", 11, 5111), (10, "cond", 6, 10006)]
)
def test_patch_looks_the_place_up_by_its_labels(source, dtype, step, branch, layer, value):
    out = patch(source)(state(dtype), change(SPOT, step=step, branch=branch, layer=layer))
    assert torch.equal(out, torch.full(SHAPE, value).to(dtype))


def test_patch_takes_what_the_source_does_not_span_everywhere(source):
    one_layer = source.sel(layer=11, branch="cond")
    for layer in (0, 3):
        out = patch(one_layer)(state(), change(SPOT, branch="uncond", layer=layer))
        assert (out == 5011).all()


def test_patch_reads_lazy_states_from_a_store(source, tmp_path):
    source.rename("hidden").to_dataset().to_zarr(tmp_path / "run.zarr", consolidated=False, zarr_format=3)
    lazy = xr.open_zarr(tmp_path / "run.zarr", chunks=None, consolidated=False)["hidden"]
    assert (patch(lazy)(state(), SPOT) == 5006).all()


def test_patch_between_latents_needs_no_branch_or_layer():
    dims = ["step", "frame", "latent_y", "latent_x", "latent_channel"]
    latents = xr.DataArray(np.ones((1, *SHAPE)), dims=dims, coords={"step": [5]})
    out = patch(latents)(state(), Spot("latents", 5, 0.5, 500.0, 7, "dit"))
    assert (out == 1).all()


@pytest.mark.parametrize(
    "other, said", [({"step": 3}, "step=3"), ({"branch": None}, "branch=None"), ({"layer": 7}, "layer=7")]
)
def test_patch_refuses_a_place_that_the_source_does_not_hold(source, other, said):
    with pytest.raises(PlanError) as error:
        patch(source)(state(), change(SPOT, **other))
    (dim,) = other
    assert f"the source has no {said}, only {source[dim].values.tolist()}" in str(error.value)
    assert "record more" in str(error.value)


@pytest.mark.parametrize("dim", ["step", "branch", "layer"])
def test_patch_refuses_a_source_without_labels_instead_of_counting(source, dim):
    with pytest.raises(PlanError, match=rf"spans {dim} without a coordinate.*assign_coords\({dim}="):
        patch(source.drop_vars(dim))(state(), change(SPOT, step=0, layer=0))


def test_patch_refuses_another_grid(source):
    with pytest.raises(PlanError, match=r"the source is \(2, 3, 3, 5\) there, the value \(2, 3, 4, 5\)"):
        patch(source.isel(x=slice(3)))(state(), SPOT)


def test_patch_refuses_dimensions_in_another_order_or_too_many(source):
    square = source.isel(x=slice(3))
    h = torch.zeros(2, 3, 3, 5)
    with pytest.raises(PlanError, match=r"'frame', 'x', 'y', 'channel'.*transpose"):
        patch(square.transpose(..., "x", "y", "channel"))(h, SPOT)
    with pytest.raises(PlanError, match=r"'sample', 'frame', 'y', 'x', 'channel'.*select one"):
        patch(square.expand_dims(sample=2))(h, SPOT)


def test_patch_refuses_what_was_never_recorded(source):
    source.loc[{"step": 5, "layer": 6}] = np.nan
    with pytest.raises(PlanError, match=r"patch at block\(step=5.*never recorded"):
        patch(source)(state(), SPOT)
    assert (patch(source)(state(), change(SPOT, layer=0)) == 5000).all()


# ---- ablate


def test_ablations_within_a_value_leave_its_mean_or_its_tokens():
    h = state()
    mean = ablate(to="token_mean")(h, SPOT)
    assert torch.allclose(mean, h.mean((0, 1, 2)).expand_as(h)) and torch.equal(
        ablate(to="zero")(h, SPOT), 0 * h
    )
    shuffled = ablate(to="token_shuffle")(h, SPOT)
    assert not torch.equal(shuffled, h)
    assert sorted(shuffled.flatten(0, 2).tolist()) == sorted(h.flatten(0, 2).tolist())


@pytest.fixture
def reference(source):
    """States of three samples: as the source, and 0.25, 0.5 and 0.75 more."""
    return xr.concat([source + shift for shift in np.float32([0.25, 0.5, 0.75])], "sample").transpose(
        "step", ...
    )


@floats
def test_ablations_over_data_take_the_same_place_in_other_samples(reference, dtype):
    mean = ablate(to="mean", reference=reference)(state(dtype), SPOT)
    assert torch.equal(mean, torch.full(SHAPE, 5006.5).to(dtype))
    drawn = {
        float(ablate(to="resample", reference=reference, seed=s)(state(), SPOT).mean()) for s in range(20)
    }
    assert sorted(drawn) == [5006.25, 5006.5, 5006.75]


def test_one_sample_is_drawn_for_all_places_of_a_run_and_others_for_other_runs(reference):
    edit = ablate(to="resample", reference=reference)

    def shift(**where):
        return float(edit(state(), change(SPOT, **where)).mean()) % 1

    assert {
        shift(step=s, layer=n, branch=b) for s in (0, 10) for n in (0, 11) for b in ("cond", "uncond")
    } == {shift()}
    assert {shift(seed=s) for s in range(20)} == {0.25, 0.5, 0.75}


@pytest.mark.parametrize(
    "options, said",
    [
        ({"to": "median"}, "it is one of zero, token_mean, token_shuffle, mean, resample"),
        ({"to": "mean"}, "needs reference="),
        ({"to": "zero", "reference": 1}, "takes no reference"),
        ({"to": "mean", "reference": torch.zeros(SHAPE)}, "should have .'sample', 'frame'"),
    ],
    ids=str,
)
def test_an_ablation_that_does_not_say_over_what_is_refused(options, said):
    with pytest.raises(PlanError, match=said):
        ablate(**options)(state(), SPOT)


def test_a_reference_of_another_grid_or_without_the_place_is_refused(reference):
    with pytest.raises(PlanError, match=r"ablate at .*the reference is \(2, 3, 3, 5\) there"):
        ablate(to="mean", reference=reference.isel(x=slice(3)))(state(), SPOT)
    with pytest.raises(PlanError, match="the reference has no layer=7"):
        ablate(to="mean", reference=reference)(state(), change(SPOT, layer=7))
    with pytest.raises(PlanError, match="never recorded"):
        ablate(to="mean", reference=reference.where(reference.layer != 6))(state(), SPOT)


def test_a_labelled_value_is_laid_along_its_own_dimensions():
    h = torch.zeros(2, 3, 3, 4)
    rows = xr.DataArray(np.arange(12.0).reshape(3, 4), dims=("y", "channel"))
    new = replace(value=rows)(h, SPOT)
    np.testing.assert_array_equal(new[1, :, 2].numpy(), rows.values)
    turned = rows.expand_dims(x=3, frame=2)
    np.testing.assert_array_equal(replace(value=turned)(h, SPOT)[0, :, 0].numpy(), rows.values)
    with pytest.raises(PlanError, match="spans step"):
        replace(value=rows.expand_dims(step=1))(h, SPOT)


def test_noise_is_another_in_every_stream_and_stage():
    h, noise = torch.zeros(2, 2, 2, 8), add_noise(scale=1.0)
    spots = [SPOT, change(SPOT, stream="audio"), change(SPOT, stage=1)]
    values = [noise(h, at) for at in spots]
    assert not torch.equal(values[0], values[1]) and not torch.equal(values[0], values[2])


def test_the_mean_over_seeds_is_not_taken_of_one():
    """Called by a function that does not say that it sees all seeds, it would be the mean over frames."""
    with pytest.raises(PlanError, match=r"(?s)which is one seed.*f\.over_seeds = True"):
        mean_over_seeds()(state(), SPOT)
    seeds = torch.stack([state(), 3 * state()])
    assert torch.equal(mean_over_seeds()(seeds, SPOT)[0], 2 * state())


def test_the_medoid_is_the_seed_that_is_nearest_to_all_others():
    near, middle, far = state(), state() + 1, state() + 10
    for order in ([near, middle, far], [far, near, middle], [middle, far, near]):
        seeds = torch.stack(order)
        assert torch.equal(medoid_over_seeds()(seeds, SPOT), middle.expand_as(seeds))
    assert torch.equal(medoid_over_seeds()(torch.stack([far, near]), SPOT)[1], far)  # of two, the first
    for same in (state()[None], state().expand(3, *state().shape)):
        assert torch.equal(medoid_over_seeds()(same, SPOT), same)
    with pytest.raises(PlanError, match=r"(?s)medoid_over_seeds.*which is one seed.*f\.over_seeds = True"):
        medoid_over_seeds()(state(), SPOT)


def test_the_medoid_of_bfloat16_is_found_by_distances_that_it_cannot_hold():
    base = state().bfloat16()
    seeds = torch.stack([base, base, base])
    seeds[0, 0, 0, 0, 0] += 256.0
    seeds[1, 0, 0, 0, 0] += 255.0
    seeds[2, 0, 0, 0, 0] += 2.0
    assert torch.equal(medoid_over_seeds()(seeds, SPOT)[2], seeds[1])


def test_a_mean_of_doubles_keeps_their_digits():
    h = state(torch.float64)
    assert torch.equal(ablate(to="token_mean")(h, SPOT)[0, 0, 0], h.mean((0, 1, 2)))


def test_the_bits_of_bfloat16_are_not_taken_for_numbers(source):
    bits = source.astype(np.uint16)
    for edit in (patch(bits), replace(np.zeros(5, np.uint16))):
        with pytest.raises(PlanError, match="holds the bits of bfloat16 numbers"):
            edit(state(), SPOT)


@floats
def test_what_a_value_holds_along_directions_is_taken_away_and_the_rest_stays(dtype):
    h, along = (
        state(dtype),
        np.array([[2.0, 0, 0, 0, 0], [2.0, 3, 0, 0, 0]]),
    )  # they span the first two channels
    exact = {"rtol": 0, "atol": 1e-6 if dtype == torch.float32 else 2e-2}
    gone = ablate(to="zero", direction=along)(h, SPOT)
    assert gone.dtype == dtype and torch.allclose(gone[..., :2], 0 * h[..., :2], **exact)
    assert torch.allclose(gone[..., 2:], h[..., 2:], **exact)
    level = ablate(to="token_mean", direction=along[1] - along[0])(h, SPOT)
    assert torch.allclose(level[..., 1], h[..., 1].mean().expand(SHAPE[:3]), **exact)
    assert torch.allclose(level[..., [0, 2, 3, 4]], h[..., [0, 2, 3, 4]], **exact)
    oblique = torch.tensor([3.0, 0, 0, 0, 4.0])
    left = ablate(to="zero", direction=oblique)(state(), SPOT)
    assert torch.allclose(left @ oblique, torch.zeros(SHAPE[:3]), atol=1e-5)
    assert torch.allclose(
        ablate(to="zero", direction=np.eye(5))(state(), SPOT), torch.zeros(SHAPE), atol=1e-6
    )


@pytest.mark.parametrize(
    "direction, match",
    [
        (np.ones(4), "5 channels"),
        (np.zeros(5), "points nowhere"),
        (np.full(5, np.nan), "points nowhere"),
        (np.ones((2, 5)), "depend on one another"),
    ],
)
def test_a_direction_that_is_none_is_refused(direction, match):
    with pytest.raises(PlanError, match=match):
        ablate(to="zero", direction=direction)(state(), SPOT)
