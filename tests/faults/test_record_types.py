"""What a record returns is what is read: every number type, at every place; what a store cannot hold is refused."""

import numpy as np
import pytest
import torch
import xarray as xr

import dit_lens as dl
from dit_lens.engine.recorder import fill_of, kept_type
from dit_lens.plan.plan import Plan
from dit_lens.records import keeps

BIG = 2**30 + 1
VALUES = {
    torch.int64: [2**62 + 1, -BIG],
    torch.int32: [BIG, -7],
    torch.int16: [-300, 300],
    torch.int8: [-100, 100],
    torch.uint8: [0, 255],
    torch.uint16: [0, 65_535],
    torch.uint32: [0, 2**32 - 1],
    torch.uint64: [0, 2**63 + 1],
    torch.bool: [True, False],
    torch.float64: [1 / 3, 1e300],
    torch.float32: [1 / 3, 1e30],
    torch.float16: [0.1, 60_000],
    torch.bfloat16: [0.1, 1e30],
    torch.float8_e4m3fn: [0.25, 240],
    torch.complex64: [1 + 2j, -0.5j],
    torch.complex128: [1 / 3 + 1e300j, 0],
}


def returning(values, dtype, *dims):
    """Make a record that returns the same values everywhere."""

    @keeps(*dims)
    def fixed(h):
        return torch.tensor(values, dtype=dtype)

    return fixed


def as_numpy(values, dtype):
    tensor = torch.tensor(values, dtype=dtype)
    return (
        tensor.double() if dtype in (torch.bfloat16, torch.float16, torch.float8_e4m3fn) else tensor
    ).numpy()


@pytest.mark.parametrize("dtype", VALUES, ids=str)
def test_every_number_type_reads_as_what_it_was(lens, sample, dtype):
    record = (returning(VALUES[dtype], dtype, "k"), dl.at(layer=[0, 2], step=1))
    run = lens.run(sample, steps=3, cfg_scale=3.0, record=record)
    read, expected = run["fixed"], as_numpy(VALUES[dtype], dtype)
    assert read.shape == (1, 2, 2, 2) and np.array_equal(read.values, np.broadcast_to(expected, read.shape))
    assert read.values.dtype.kind == expected.dtype.kind
    if dtype not in (torch.float16, torch.bfloat16, torch.float8_e4m3fn):
        assert read.dtype == expected.dtype
    plain = xr.open_zarr(run.path)["fixed"].isel(step=1, layer=[0, 2])
    assert np.array_equal(plain.values, read.values[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int64, torch.complex64], ids=str)
def test_whole_states_of_every_type_are_kept_whole(lens, sample, dtype):
    seen = {}

    @keeps("frame", "y", "x", "channel")
    def cast(h):
        seen.setdefault("value", (h * 100).to(dtype))
        return (h * 100).to(dtype)

    run = lens.run(sample, steps=1, cfg_scale=1.0, record=(cast, dl.at(layer=1)))
    read = run["cast"].values[0, 0, 0]
    assert str(read.dtype) == str(dtype).removeprefix("torch.") and np.array_equal(
        read, seen["value"].numpy()
    )


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool], ids=str)
def test_a_place_that_was_not_asked_for_is_never_a_plausible_number(lens, sample, dtype):
    record = (returning(VALUES[dtype], dtype, "k"), dl.at(layer=[0, 2], step=1, branch="cond"))
    run = lens.run(sample, steps=3, cfg_scale=3.0, record=record)
    whole = run.dataset["fixed"]
    assert np.array_equal(
        whole.isel(step=1, branch=0, layer=[2, 0]).values[0], as_numpy(VALUES[dtype], dtype)
    )
    for elsewhere in ({"layer": 1}, {"branch": 1, "layer": 0}, {"layer": [0, 1]}, {}):
        with pytest.raises(dl.StoreError, match=r"was not recorded.*has no NaN.*isel"):
            _ = whole.isel(step=1, **elsewhere).values
    with pytest.raises(dl.StoreError, match="not committed"):
        _ = whole.isel(step=0, branch=0, layer=0).values
    # Plain xarray cannot know; what it shows is at least no likely count.
    plain = xr.open_zarr(run.path)["fixed"].isel(step=1, branch=0, layer=1)
    assert (plain.values == fill_of(dtype)).all()


