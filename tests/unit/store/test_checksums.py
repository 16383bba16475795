"""What the journal does not speak of has checksums: a run's `zarr.json`, and the files of its coordinates."""

import json
import random
import shutil

import numpy as np
import pytest
import xarray as xr

from dit_lens.errors import StoreError
from dit_lens.store import RunWriter, Variable, files, open_run, open_runs, reader, status, verify
from dit_lens.store.reader import load_run, look


def make_writer(root, **options):
    coords = {"step": range(3), "layer": [4, 5], "expert": ("step", ["high"] * 3)}
    return RunWriter(root, "run", {"seed": 7}, coords, durable=False, **options)


def write_steps(writer, steps=range(3)):
    writer.declare(Variable("energy", ("step", "layer", "x"), (3, 2, 4)), {"step": [0, 1, 2], "layer": [1]})
    writer.declare(Variable("count", ("step",), (3,), "int32"))
    for step in steps:
        writer.write("energy", {"step": step}, np.full((2, 4), step, "f4"))
        writer.write("count", {"step": step}, np.array(step, "int32"))
        writer.commit_step(step)


@pytest.fixture
def root(tmp_path):
    return tmp_path / "s.zarr"


@pytest.fixture
def small(root):
    """A complete run of five arrays."""
    with make_writer(root) as writer:
        write_steps(writer)
        writer.set_coord("expert", ["high", "low", "low"])
    return writer.path


@pytest.fixture
def interrupted(root):
    """The same after two of three steps."""
    writer = make_writer(root)
    write_steps(writer, range(2))
    writer.set_coord("expert", ["high", "low", "high"])
    writer.abort()
    return writer.path


def shown(path):
    """All that a reader sees of a run."""
    dataset = open_run(path).isel(step=list(status(path).committed_steps))
    arrays = {
        name: (array.dims, array.dtype.str, array.values.tolist(), array.attrs)
        for name, array in {**dataset.data_vars, **dataset.coords}.items()
    }
    return repr((arrays, status(path)))


def changed(path, every=1):
    """Change the bytes of a file in turn, by one bit; the file is whole again in the end."""
    whole, draw = path.read_bytes(), random.Random(0)
    for place in range(draw.randrange(every), len(whole), every):
        data = bytearray(whole)
        data[place] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
        yield place
    path.write_bytes(whole)


@pytest.mark.parametrize("kind", ["small", "interrupted"])
def test_a_byte_of_the_metadata_that_changed_is_an_error_or_changes_nothing(request, kind, root):
    path = request.getfixturevalue(kind)
    whole, refused, every = shown(path), 0, 1 if kind == "small" else 5
    for place in changed(path / "zarr.json", every):
        sights = list(look(root))
        assert [sight.path for sight in sights] == [path] and not sights[0].is_copy, place
        try:
            assert shown(path) == whole, place
        except StoreError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > 0.95 * len((path / "zarr.json").read_bytes()) / every
    assert shown(path) == whole


@pytest.mark.parametrize("kind", ["small", "interrupted"])
def test_a_byte_of_a_coordinate_that_changed_is_an_error(request, kind):
    path = request.getfixturevalue(kind)
    for name in ("step", "layer", "expert"):
        for _ in changed(path / name / "c.0"):
            with pytest.raises(
                StoreError, match=rf"run cannot be opened: {name}/c.0 has crc32c .* remove its folder"
            ):
                open_run(path)
            assert any(f"{name}/c.0 has crc32c" in line for line in verify(path))
    assert list(verify(path)) == []


def test_metadata_of_an_array_that_is_another_than_the_runs_is_an_error(small):
    for name in ("energy", "layer"):
        file = small / name / "zarr.json"
        for place in changed(file, every=7):
            data = file.read_bytes()
            try:
                equal = json.loads(data) == load_run(small).arrays[name]
            except ValueError:
                equal = False
            if not equal:
                with pytest.raises(StoreError, match=rf"{name}/zarr.json is not"):
                    open_run(small)
        file.rename(small / "elsewhere")
        with pytest.raises(StoreError, match=rf"{name}/zarr.json is missing"):
            open_run(small)
        (small / "elsewhere").rename(file)
    open_run(small)


