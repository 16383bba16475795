"""Attribution: it is the gradient times the difference, and says where that is not what a patch does."""

import numpy as np
import pytest
import torch
import xarray as xr

import dit_lens as dl
from dit_lens.engine.attribution_check import DrawnPatches, Patched
from gradients import lens_on, measured, slope, state, two_rows, weighted
from loops import SAMPLE

SHAPE = (2, 2, 4, 4)
TOKENS = ["frame", "y", "x"]


@pytest.fixture(scope="module")
def batch():
    return two_rows(lens_on())


@pytest.fixture(scope="module")
def linear():
    return two_rows(lens_on(linear=True))


@pytest.mark.parametrize("until", [None, -1], ids=["at its step", "through all steps"])
@pytest.mark.parametrize("of", ["x0", "velocity"])
def test_it_is_the_slope_of_the_metric_on_the_way_to_the_clean_state(batch, until, of):
    metric = weighted(SHAPE, power=3)
    gain = batch.attribute(metric, ["block", "mlp"], place=dl.at(step=[0, 1]), until=until, of=of)
    for site, step, branch, layer, token in [
        ("block", 0, "cond", 0, (0, 1, 2)),
        ("block", 1, "uncond", 2, (1, 3, 3)),
        ("mlp", 0, "uncond", 1, (1, 0, 2)),
        ("mlp", 1, "cond", 2, (0, 0, 0)),
    ]:
        place = site, step, branch, layer
        expected = slope(batch, metric, place, step if until is None else 2, 1e-4, of, token)
        got = gain[site].sel(step=step, branch=branch, layer=layer).values[token]
        assert got == pytest.approx(expected, rel=1e-5, abs=1e-12)
        assert abs(got) > 1e-8  # not of nothing


@pytest.mark.parametrize("until", [None, -1])
def test_where_all_is_linear_it_is_what_patches_do(linear, until):
    gain = linear.attribute(weighted(SHAPE), ["block", "mlp", "block_in"], until=until, check=10_000)
    assert gain.sizes["check"] == 3 * 3 * 2 * 3 * 32  # all there are
    np.testing.assert_allclose(gain.estimate, gain.exact, rtol=1e-6, atol=1e-13)
    assert gain.sizes["check_whole"] == 3 * 3 * 2 * 3
    np.testing.assert_allclose(gain.estimate_whole, gain.exact_whole, rtol=1e-6, atol=1e-12)
    for name in ("spearman", "spearman_whole", "slope", "slope_whole"):
        assert gain.attrs[name] == pytest.approx(1, abs=1e-4)
    assert "warning" not in gain.attrs
    # Each token was patched where the coordinates say.
    n = int(np.argmax(np.abs(gain.exact.values)))
    row = gain.isel(check=n)
    place = (
        str(row.check_site.values),
        int(row.check_step),
        str(row.check_branch.values),
        int(row.check_layer),
    )
    token = int(row.check_frame), int(row.check_y), int(row.check_x)
    clean = state(linear, 0, place)

    def put(h, at):
        h[token] = clean[token]
        return h

    last = place[1] if until is None else 2
    patched, unpatched = (measured(linear, weighted(SHAPE), place, f, last) for f in (put, lambda h, at: h))
    assert patched - unpatched == pytest.approx(float(row.exact), rel=1e-6)


def test_of_latents_all_that_differs_passes_through(linear):
    """Only their noise tells the rows apart, so to patch x_0 is to become the clean row."""
    gain = linear.attribute(weighted(SHAPE), "latents", place=dl.at(step=0), until=-1)
    assert gain.latents.dims == ("step", "frame", "latent_y", "latent_x")
    assert float(gain.latents.sum()) == pytest.approx(
        float(gain.metric_clean - gain.metric_corrupt), rel=1e-6
    )


def test_the_integral_between_both_states_is_complete(batch):
    metric = weighted(SHAPE, power=3)
    places = dl.at(step=[0, 1], layer=[0, 2])
    gain = batch.attribute(metric, place=places, integrate=12, until=-1)
    line = batch.attribute(metric, place=places, until=-1)
    exact = gain.block_patched
    np.testing.assert_allclose(gain.block.sum(TOKENS), exact, rtol=1e-4)
    assert gain.attrs["largest_gap"] <= 1e-4 * gain.attrs["largest_patched"]
    off = abs(line.block.sum(TOKENS) - exact) / abs(exact)
    assert float(off.max()) > 0.1  # where the line alone fails
    place = "block", 1, "uncond", 2
    clean = state(batch, 0, place)
    patched, unpatched = (
        measured(batch, metric, place, f, 2) for f in (lambda h, at: clean, lambda h, at: h)
    )
    assert float(exact.sel(step=1, branch="uncond", layer=2)) == pytest.approx(patched - unpatched, rel=1e-6)