def test_what_was_not_asked_for_of_floats_and_complex_numbers_is_nan(lens, sample):
    for dtype in (torch.float64, torch.complex128):
        record = (returning(VALUES[dtype], dtype, "k"), dl.at(layer=0, step=1))
        whole = lens.run(sample, steps=2, cfg_scale=1.0, record=record).dataset["fixed"].values
        assert (
            np.isnan(whole[0]).all()
            and np.isnan(whole[1, 0, 1:]).all()
            and not np.isnan(whole[1, 0, 0]).any()
        )


def test_nothing_is_lost_on_the_way_and_16_bits_are_widened_where_reduced():
    for dtype in VALUES:
        kept = kept_type(dtype, False)
        values = torch.tensor(VALUES[dtype], dtype=dtype)
        assert kept is not None and torch.equal(values.to(kept).to(dtype).to(kept), values.to(kept))
    assert (
        kept_type(torch.bfloat16, True) == torch.bfloat16
        and kept_type(torch.bfloat16, False) == torch.float32
    )
    assert kept_type(torch.bits8, False) is None


# ---- what else a function may return


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda h: 1.5, r"returned float.*torch\.as_tensor"),
        (lambda h: h.numpy().sum(), r"returned float32; it declares.*torch\.as_tensor"),
        (lambda h: h.numpy(), r"returned ndarray.*torch\.as_tensor"),
        (lambda h: None, "returned NoneType"),
        (lambda h: [h.mean()], "returned list"),
        (lambda h: torch.empty((), device="meta"), "device 'meta'.*dense tensor that holds values"),
        (lambda h: h.mean((0, 1, 2)).to_sparse(), "sparse.*dense tensor"),
        (lambda h: torch.nested.nested_tensor([h[0, 0, 0], h[0, 0, 1]]), "dense tensor"),
        (lambda h: h, r"declares the dimensions \(\)"),
    ],
)
def test_what_is_no_value_is_refused(lens, sample, left_behind, make, words):
    @keeps()
    def odd(h):
        return make(h)

    with pytest.raises(dl.CaptureError, match=rf"record odd at block\(step=0.*{words}"):
        lens.run(sample, steps=1, record=odd)
    assert left_behind(lens.pipe) == []


@pytest.mark.parametrize(
    "make", [lambda h: h[:0, 0, 0, 0], lambda h: torch.zeros(2, dtype=torch.uint8).view(torch.bits8)]
)
def test_an_empty_value_and_a_type_that_no_store_has_are_refused(lens, sample, make):
    with pytest.raises(dl.CaptureError, match="which a store cannot hold"):
        lens.run(sample, steps=1, record=keeps("k")(make))


