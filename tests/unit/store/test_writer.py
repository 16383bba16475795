import os
import warnings

import numpy as np
import pytest
import xarray as xr
import zarr

from dit_lens.errors import StoreError
from dit_lens.store import RunWriter, Variable, open_run, read_codes, status


def test_plain_xarray_reads_what_was_written_without_a_warning(kit, run):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ds = xr.open_zarr(run)
        tree = xr.open_datatree(kit.root, engine="zarr", consolidated=False)
    for name in ("hidden", "energy", "answer", "codes", "video"):
        np.testing.assert_array_equal(ds[name].values, kit.expected(name))
    for name in ("bf16", "energy_bf16"):
        codes = ds[name].values.view(np.uint32) >> 16
        np.testing.assert_array_equal(codes, kit.expected(name))
    assert list(tree.children) == ["run-1"]
    np.testing.assert_array_equal(tree["run-1"]["hidden"].values, kit.expected("hidden"))


def test_coordinates_select_by_meaning(kit, run):
    ds = xr.open_zarr(run)
    picked = ds.hidden.sel(branch="uncond", layer=2, step=3)
    np.testing.assert_array_equal(picked.values, kit.expected("hidden")[3, 1, 2])
    assert float(picked.sigma) == 0.25 and str(picked.expert.values) == "high"
    assert set(ds.coords) == {"step", "sigma", "expert", "branch", "layer"}
    assert all({"units", "long_name"} <= set(ds[name].attrs) for name in ds.variables)
    assert ds.hidden.attrs["long_name"] == "residual stream"
    assert ds.codes.attrs["logical_dtype"] == "bfloat16" and "_FillValue" not in ds.codes.attrs


def test_zarr_python_opens_every_array_also_without_consolidated_metadata(run):
    for name in ("hidden", "bf16", "codes", "half", "energy", "energy_bf16", "video", "branch", "sigma"):
        array = zarr.open_array(run / name, mode="r")
        assert array.metadata.zarr_format == 3
        assert array[...].shape == array.shape
    assert zarr.open_group(run, mode="r").attrs["status"] == "complete"


def test_the_end_is_in_the_attributes(kit, run):
    attrs = xr.open_zarr(run).attrs
    assert (attrs["status"], attrs["dit_lens_layout"], attrs["manifest"]) == ("complete", 1, kit.manifest)
    assert attrs["created"] <= attrs["ended"]
    assert attrs["nan"] == dict.fromkeys(attrs["nan"], 0)


SPECIAL = np.array(
    [0x7F80, 0xFF80, 0x7FC0, 0x7F81, 0xFFFF, 0x8000, 0x0000, 0x0001, 0x807F, 0x3F80], np.uint16
)  # Inf, -Inf, NaN, signalling NaN, NaN with payload, -0.0, 0.0, subnormals, 1.0


@pytest.mark.parametrize("unit", ["state", "step"])
@pytest.mark.parametrize("encoding", ["float32", "codes"])
def test_bfloat16_comes_back_bit_for_bit_and_is_counted(kit, encoding, unit):
    variable = Variable(
        "h", ("step", "layer", "x", "channel"), (4, 3, 2, 5), "bfloat16", unit, encoding=encoding
    )
    at = {"step": 1, "layer": 2} if unit == "state" else {"step": 1}
    values = np.broadcast_to(SPECIAL.reshape(2, 5), variable.unit_shape)
    with RunWriter(kit.root, "r", {}, kit.coords(), durable=False) as writer:
        writer.declare(variable)
        writer.write("h", at, values)
        writer.commit_step(1)
    np.testing.assert_array_equal(read_codes(writer.path, "h", at), values)
    shown = open_run(writer.path)["h"].isel(step=1, layer=2).values
    np.testing.assert_array_equal(shown.view(np.uint32) >> 16, SPECIAL.reshape(2, 5))
    times = values.size // SPECIAL.size
    found = status(writer.path)
    assert (found.nan, found.inf) == ({"h": 3 * times}, {"h": 2 * times})
    assert xr.open_zarr(writer.path).attrs["nan"] == {"h": 3 * times}