@pytest.mark.parametrize("kind", ["small", "interrupted"])
def test_a_run_without_checksums_reads_and_is_taken_up_as_before(request, kind, root):
    path = request.getfixturevalue(kind)
    expected = shown(path)
    group = json.loads((path / "zarr.json").read_text())
    del group["attributes"]["checksums"]
    (path / "zarr.json").write_text(json.dumps(group))
    assert shown(path) == expected and list(verify(path)) == []
    if kind == "interrupted":
        with make_writer(root) as writer:
            write_steps(writer, [2])
        assert open_run(path).expert.values.tolist() == ["high", "low", "high"]
        sums = xr.open_zarr(path).attrs["checksums"]
        assert set(sums) == {"zarr.json", "step/c.0", "layer/c.0", "expert/c.0"}


def test_what_xarray_shows_and_saves_of_a_run_has_nothing_to_fit(small, tmp_path):
    plain = xr.open_zarr(small)
    np.testing.assert_array_equal(plain.energy.isel(layer=1), open_run(small).energy.isel(layer=1))
    assert "checksums" in plain.attrs and "checksums" not in open_run(small).attrs
    for number, dataset in enumerate((plain, open_run(small).drop_encoding())):
        for consolidated in (True, False):
            copy = tmp_path / f"copy-{number}-{consolidated}.zarr"
            dataset.drop_attrs(deep=False).assign_attrs(dataset.attrs).to_zarr(
                copy, consolidated=consolidated
            )
            (opened,) = open_runs(copy).leaves
            np.testing.assert_array_equal(opened.energy, plain.energy)


def test_labels_fit_their_checksums_whenever_a_process_may_be_killed(root, monkeypatch):
    replace, moments = files.os.replace, []

    def watched(source, target):
        replace(source, target)
        if (root / "run" / "zarr.json").exists():
            moments.append(load_run(root / "run").label_flaw())

    monkeypatch.setattr(files.os, "replace", watched)
    with make_writer(root) as writer:
        for step, experts in enumerate((["low", "high", "low"], ["high"] * 3, ["low", "low", "low"])):
            writer.set_coord("expert", experts)
            writer.set_coord("expert", experts[::-1])
            write_steps(writer, [step])
            writer.flush()
    assert len(moments) > 12 and set(moments) == {""}
    assert open_run(writer.path).expert.values.tolist() == ["low"] * 3
    assert len(xr.open_zarr(writer.path).attrs["checksums"]["expert/c.0"]) == 8


def test_an_interrupted_run_is_taken_up_with_the_labels_that_lie_there(interrupted, root):
    with make_writer(root) as writer:
        write_steps(writer, [2])
    assert open_run(interrupted).expert.values.tolist() == ["high", "low", "high"]
    assert list(verify(interrupted)) == []


def test_labels_that_are_set_while_a_run_is_opened_are_shown(root, monkeypatch):
    writer = make_writer(root)
    write_steps(writer, [0])
    writer.flush()
    flaw = reader.Stored.label_flaw

    def later(stored):
        monkeypatch.undo()
        writer.set_coord("expert", ["low"] * 3)
        writer.flush()
        return flaw(stored)

    monkeypatch.setattr(reader.Stored, "label_flaw", later)
    assert open_run(writer.path).expert.values.tolist() == ["low"] * 3
    writer.abort()


def test_a_run_that_goes_while_it_is_opened_is_a_store_error(small, tmp_path, monkeypatch):
    read, left = files.read_file, 0
    shutil.copytree(small, tmp_path / "whole")

    def vanishing(path):
        nonlocal left
        left -= 1
        if left == 0:
            shutil.rmtree(small)
        return read(path)

    monkeypatch.setattr(files, "read_file", vanishing)
    failures = 0
    for nth in range(1, 30):
        left = nth
        try:
            open_run(small)
        except StoreError:
            failures += 1
        if left > 0:
            break
        shutil.rmtree(small, ignore_errors=True)
        shutil.copytree(tmp_path / "whole", small)
    assert failures >= 5 and left > 0