def test_scalars_views_gradients_and_lazy_conjugates_are_read_as_their_values(lens, sample):
    expected = {}

    @keeps()
    def scalar(h):
        return h.double().sum()

    @keeps("channel")
    def view(h):
        return h[0, 0, 0]

    @keeps("channel")
    def with_gradient(h):
        return h[0, 0, 0].clone().requires_grad_()

    @keeps("channel")
    def conjugate(h):
        expected["conjugate"] = np.conj(torch.complex(h[0, 0, 0], h[0, 0, 1]).numpy())
        return torch.complex(h[0, 0, 0], h[0, 0, 1]).conj()

    @keeps("channel")
    def negative(h):
        return torch.complex(h[0, 0, 0], h[0, 0, 1]).conj().imag

    @keeps("frame", "y", "x", "channel")
    def spread(h):
        return h.mean((0, 1, 2)).expand_as(h)

    @keeps("frame", "y", "x", "channel")
    def whole_conjugate(h):
        return torch.complex(h, h * 2).conj()

    functions = [scalar, view, with_gradient, conjugate, negative, spread, whole_conjugate, dl.hidden]
    run = lens.run(sample, steps=1, cfg_scale=1.0, record=[(f, dl.at(layer=1)) for f in functions])
    h = run["hidden"].values[0, 0, 0]
    read = {name: run[name].values[0, 0, 0] for name in run.names if "layer" in run[name].dims}
    assert read["scalar"].shape == () and np.isclose(read["scalar"], h.astype(np.float64).sum())
    assert np.array_equal(read["view"], h[0, 0, 0]) and np.array_equal(read["with_gradient"], h[0, 0, 0])
    assert np.array_equal(read["conjugate"], expected["conjugate"]) and np.array_equal(
        read["negative"], -h[0, 0, 1]
    )
    assert np.allclose(read["spread"], h.mean((0, 1, 2)), atol=1e-5)
    assert np.array_equal(read["whole_conjugate"], h - 2j * h)


def test_a_value_of_another_type_elsewhere_is_refused_and_a_narrower_one_is_widened(lens, sample):
    def alternating(*dtypes):
        count = iter(range(99))

        @keeps("k")
        def mixed(h):
            return torch.tensor([1, 2], dtype=dtypes[next(count) % 2])

        return mixed

    run = lens.run(sample, steps=1, record=alternating(torch.float32, torch.bfloat16))
    assert run["mixed"].dtype == np.float32 and (run["mixed"].values == [1, 2]).all()
    with pytest.raises(dl.CaptureError, match=r"torch\.int64 \(2,\), and torch\.float32 \(2,\) before"):
        lens.run(sample, steps=1, record=alternating(torch.float32, torch.int64))


def test_two_records_with_one_dimension_of_two_sizes_are_refused_at_the_first_value(lens, sample):
    one, two = (returning([0] * n, torch.int64, "k") for n in (1, 2))
    two.__name__ = "other"
    with pytest.raises(
        dl.CaptureError, match=r"record other at block\(step=0.*size 2 along 'k'.*another name"
    ):
        lens.run(sample, steps=3, record=[one, two])


# ---- names


def named(name, *dims, units="1", site=None):
    def function(h):
        raise AssertionError("the run has begun")

    function.__name__ = name
    return keeps(*dims, units=units, site=site)(function)


@pytest.mark.parametrize(
    "record, words",
    [
        (named("video"), "'video' is what the pipeline makes"),
        (named("audio"), "'audio' is what the pipeline makes"),
        (named("latents", "channel"), "every run writes 'latents' itself"),
        (named("latents", "frame", "y", "x", "channel", site="x0"), "every run writes 'latents' itself"),
        (named("sigma"), "'sigma' is a coordinate"),
        (named("step"), "'step' is a coordinate"),
        (named("expert"), "'expert' is a coordinate"),
        (named("frame"), "'frame' is a coordinate"),
        (named("latent_y"), "'latent_y' is a coordinate"),
        (named("time"), "'time' is a coordinate"),
        (named("_private"), "begin with a letter"),
        (named("größe"), "use letters, digits"),
        (named("zarr.json"), "use letters, digits"),
        (named("a" * 300), "300 characters"),
        (named("f", "time"), "dimension 'time' is one of the video"),
        (named("f", "rgb"), "dimension 'rgb' is one of the video"),
        (named("f", "speaker"), "dimension 'speaker' is one of the sound"),
        (named("f", "sigma"), "dimension 'sigma' is one of the steps"),
        (named("f", "frame", "latent_y"), "dimension 'latent_y' is one of a grid; write frame, y, x"),
        (named("f", "f"), "dimension 'f' is one of the array 'f'"),
        (named("f", "video"), "dimension 'video' is one of the array 'video'"),
        (named("f", "k", "k"), "declares 'k' twice"),
        (named("f", "two words"), "'two words' is no name of a dimension"),
        (named("f", units="seconds"), "time differences"),
        (named("f", units="days since 2000-01-01"), "time differences or dates"),
    ],
)
def test_a_name_that_is_taken_is_refused_before_the_run(lens, sample, record, words):
    with pytest.raises(dl.PlanError, match=f"record .*{words}"):
        lens.run(sample, steps=1, record=record)


