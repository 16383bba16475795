import json
import os
import subprocess
import sys

import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dit_lens.errors import StoreError
from dit_lens.store import RunWriter, Variable, find_runs, open_run, open_runs, read_codes, status, verify
from dit_lens.store.bfloat16 import widen


def test_every_variable_reads_as_it_was_written(kit, run):
    ds = open_run(run)
    for name in ("hidden", "energy", "answer", "video"):
        np.testing.assert_array_equal(ds[name].values, kit.expected(name))
    for name in ("bf16", "codes", "energy_bf16"):
        np.testing.assert_array_equal(ds[name].values, widen(kit.expected(name)))
        assert ds[name].dtype == np.float32
    np.testing.assert_array_equal(ds.half.values, widen(kit.expected("half")).astype("float16"))


def test_it_is_lazy_and_named(kit, run):
    ds = open_run(run)
    for path in (run / "hidden").glob("c.*"):
        path.unlink()
    picked = ds.hidden.sel(branch="cond", layer=[0, 2]).isel(step=-1)
    assert picked.dims == ("layer", "frame", "y", "x", "channel")
    with pytest.raises(StoreError, match="committed in the journal but missing"):
        picked.load()


SIZES = (4, 2, 3, 2, 3, 4, 5)


def axis_index(size):
    one = st.integers(-size, size - 1)
    slices = st.slices(size).filter(lambda s: len(range(size)[s]) > 0)
    return one | slices | st.lists(one, min_size=1, max_size=3).map(np.array) | st.just(slice(None))


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=st.tuples(*map(axis_index, SIZES)), name=st.sampled_from(["hidden", "bf16", "codes"]))
def test_outer_indexing_is_numpys(kit, key, name):
    run = kit.root / "run-1"
    if not run.exists():
        kit.write_run(kit.root)
    whole = kit.expected(name) if name == "hidden" else widen(kit.expected(name))
    dims = ("step", "branch", "layer", "frame", "y", "x", "channel")
    wanted = xr.Variable(dims, whole)[key].values
    np.testing.assert_array_equal(open_run(run)[name].variable[key].values, wanted)


def test_vectorized_indexing_picks_points(kit, run):
    at = {"step": xr.DataArray([3, 0], dims="p"), "y": xr.DataArray([2, 1], dims="p")}
    seen = open_run(run).bf16.isel(at)
    np.testing.assert_array_equal(seen.values, xr.open_zarr(run).bf16.load().isel(at).values)


def test_what_is_not_committed_is_masked(kit, partial_run):
    file = partial_run / "hidden" / "c.1.0.0.0.0.0.0"
    file.write_bytes((partial_run / "hidden" / "c.0.0.0.0.0.0.0").read_bytes())
    ds = open_run(partial_run)
    for name in ("hidden", "bf16", "codes", "energy"):
        assert ds[name].isel(step=[1, 3]).isnull().all()
        assert ds[name].isel(step=[0, 2]).notnull().all()
    assert xr.open_zarr(partial_run).hidden[1, 0, 0].notnull().all()  # plain xarray cannot know
    np.testing.assert_array_equal(ds.answer[2].values, kit.expected("answer")[2])
    with pytest.raises(StoreError, match=r"answer at \{'step': 1\} is not committed, and int32 has no NaN"):
        ds.answer.load()
    with pytest.raises(StoreError, match="video at all is not committed"):
        ds.video.load()


def test_a_torn_journal_reads_to_its_last_commit(partial_run):
    journal = partial_run / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    last = max(n for n, line in enumerate(lines) if line.startswith(b'{"step"'))
    journal.write_bytes(b"".join(lines[:last]) + lines[last][:4])
    assert status(partial_run).committed_steps == (0,)
    assert open_run(partial_run).hidden.isel(step=2).isnull().all()


