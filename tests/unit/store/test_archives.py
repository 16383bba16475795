"""Stores that earlier versions wrote are read for ever: with `dit_lens` and with plain xarray, without torch."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dit_lens.errors import StoreError
from dit_lens.store import open_run, open_runs, status, verify

ARCHIVES = Path(__file__).parents[2] / "data" / "archives" / "v1"
STORES = sorted(path.name for path in ARCHIVES.glob("*.zarr"))

READ = """
import json, sys, warnings
sys.modules["torch"] = None
warnings.simplefilter("error")
import numpy as np
import xarray as xr
import dit_lens as dl

store, expected = sys.argv[1], dict(np.load(sys.argv[2]))
runs = sorted({key.partition("/")[0] for key in expected})
tree = dl.open_runs(store)
plain = xr.open_datatree(store, engine="zarr", consolidated=False)
assert sorted(tree.children) == sorted(plain.children) == runs, (list(tree.children), runs)
compared = 0


def plainly(array, like):
    values = array.values
    return np.array([str(v) for v in values.ravel()]) if like.dtype.kind == "U" else values


for key, values in expected.items():
    run, name = key.split("/")
    for opened in (tree[run], dl.open_run(f"{store}/{run}")):
        own = plainly(opened[name], values)
        assert own.dtype == values.dtype or values.dtype.kind == "U", (key, own.dtype, values.dtype)
        np.testing.assert_array_equal(own, values, err_msg=key)
    bare = plain[run][name]
    if bare.attrs.get("encoding") == "codes":
        bare = (bare.values.astype(np.uint32) << 16).view(np.float32)
        bare = np.where(np.isnan(values), np.nan, bare)  # xarray cannot know what was not recorded
    else:
        bare = plainly(bare, values)
    np.testing.assert_array_equal(bare, values, err_msg=key)
    compared += 1
for run in runs:
    assert json.loads(tree[run].attrs["manifest"]) == dl.Run(f"{store}/{run}").attrs["manifest"]
    assert isinstance(dl.Run(f"{store}/{run}").attrs["manifest"]["identity"], dict)
    assert set(dl.Run(f"{store}/{run}").names) | set(tree[run].coords) == {
        key.partition("/")[2] for key in expected if key.startswith(run + "/")
    }
print(compared)
"""


@pytest.mark.parametrize("store", STORES)
def test_a_store_of_layout_1_reads_as_it_was_written(store):
    expected = (ARCHIVES / store).with_suffix(".npz")
    done = subprocess.run(
        [sys.executable, "-c", READ, str(ARCHIVES / store), str(expected)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 10


@pytest.mark.parametrize("store", STORES)
def test_its_bytes_are_those_of_the_journal(store):
    for run in open_runs(ARCHIVES / store).children:
        found = status(ARCHIVES / store / run)
        assert list(verify(ARCHIVES / store / run)) == []
        assert found.damage == "" and found.complete == (store != "interrupted.zarr")


@pytest.mark.parametrize("store", [name for name in STORES if name != "interrupted.zarr"])
def test_a_complete_run_of_it_with_a_shortened_journal_is_an_error(store, tmp_path):
    shutil.copytree(ARCHIVES / store, tmp_path / store)
    for run in (tmp_path / store).iterdir():
        if not run.is_dir():
            continue
        lines = (run / "journal.jsonl").read_bytes().splitlines(keepends=True)
        steps = [n for n, line in enumerate(lines) if "step" in json.loads(line)]
        (run / "journal.jsonl").write_bytes(b"".join(lines[: steps[-1]]))
        with pytest.raises(StoreError, match=r"complete, but its journal.jsonl lacks"):
            open_run(run)


def test_there_are_archives():
    assert STORES == ["bfloat16.zarr", "float32.zarr", "interrupted.zarr", "prompts.zarr"]