def test_a_dimension_may_not_be_called_like_another_record(lens, sample):
    with pytest.raises(dl.PlanError, match="dimension 'energy' is one of the array 'energy'"):
        lens.run(sample, steps=1, record=[dl.energy, named("f", "energy")])


def test_the_latents_of_the_library_are_merged_wherever_they_are_asked_for(lens, sample):
    run = lens.run(sample, steps=3, record=(dl.latents, dl.at(step=1)))
    assert run["latents"].sizes["step"] == 3 and not np.isnan(run["latents"].values).any()


def test_dimensions_are_given_by_name(lens):
    with pytest.raises(dl.PlanError, match=r"keeps.*'frame', 'y'"):
        keeps(["frame", "y"])
    with pytest.raises(dl.PlanError, match="keeps"):

        @keeps
        def forgotten(h):
            return h


# ---- what is written is what was estimated


def sizes_on_disk(run):
    return {
        name: sum(f.stat().st_size for f in (run.path / name).glob("c.*")) for name in run.dataset.data_vars
    }


@pytest.fixture
def text_lens(tiny_pipe):
    """A model without a first frame, which takes several prompts at once."""
    return dl.Lens(tiny_pipe(config={"in_dim": 48}))


PLACES = [
    dl.at(),
    dl.at(layer=1),
    dl.at(layer=[0, 2], step="0-1", branch="cond"),
    dl.at(step=2, branch="uncond"),
]


@pytest.mark.parametrize("place", PLACES, ids=str)
@pytest.mark.parametrize(
    "prompts", ["solve the maze", ("solve the maze", "roll the ball", "go")], ids=["1", "3"]
)
def test_an_estimate_is_what_stands_on_the_disk(text_lens, place, prompts):
    @keeps("channel", "k")
    def counts(h):
        return torch.zeros((h.shape[-1], 3), dtype=torch.int64, device=h.device)

    @keeps()
    def flag(h):
        return (h > 0).all()

    records = [(f, place) for f in (dl.energy, dl.hidden, dl.channel_mean, counts, flag)]
    records.append((dl.x0, dl.at(step="0-1")))
    several = dl.Sample(prompt=prompts, size=(48, 32), num_frames=9)
    said = text_lens.estimate(Plan.of(records), several, steps=3, cfg_scale=3.0)
    run = text_lens.run(several, steps=3, cfg_scale=3.0, record=records, output_type="floatpoint")
    disk = sizes_on_disk(run)
    assert {line.variable: line.bytes for line in said.lines} == {n: disk[n] for n in disk if n != "video"}
    files = {n: len(list((run.path / n).glob("c.*"))) for n in disk}
    assert {line.variable: line.units for line in said.lines} == {n: files[n] for n in disk if n != "video"}


def test_an_estimate_of_bfloat16_is_that_of_its_codes(tiny_pipe, sample):
    lens = dl.Lens(tiny_pipe(dtype=torch.bfloat16))
    records = [dl.energy, (dl.hidden, dl.at(layer=1)), dl.x0]
    said = lens.estimate(Plan.of(records), sample, steps=2)
    disk = sizes_on_disk(lens.run(sample, steps=2, record=records, encoding="codes"))
    assert {line.variable: line.bytes for line in said.lines} == {n: disk[n] for n in disk if n != "video"}


@pytest.mark.parametrize(
    "make, words", [(lambda h: 1.0, "returns float"), (lambda h: h.sum().item(), "needs values")]
)
def test_an_estimate_refuses_what_it_cannot_know(lens, sample, make, words):
    with pytest.raises(dl.PlanError, match=words):
        lens.estimate(Plan.of(keeps()(make)), sample)