def test_float16_out_of_range_stops_the_run_at_that_unit(kit):
    writer = kit.make_writer(kit.root)
    at = {"step": 0, "branch": 1, "layer": 2}
    writer.write("half", at, np.full((2, 3, 4, 5), 0x4780, np.uint16))
    with pytest.raises(StoreError, match=r"half at .*'layer': 2.*does not fit float16"):
        writer.flush()
    with pytest.raises(StoreError, match="half at"):
        writer.commit_step(0)
    with pytest.raises(StoreError, match="half at"):
        writer.close()
    assert status(writer.path).status == "incomplete"
    with pytest.raises(StoreError, match="is closed"):
        writer.flush()


def test_values_that_are_not_contiguous_are_written_right(kit):
    writer = kit.make_writer(kit.root)
    values = np.arange(120, dtype="float32").reshape(5, 4, 3, 2).T
    writer.write("hidden", {"step": 0, "branch": 0, "layer": 0}, values)
    writer.commit_step(0)
    writer.close()
    np.testing.assert_array_equal(open_run(writer.path).hidden[0, 0, 0].values, values)


@pytest.mark.parametrize(
    ("name", "index", "values", "says"),
    [
        ("nothing", {}, np.zeros(1), "not declared.*energy"),
        ("energy", {"step": 0}, np.zeros((2, 3, 2, 3, 4)), "values are float64"),
        ("energy", {"step": 0}, np.zeros((3, 2, 2, 3, 4), "f4"), "of shape"),
        ("bf16", {"step": 0, "branch": 0, "layer": 0}, np.zeros((2, 3, 4, 5), "f4"), "codes of bfloat16"),
        ("energy", {"step": 9}, np.zeros((2, 3, 2, 3, 4), "f4"), "not in 0..3"),
        ("hidden", {"step": 0}, np.zeros((2, 3, 4, 5), "f4"), "branch"),
    ],
)
def test_a_wrong_write_is_refused_at_the_call(kit, name, index, values, says):
    writer = kit.make_writer(kit.root)
    with pytest.raises(StoreError, match=says):
        writer.write(name, index, values)
    writer.abort()


def test_a_unit_and_a_step_are_written_once(kit):
    writer = kit.make_writer(kit.root)
    kit.write_step(writer, 0)
    energy = np.zeros((2, 3, 2, 3, 4), "f4")
    with pytest.raises(StoreError, match="committed already"):
        writer.commit_step(0)
    with pytest.raises(StoreError, match="written before"):
        writer.write("energy", {"step": 0}, energy)
    writer.write("energy", {"step": 1}, energy)
    with pytest.raises(StoreError, match="written before"):
        writer.write("energy", {"step": 1}, energy)
    with pytest.raises(StoreError, match=r"steps \[1\] were written; call commit_step"):
        writer.close()
    with pytest.raises(StoreError, match=r"step 9 is not in 0\.\.3"):
        kit.make_writer(kit.root).commit_step(9)


def test_declaring_twice_is_fine_and_differently_is_not(kit):
    writer = kit.make_writer(kit.root)
    energy = Variable("energy", ("step", "y"), (4, 3))
    with pytest.raises(StoreError, match=r"energy of .* differs in shape"):
        writer.declare(energy)
    with pytest.raises(StoreError, match=r"other has size 5 along 'step', but step of .* has 4"):
        writer.declare(Variable("other", ("step", "y"), (5, 3)))
    with pytest.raises(StoreError, match="out of range"):
        writer.declare(Variable("other", ("step", "y"), (4, 3)), {"step": [4]})
    with pytest.raises(StoreError, match="unknown"):
        writer.declare(Variable("other", ("step", "y"), (4, 3)), {"layer": [0]})
    writer.abort()