def test_too_few_nodes_and_too_little_rank_are_said():
    batch = two_rows(lens_on())

    def kinked(x0):
        return torch.sin(2000 * x0).mean()

    gain = batch.attribute(kinked, place=dl.at(step=1), integrate=1)
    assert "not complete" in gain.attrs["warning"]
    gain = batch.attribute(kinked, place=dl.at(step=1), check=60)
    assert gain.attrs["spearman_whole"] < 0.8 and "6 states of all tokens" in gain.attrs["warning"]
    gain = batch.attribute(lambda x0: torch.exp(-30 * weighted(SHAPE)(x0)), place=dl.at(step=1), check=60)
    assert gain.attrs["spearman_whole"] > 0.8 and gain.attrs["slope_whole"] < 0.5
    assert "are no gains" in gain.attrs["warning"]
    assert gain.check_whole_site.size == 6 and "check_whole_frame" not in gain.coords


def test_a_check_of_places_that_do_not_differ_says_nothing(batch):
    gain = batch.attribute(lambda x0: 0 * x0.mean(), place=dl.at(step=0), check=5)
    assert np.isnan(gain.attrs["spearman"]) and "says nothing" in gain.attrs["warning"]
    assert "All attributions are 0" in gain.attrs["warning"]
    assert float(abs(gain.block).max()) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_of_a_narrow_type_the_warning_says_that_a_patch_may_be_less_than_rounding(dtype):
    patches = [Patched(0, ("block", "cond", 0), (0, 0, n)) for n in range(4)]
    rising = np.array([1.0, 2.0, 3.0, 4.0])
    warning = DrawnPatches(patches, rising, -rising, dtype).warning
    assert "correlation of -1.00" in warning
    assert ("less than rounding" in warning) == (dtype == torch.bfloat16)
    assert DrawnPatches(patches, rising, rising, dtype).warning == ""


def test_the_same_seed_checks_the_same_places(batch):
    def places(seed):
        gain = batch.attribute(weighted(SHAPE), place=dl.at(step=0), check=7, seed=seed)
        return [gain[f"check_{name}"].values.tolist() for name in ("layer", "frame", "y", "x")]

    assert places(1) == places(1) != places(2)


@pytest.mark.parametrize("options", [{"check": 20}, {"integrate": 3}])
def test_rows_that_go_alone_say_the_same(batch, options):
    alone = two_rows(lens_on(), at_once=1)
    of = {"place": dl.at(step=1, layer=[0, 1]), "until": -1, **options}
    together, apart = (b.attribute(weighted(SHAPE, 3), **of) for b in (batch, alone))
    for name in together.data_vars:
        np.testing.assert_allclose(apart[name], together[name], rtol=1e-9, atol=1e-15)


def test_edits_of_the_rows_hold(linear):
    """Layer 1 of the corrupt row is zero, so nothing before it counts; and its own gain is from zero to the clean state."""
    edits = [[], [(dl.zero(), dl.at(layer=1, step=1))]]
    gain = linear.attribute(weighted(SHAPE), place=dl.at(step=1), edits=edits, check=10_000)
    assert float(abs(gain.block.sel(layer=0)).max()) == 0 < float(abs(gain.block.sel(layer=1)).max())
    np.testing.assert_allclose(gain.estimate, gain.exact, rtol=1e-6, atol=1e-13)
    both = linear.attribute(weighted(SHAPE), place=dl.at(step=1), edits=[edits[1], edits[1]])
    assert float(abs(both.block.sel(layer=1)).max()) == 0


def test_one_row_under_two_edits_is_two_rows(linear):
    edits = [[], [(dl.add_noise(scale=1.0), dl.at(site="latents", step=0))]]
    gain = linear.attribute(weighted(SHAPE), "latents", clean=0, corrupt=0, place=dl.at(step=0), edits=edits)
    assert float(gain.latents.sum()) == pytest.approx(
        float((gain.metric_clean - gain.metric_corrupt)[0]), rel=1e-6
    )


