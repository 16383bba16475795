"""Directions between two kinds of states: a planted one is found by all ways, and what has none is refused."""

import numpy as np
import pytest
import xarray as xr

import dit_lens as dl

RNG = np.random.default_rng(0)
PLANTED = np.array([3.0, 0, 0, -4.0, 0, 0])
"""5 long."""


def states(shift, count=200, noise=None, **dims):
    noise = RNG.standard_normal((count, *(len(v) for v in dims.values()), 6)) if noise is None else noise
    return xr.DataArray(noise + shift, dims=["sample", *dims, "channel"], coords=dims)


@pytest.mark.parametrize("how", ["means", "probe", "pca"])
def test_a_planted_direction_is_found_with_its_length_and_sign(how):
    shared = RNG.standard_normal((200, 6)) * [
        9,
        1,
        1,
        1,
        9,
        1,
    ]  # what differs between samples, and not between kinds
    a = states(PLANTED, noise=shared + 0.3 * RNG.standard_normal((200, 6)))
    b = states(0, noise=shared + 0.3 * RNG.standard_normal((200, 6)))
    found = dl.analysis.direction(a, b, how=how).values
    cosine = float(found @ PLANTED) / 5 / float(np.linalg.norm(found))
    assert cosine > (0.8 if how == "probe" else 0.99)  # the probe turns away from where samples differ
    assert float(found @ PLANTED) / 5 == pytest.approx(5, rel=0.35 if how == "probe" else 0.05)
    # Along it, scale 1 takes the one mean to the other.
    unit = found / np.linalg.norm(found)
    assert float((b.mean("sample") + found - a.mean("sample")).values @ unit) == pytest.approx(0, abs=1e-9)
    assert np.allclose(dl.analysis.direction(b, a, how=how), -found, atol=1e-6)


def test_each_layer_and_step_has_its_own():
    shift = xr.DataArray(np.stack([PLANTED, -PLANTED]), dims=["layer", "channel"], coords={"layer": [2, 5]})
    a = states(0, layer=[2, 5], step=[0, 3]) * 0.01 + shift
    b = states(0, layer=[2, 5], step=[0, 3]) * 0.01
    found = dl.analysis.direction(a.transpose("channel", ...), b)
    assert found.dims == ("step", "layer", "channel") or found.dims == ("layer", "step", "channel")
    assert found.layer.values.tolist() == [2, 5] and found.step.values.tolist() == [0, 3]
    assert np.allclose(found, shift.broadcast_like(found).transpose(*found.dims), atol=0.02)


def test_the_other_sizes_of_the_two_kinds_may_differ_but_for_pairs():
    a, b = states(PLANTED, 50), states(0, 300)
    assert dl.analysis.direction(a, b, how="probe").sizes == {"channel": 6}
    named = [x.assign_coords(sample=np.arange(x.sizes["sample"])) for x in (a, b)]
    with pytest.raises(dl.DitLensError, match="do not belong together"):
        dl.analysis.direction(*named, how="pca")


def test_the_null_has_no_direction_that_comes_again():
    """Two halves of one kind: the directions of two draws have nothing in common."""
    first, second = (dl.analysis.direction(states(0), states(0)) for _ in range(2))
    assert np.linalg.norm(first) < 0.5 and np.linalg.norm(second) < 0.5


@pytest.mark.parametrize(
    "change, match",
    [
        (lambda a, b: (a, a), "do not differ"),
        (lambda a, b: (a[:1], b), "one sample"),
        (lambda a, b: (a.where(a.sample > 0), b), "NaN"),
        (lambda a, b: (a, b[:, :4]), "do not belong together"),
        (lambda a, b: (a, b.expand_dims(layer=[1])), "dimensions"),
        (lambda a, b: (a.rename(channel="c"), b), "channel"),
    ],
)
def test_what_has_no_direction_is_refused(change, match):
    a, b = (x.assign_coords(sample=np.arange(20)) for x in (states(PLANTED, 20), states(0, 20)))
    with pytest.raises(dl.DitLensError, match=match):
        dl.analysis.direction(*change(a, b))
    with pytest.raises(dl.DitLensError, match="means, probe, pca"):
        dl.analysis.direction(a, b, how="best")