@pytest.mark.parametrize("sealed", [True, False], ids=["sealed", "of the version before"])
@pytest.mark.parametrize("left", [None, 0, 0.5, -1])
def test_a_complete_run_without_its_whole_journal_is_an_error(kit, run, left, sealed):
    if not sealed:
        group = json.loads((run / "zarr.json").read_text())
        del group["attributes"]["journal"], group["attributes"]["checksums"]
        (run / "zarr.json").write_text(json.dumps(group))
    assert open_run(run).hidden.notnull().all()
    journal, lines = run / "journal.jsonl", (run / "journal.jsonl").read_bytes().splitlines(keepends=True)
    if left is None:
        journal.unlink()
    else:
        journal.write_bytes(b"".join(lines[: int(left * len(lines)) if left >= 0 else left]))
    with pytest.raises(StoreError, match=r"complete, but its journal.jsonl (is gone|was cut|lacks)"):
        open_run(run)
    assert not status(run).complete and status(run).damage and "journal" in next(iter(verify(run)))
    kit.write_run(kit.root, name="run-2")
    with pytest.warns(UserWarning, match=r"left out: .*run-1 says that it is complete"):
        assert list(open_runs(kit.root).children) == ["run-2"]


def test_one_bad_run_does_not_hide_the_good_ones(kit, run, tmp_path):
    (tmp_path / "deep" / "er" / "and" / "deep" / "er" / "still").mkdir(parents=True)
    good = tmp_path / "deep" / "er" / "and" / "deep" / "er" / "still" / "t.zarr"
    kit.write_run(good, steps=range(4), name="good")
    for n, text in enumerate(["{", "[]", "{}", '{"node_type": "group", "attributes": []}']):
        (tmp_path / f"bad{n}").mkdir()
        (tmp_path / f"bad{n}" / "zarr.json").write_text(text)
    broken = kit.write_run(kit.root, name="run-2") / "zarr.json"
    group = json.loads(broken.read_text())
    del group["consolidated_metadata"]["metadata"]["hidden"]["shape"]
    broken.write_text(json.dumps(group))
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group"}')
    (tmp_path / "loop").symlink_to(tmp_path)
    os.mkfifo(kit.write_run(kit.root, name="run-3") / "zarr.json.fifo")
    (kit.root / "run-3" / "zarr.json").unlink()
    os.rename(kit.root / "run-3" / "zarr.json.fifo", kit.root / "run-3" / "zarr.json")
    with pytest.warns(UserWarning) as caught:
        tree = open_runs(tmp_path)
    assert {leaf.path for leaf in tree.leaves} == {"/s.zarr/run-1", f"/{good.relative_to(tmp_path)}/good"}
    said = " ".join(str(w.message) for w in caught)
    assert all(name in said for name in ("bad0", "bad1", "bad2", "bad3", "run-2", "run-3"))
    assert "foreign" not in said


def test_a_copy_that_xarray_saved_gives_its_values(kit, run, tmp_path):
    open_run(run).to_zarr(tmp_path / "copies" / "masked.zarr")
    xr.open_zarr(run)[["hidden"]].to_zarr(tmp_path / "copies" / "plain.zarr", consolidated=False)
    tree = open_runs(tmp_path / "copies")
    np.testing.assert_array_equal(tree["plain.zarr"].hidden.values, kit.expected("hidden"))
    np.testing.assert_array_equal(tree["masked.zarr"].video.values, kit.expected("video"))
    np.testing.assert_array_equal(tree["masked.zarr"].half.values, open_run(run).half.values)
    with pytest.raises(StoreError, match="a copy of a run that xarray saved"):
        open_run(tmp_path / "copies" / "plain.zarr")


def test_everything_that_is_opened_goes_into_netcdf(kit, run, tmp_path):
    dataset = open_run(run)
    dataset.to_netcdf(tmp_path / "all.nc")
    with xr.open_dataset(tmp_path / "all.nc") as again:
        for name in dataset.data_vars:
            np.testing.assert_array_equal(again[name].values, dataset[name].values)
        assert json.loads(again.attrs["manifest"]) == kit.manifest
    dataset["hidden"].isel(step=[0]).to_netcdf(tmp_path / "one.nc")


def test_what_would_never_end_is_refused(kit, run):
    journal = run / "journal.jsonl"
    for file in (run / "hidden" / "c.0.0.0.0.0.0.0", run / "sigma" / "c.0", journal):
        file.rename(file.with_name("aside"))
        os.mkfifo(file)
        with pytest.raises(StoreError, match="no plain file"):
            open_run(run).hidden.load()
        file.unlink()
        file.with_name("aside").rename(file)
    group = json.loads((run / "zarr.json").read_text())
    asked = {dim: list(range(10_000)) for dim in ("step", "branch", "layer")}
    group["consolidated_metadata"]["metadata"]["hidden"]["attributes"]["recorded"] = asked
    del group["attributes"]["checksums"]
    (run / "zarr.json").write_text(json.dumps(group))
    with pytest.raises(StoreError, match="recorded at 1,000,000,000,000 places"):
        status(run)
    with pytest.raises(StoreError, match="places"):
        Variable("h", ("step", "branch", "layer", "x"), (10_000, 10_000, 10_000, 1), unit="state")
        kit.make_writer(kit.root, name="huge", coords={}).declare(
            Variable("h", ("step", "layer", "q"), (4, 3, 1), unit="state"),
            [{"step": [0] * 2000, "layer": [0] * 2000}],
        )