def test_edits_that_take_the_x0_before_are_differentiated_through(linear):
    edits = [[(dl.renoise(seed=n), dl.at(step="1-"))] for n in (0, 0)]
    gain = linear.attribute(weighted(SHAPE), place=dl.at(step=0), edits=edits, until=-1, check=10_000)
    np.testing.assert_allclose(gain.estimate, gain.exact, rtol=1e-6, atol=1e-13)
    assert float(abs(gain.exact).max()) > 1e-6


def test_rows_by_number_and_by_pair_are_the_same(batch):
    by_pair = batch.attribute(
        weighted(SHAPE), clean=(SAMPLE, 1), corrupt=(SAMPLE, 0), place=dl.at(step=0, layer=1, branch="cond")
    )
    by_number = batch.attribute(weighted(SHAPE), clean=1, corrupt=0, place=dl.at(step=0))
    np.testing.assert_allclose(by_pair.block, by_number.block.sel(layer=[1], branch=["cond"]), rtol=1e-12)


def test_every_number_has_a_name(batch):
    gain = batch.attribute(weighted(SHAPE), ["block", "x0"], place=dl.at(step=[1, 2]), check=3)
    assert gain.block.dims == ("step", "branch", "layer", "frame", "y", "x")
    assert gain.x0.dims == ("step", "frame", "latent_y", "latent_x")
    assert gain.step.values.tolist() == [1, 2] and gain.sigma.values.tolist() == batch.sigmas[1:]
    assert gain.branch.values.tolist() == ["cond", "uncond"] and gain.layer.values.tolist() == [0, 1, 2]
    assert gain.attrs["clean"].endswith("seed 0") and gain.attrs["corrupt"].endswith("seed 1")
    assert "2310.10348" in gain.attrs["sources"] and gain.attrs["check"] == 3


def test_it_is_kept_as_any_dataset(batch, tmp_path):
    gain = batch.attribute(lambda x0: 0 * x0.mean(), place=dl.at(step=0), check=5, integrate=2)
    gain.to_zarr(tmp_path / "gain.zarr", consolidated=False)
    read = xr.open_zarr(tmp_path / "gain.zarr", consolidated=False)
    xr.testing.assert_equal(read.load(), gain)
    assert read.attrs["warning"] == gain.attrs["warning"]


def test_heads_have_attributions_of_their_own_which_add_up_to_that_of_the_attention():
    """The projection of the heads is linear, so what all heads of a token say is what the attention says."""
    lens = dl.load("organism-v1")
    batch = lens.batch([(dl.tasks.maze(seed=1_000_007), 0), (dl.tasks.maze(seed=1_000_008), 0)], steps=2)
    drawn = torch.randn(48, 4, 12, 12, generator=torch.Generator().manual_seed(0))

    def metric(x0):
        return (x0 * drawn).sum()

    place = dl.at(step=1, layer=[3, 5])
    sites = ["self_attn", "heads", "attn_v"]
    found = batch.attribute(metric, sites, clean=0, corrupt=1, place=place, check=40)
    assert found.heads.dims == ("step", "branch", "layer", "head", "frame", "y", "x")
    whole = found.self_attn.values
    assert np.allclose(found.heads.sum("head"), whole, atol=1e-4 * np.abs(whole).max())
    assert (found.heads.std(("frame", "y", "x")) > 0).all()
    assert set(found.check_head.values.tolist()) == {-1, 0, 1, 2, 3}
    some = batch.attribute(metric, ["heads"], clean=0, corrupt=1, place=dl.at(step=1, layer=5, head=[1, 3]))
    assert some["head"].values.tolist() == [1, 3]
    assert np.allclose(some.heads, found.heads.sel(layer=[5], head=[1, 3]), atol=1e-6)
    # A patch of one head, in truth: from the clean run's own heads.
    x = batch.step(0, batch.noise).latents
    heads = batch.step(1, x, watch=[("heads", "cond", 5)]).states["heads", "cond", 5][0]
    one = heads.unflatten(-1, (4, -1))[..., 2, :]
    edits = [[], [(dl.replace(value=one), dl.at(site="heads", layer=5, head=2, step=1))]]
    gain = metric(batch.step(1, x, edits=edits).x0[1]) - metric(batch.step(1, x).x0[1])
    chosen = (
        (found.check_whole_site == "heads") & (found.check_whole_head == 2) & (found.check_whole_layer == 5)
    )
    assert np.allclose(found.exact_whole[chosen.values].values, float(gain), atol=1e-2)
