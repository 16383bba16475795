"""Records are pure functions of a small tensor."""

import numpy as np
import pytest
import torch

from dit_lens import records
from dit_lens.records import keeps

SHAPE = (2, 3, 4, 5)
FLOATS = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
REDUCED = [records.energy, records.channel_mean, records.channel_variance]
WHOLE = [records.hidden, records.x0, records.latents, records.velocity]


def state(dtype=torch.float32):
    return (torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)) * 3 + 10).to(dtype)


def sizes(record):
    return tuple(dict(zip(("frame", "y", "x", "channel"), SHAPE, strict=True))[d] for d in record.dims)


@pytest.mark.parametrize("record", REDUCED + WHOLE, ids=lambda f: f.__name__)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_a_record_returns_the_dimensions_that_it_declares_and_leaves_the_state_alone(record, dtype):
    h = state(dtype)
    before = h.clone()
    assert tuple(record(h).shape) == sizes(record)
    assert torch.equal(h, before)


@pytest.mark.parametrize("record", WHOLE, ids=lambda f: f.__name__)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_a_whole_state_is_kept_without_loss(record, dtype):
    h = state(dtype)
    assert record(h).dtype == dtype
    assert torch.equal(record(h), h)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_reduced_records_equal_numpy_on_the_same_values(dtype):
    h = state(dtype)
    values = h.double().numpy()
    tokens = values.reshape(-1, SHAPE[-1])
    expected = {
        records.energy: np.sqrt((values**2).sum(-1)),
        records.channel_mean: tokens.mean(0),
        records.channel_variance: tokens.var(0),
    }
    for record, want in expected.items():
        np.testing.assert_allclose(record(h).double().numpy(), want, rtol=2e-6, err_msg=record.__name__)


@pytest.mark.parametrize("record", REDUCED, ids=lambda f: f.__name__)
def test_half_precision_states_are_reduced_in_single_precision(record):
    """2000 tokens of 2000 channels at 300: their sums are infinite in float16, and lost in bfloat16."""
    for dtype in (torch.float16, torch.bfloat16):
        h = torch.full((1, 1, 2000, 2000), 300.0, dtype=dtype)
        out = record(h)
        assert out.dtype == torch.float32
        assert torch.isfinite(out).all()
    h = torch.full((1, 1, 1, 2000), 300.0, dtype=torch.float16)
    assert records.energy(h).item() == pytest.approx(300 * 2000**0.5, rel=1e-5)


def test_the_variance_is_that_of_the_population_also_of_one_token():
    assert records.channel_variance(torch.ones(1, 1, 1, 3)).tolist() == [0, 0, 0]


def test_variance_survives_a_large_mean():
    h = state().double() + 1e4
    expected = h.flatten(0, -2).var(0, correction=0).float()
    assert torch.allclose(records.channel_variance(h.float()), expected, rtol=1e-2)


@pytest.mark.parametrize("name", ["x0", "latents", "velocity"])
def test_what_stands_on_the_latent_grid_declares_its_site(name):
    assert getattr(records, name).site == name


def test_keeps_declares_and_returns_the_same_function():
    def spread(h):
        return h.amax((1, 2, 3))

    declared = keeps("frame", site="q", units="m", long_name="largest value")(spread)
    assert declared is spread
    assert (spread.dims, spread.site, spread.units, spread.long_name) == (
        ("frame",),
        "q",
        "m",
        "largest value",
    )


def test_keeps_names_a_record_after_itself_unless_told():
    class Probe:
        def __call__(self, h):
            return h.mean(-1)

    def bare(h):
        return h

    assert keeps("frame", "y", "x")(bare).long_name == "bare"
    assert keeps("frame", "y", "x")(Probe()).long_name == "Probe"
    assert (bare.site, bare.units) == (None, "1")


@pytest.mark.parametrize("record", [records.channel_mean, records.channel_variance], ids=lambda f: f.__name__)
def test_doubles_are_reduced_as_doubles(record):
    h = state(torch.float64)
    tokens = h.flatten(0, -2).numpy()
    right = tokens.mean(0) if record is records.channel_mean else tokens.var(0)
    np.testing.assert_allclose(record(h).numpy(), right, rtol=1e-12)