def test_expert_can_be_told_later(kit):
    with kit.make_writer(kit.root) as writer:
        writer.set_coord("expert", ["high", "high", "low", "low"])
        writer.set_coord("expert", ["high", "low", "low", "low"])
        kit.write_step(writer, 0)
        for bad in (["a"], [1, 2, 3, 4]):
            with pytest.raises(StoreError, match="coordinate expert of"):
                writer.set_coord("expert", bad)
        with pytest.raises(StoreError, match="no coordinate 'energy'"):
            writer.set_coord("energy", [1])
    assert xr.open_zarr(writer.path).expert.values.tolist() == ["high", "low", "low", "low"]


def test_a_block_that_raises_leaves_the_committed_steps(kit):
    with pytest.raises(RuntimeError, match="out of memory"), kit.make_writer(kit.root) as writer:
        kit.write_step(writer, 0)
        writer.write("energy", {"step": 1}, np.zeros((2, 3, 2, 3, 4), "f4"))
        raise RuntimeError("out of memory")
    found = status(writer.path)
    assert (found.status, found.committed_steps, found.complete) == ("incomplete", (0,), False)
    assert not list(writer.path.rglob("*.partial"))
    np.testing.assert_array_equal(open_run(writer.path).hidden[0].values, kit.expected("hidden")[0])


@pytest.mark.parametrize("bad", [[], [[1, 2]], np.array([1j])])
def test_a_coordinate_must_be_numbers_or_labels(kit, bad):
    with pytest.raises(StoreError, match="coordinate 'layer'"):
        kit.make_writer(kit.root, coords=kit.coords() | {"layer": bad})


def test_a_disk_that_fails_is_named(kit):
    writer = kit.make_writer(kit.root)
    (writer.path / "energy" / "c.1.0.0.0.0.0.partial").mkdir(parents=True)
    kit.write_step(writer, 0)
    writer.write("energy", {"step": 1}, np.zeros((2, 3, 2, 3, 4), "f4"))
    with pytest.raises(StoreError, match=r"energy at \{'step': 1\}: IsADirectoryError"):
        writer.flush()
    (writer.path / "energy" / "c.1.0.0.0.0.0.partial").rmdir()
    writer.abort()
    assert status(writer.path).committed_steps == (0,)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("changing", [False, True], ids=["between calls", "inside of a call"])
def test_a_process_that_is_forked_off_takes_nothing_from_its_parent(kit, changing):
    writer = kit.make_writer(kit.root)
    kit.write_step(writer, 0)
    writer._tenure.changing = changing
    child = os.fork()
    if child == 0:
        said = ""
        try:
            kit.make_writer(kit.root)
        except StoreError as error:
            said = str(error)
        writer.abort()  # as the end of a block does in a child that ends by an exception
        os._exit(0 if f"pid {os.getppid()}" in said else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    writer._tenure.changing = False
    with pytest.raises(StoreError, match="is locked"):
        kit.make_writer(kit.root)
    for step in range(1, kit.steps):
        kit.write_step(writer, step)
    writer.close()
    np.testing.assert_array_equal(open_run(writer.path)["energy"].values, kit.expected("energy"))


def test_units_of_a_step_that_is_dropped_are_given_anew(tmp_path):
    with RunWriter(tmp_path, "run", {}, {"step": range(2), "branch": ["cond"], "layer": range(2)}) as writer:
        writer.declare(Variable("h", ("step", "branch", "layer", "x"), (2, 1, 2, 3), unit="state"))
        for step in range(2):
            for value in (7, step):  # the first try, which is dropped, and the second
                writer.drop_step(step)
                for layer in range(2) if value == step else [0]:
                    index = {"step": step, "branch": 0, "layer": layer}
                    writer.write("h", index, np.full(3, value, "float32"))
            writer.commit_step(step)
            writer.drop_step(step)  # nothing is open: what is committed stays
    assert status(tmp_path / "run").complete
    values = open_run(tmp_path / "run")["h"].values
    assert (values[0] == 0).all() and (values[1] == 1).all()
