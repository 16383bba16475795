import json
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
    with pytest.raises(StoreError, match="committed in the journal but not there"):
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


def test_a_torn_journal_reads_to_its_last_commit(kit, run):
    journal = run / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    last = max(n for n, line in enumerate(lines) if line.startswith(b'{"step"'))
    journal.write_bytes(b"".join(lines[:last]) + lines[last][:4])
    assert status(run).committed_steps == (0, 1, 2)
    assert open_run(run).hidden.isel(step=3).isnull().all()


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