def test_a_path_may_begin_with_a_tilde_or_be_relative(kit, run, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert list(open_runs("~/s.zarr").children) == ["run-1"] and status("~/s.zarr/run-1").complete
    kit.write_run("~/t.zarr")
    assert (tmp_path / "t.zarr" / "run-1").is_dir()
    monkeypatch.chdir(tmp_path)
    relative = open_run("s.zarr/run-1")
    writer = kit.make_writer("u.zarr")
    monkeypatch.chdir("/")
    np.testing.assert_array_equal(relative.hidden.values, kit.expected("hidden"))
    kit.write_step(writer, 0)
    writer.close()
    assert open_run(tmp_path / "u.zarr" / "run-1").hidden[0].notnull().all()


def test_status_of_a_whole_and_of_a_partial_run(kit):
    path = kit.write_run(kit.root)
    found = status(path)
    assert (found.complete, found.status, found.committed_steps, found.missing) == (
        True,
        "complete",
        (0, 1, 2, 3),
        {},
    )
    assert found.bytes["hidden"] == 24 * (480 + 6 * 16 + 4)
    with RunWriter(kit.root, "asked", {}, kit.coords(), durable=False) as writer:
        dims, shape = ("step", "layer", "x"), (4, 3, 2)
        writer.declare(Variable("a", dims, shape, unit="state"), {"step": [0, 1], "layer": [2]})
        parts = [{"step": [0], "layer": [0]}, {"step": [1], "layer": [1]}]
        writer.declare(Variable("b", dims, shape, unit="state"), parts)
        writer.write("a", {"step": 0, "layer": 2}, np.zeros(2, "f4"))
        writer.write("b", {"step": 0, "layer": 0}, np.zeros(2, "f4"))
        writer.commit_step(0)
    found = status(writer.path)
    assert (found.status, found.complete) == ("complete", False)
    assert found.missing == {"a": [{"step": 1, "layer": 2}], "b": [{"step": 1, "layer": 1}]}
    assert xr.open_zarr(writer.path).a.attrs["recorded"] == {"step": [0, 1], "layer": [2]}


@pytest.mark.parametrize("part", [{"y": 0}, {"x": [1, 0]}, {"y": slice(0, 1)}])
def test_a_part_of_a_unit_is_read_once_all_of_it_is_what_was_written(run, part):
    file = run / "hidden" / "c.1.0.0.0.0.0.0"
    data = bytearray(file.read_bytes())
    array = open_run(run)["hidden"].isel(step=1, branch=0, layer=0)
    before = array.isel(part).values
    np.testing.assert_array_equal(
        open_run(run)["hidden"].isel(step=1, branch=0, layer=0).values.shape, array.shape
    )
    data[0] ^= 1
    file.write_bytes(data)
    with pytest.raises(StoreError, match="crc32c"):
        array.isel(part).values  # noqa: B018  (the array that was right has a new file)
    with pytest.raises(StoreError, match="crc32c"):
        open_run(run)["hidden"].isel(step=1, branch=0, layer=0, **part).load()
    data[0] ^= 1
    file.write_bytes(data)
    np.testing.assert_array_equal(array.isel(part).values, before)


def test_verify_finds_a_flipped_bit_and_a_short_file(run):
    assert list(verify(run)) == []
    flipped, short = run / "hidden" / "c.1.0.0.0.0.0.0", run / "energy" / "c.0.0.0.0.0.0"
    data = bytearray(flipped.read_bytes())
    data[100] ^= 1
    flipped.write_bytes(data)
    short.write_bytes(short.read_bytes()[:-1])
    found = list(verify(run))
    assert len(found) == 2
    assert "energy/c.0.0.0.0.0.0 has 575 bytes, the journal says 576" in found[0]
    assert "hidden/c.1.0.0.0.0.0.0 has crc32c" in found[1]


def test_codes_are_refused_where_there_are_none(kit, partial_run):
    at = {"step": 1, "branch": 0, "layer": 0}
    with pytest.raises(StoreError, match=r"'hidden' has no bfloat16 codes; these have: \['bf16'"):
        read_codes(partial_run, "hidden", at)
    with pytest.raises(StoreError, match="'half' has no"):
        read_codes(partial_run, "half", at)
    with pytest.raises(StoreError, match=r"bf16 at .* is not committed; committed steps: \[0, 2\]"):
        read_codes(partial_run, "bf16", at)


def test_open_runs_finds_runs_in_a_folder_a_store_and_a_run(kit, run, tmp_path):
    kit.write_run(tmp_path / "deep" / "t.zarr", steps=[0], name="run-2")
    assert [p.name for p in find_runs(tmp_path)] == ["run-2", "run-1"]
    tree = open_runs(tmp_path)
    assert set(tree.groups) >= {"/s.zarr/run-1", "/deep/t.zarr/run-2"}
    np.testing.assert_array_equal(tree["s.zarr/run-1"].hidden.values, kit.expected("hidden"))
    assert list(open_runs(kit.root).children) == list(open_runs(run).children) == ["run-1"]


def test_what_a_killed_trace_left_is_shown_until_a_complete_run_stands_in_its_place(kit, tmp_path):
    writer = kit.make_writer(kit.root, name="run-1.partial-0a1b2c3d")
    kit.write_step(writer, 0)
    writer.abort()
    (found,) = find_runs(kit.root)
    assert found == writer.path and status(found).committed_steps == (0,)
    assert set(open_runs(kit.root).children) == {"run-1.partial-0a1b2c3d"}
    with pytest.raises(
        StoreError, match=r"a trace was interrupted .* open_run\('.*run-1.partial-0a1b2c3d'\)"
    ):
        open_run(kit.root / "run-1")
    kit.write_run(kit.root, name="model.partial-ft")
    complete = kit.write_run(kit.root)
    assert [path.name for path in find_runs(kit.root)] == ["model.partial-ft", complete.name]


def test_a_folder_is_shown_under_its_own_name_not_that_of_a_link(kit, run, tmp_path):
    other = kit.write_run(tmp_path / "elsewhere" / "t.zarr", steps=[0], name="run-2")
    above = tmp_path / "runs"
    (above / "a").mkdir(parents=True)
    kit.root.rename(above / "maze.zarr")
    (above / "a" / "latest").symlink_to(above / "maze.zarr")
    (above / "b").symlink_to(other)
    assert set(open_runs(above).groups) == {"/", "/maze.zarr", "/maze.zarr/run-1", "/b"}


def test_what_is_not_a_run_is_described(kit, run, tmp_path):
    with pytest.raises(StoreError, match=r"folder of runs \(run-1"):
        open_run(kit.root)
    with pytest.raises(StoreError, match="no such folder"):
        open_run(tmp_path / "nothing")
    with pytest.raises(StoreError, match="it is a file"):
        open_run(run / "zarr.json")
    (tmp_path / "empty" / "inner").mkdir(parents=True)
    with pytest.raises(StoreError, match=r"it holds \['inner'\]"):
        open_runs(tmp_path / "empty")
    meta = run / "zarr.json"
    meta.write_text(meta.read_text().replace('"dit_lens_layout": 1', '"dit_lens_layout": 2'))
    for read in (open_run, open_runs, status):
        with pytest.raises(StoreError, match="store layout 2, and this dit_lens knows layout 1"):
            read(run)
    meta.write_text("{")
    with pytest.raises(StoreError, match=r"zarr\.json is not JSON"):
        open_run(run)


def test_reading_needs_no_torch(kit, run):
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "from dit_lens.store import open_runs\n"
        f"tree = open_runs({str(kit.root)!r})\n"
        "print(float(tree['run-1'].hidden.mean()))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert np.isclose(float(done.stdout), kit.expected("hidden").mean(), atol=1e-4)


def test_the_journal_is_read_when_the_run_is_opened(kit):
    writer = kit.make_writer(kit.root)
    kit.write_step(writer, 0)
    writer.flush()
    before = open_run(writer.path)
    kit.write_step(writer, 1)
    writer.flush()
    assert before.energy[1].isnull().all() and open_run(writer.path).energy[1].notnull().all()
    writer.close()
    assert json.loads((writer.path / "zarr.json").read_text())["attributes"]["status"] == "complete"
