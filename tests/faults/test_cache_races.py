"""A cached result is whole or not at all, whoever makes it, and however often at once."""

import json
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from dit_lens.errors import StoreError
from dit_lens.experiments.cache import kept, kept_json, load, save

RACE = """
import sys, time, warnings
warnings.filterwarnings("ignore", category=UserWarning, module="zarr")
from pathlib import Path
import numpy as np, xarray as xr
from dit_lens.experiments.cache import kept, kept_json, load, save

root, rounds = Path(sys.argv[1]), int(sys.argv[2])

def make(n):
    return xr.Dataset({f"v{i}": (("a", "b"), np.full((20, 30), 100.0 * n + i)) for i in range(5)}, attrs={"n": n})

def check(data, n):
    for i in range(5):
        assert (data[f"v{i}"].values == 100 * n + i).all() and data[f"v{i}"].shape == (20, 30), (n, i)
    assert data.attrs == {"n": n}, data.attrs

for n in range(rounds):
    (root / f"ready-{n}-{sys.argv[3]}").touch()
    while len(list(root.glob(f"ready-{n}-*"))) < 3:
        time.sleep(0.0005)
    check(kept(root / "blocks" / "part", f"k{n}", lambda: make(n)), n)
    save(make(7), root / "results.zarr")
    assert kept_json(root / "done.json", "key", lambda: {"x": [1, 2, 3] * 500}) == {"x": [1, 2, 3] * 500}
print("right")
"""


def test_three_processes_make_the_same_results_at_once(tmp_path):
    arguments = [sys.executable, "-c", RACE, str(tmp_path), "20"]
    processes = [
        subprocess.Popen([*arguments, str(n)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for n in range(3)
    ]
    for process in processes:
        out, said = process.communicate(timeout=60)
        assert out == "right\n", said
    blocks = sorted((tmp_path / "blocks").iterdir())
    assert len(blocks) == 20 and all(path.name.endswith(".zarr") for path in blocks)
    for block in blocks:
        data = load(block)
        assert len(data.data_vars) == 5
        xr.testing.assert_identical(
            xr.open_zarr(block, consolidated=False).load().drop_attrs(), data.drop_attrs()
        )
    assert load(tmp_path / "results.zarr").v4.values[0, 0] == 704
    assert not [path for path in tmp_path.rglob("*") if ".partial" in path.name]


def make():
    return xr.Dataset({"x": ("n", [1.0, 2.0]), "y": ("n", [3, 4])}, attrs={"a": 1})


def damage_file(folder):
    (chunk,) = (p for p in (folder / "x").rglob("*") if p.is_file() and p.name != "zarr.json")
    data = bytearray(chunk.read_bytes())
    data[-1] ^= 1
    chunk.write_bytes(data)


def lose_variable(folder):
    for path in sorted((folder / "y").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (folder / "y").rmdir()


def tear_metadata(folder):
    (folder / "zarr.json").write_bytes((folder / "zarr.json").read_bytes()[:-9])


def empty(folder):
    for path in sorted(folder.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()


def change_attribute(folder):
    text = (folder / "zarr.json").read_text()
    (folder / "zarr.json").write_text(text.replace('"a": 1', '"a": 2'))


def become_file(folder):
    empty(folder)
    folder.rmdir()
    folder.write_text("not a folder")


@pytest.mark.parametrize(
    "damage", [damage_file, lose_variable, tear_metadata, empty, change_attribute, become_file]
)
def test_what_is_damaged_is_made_again_with_a_warning(tmp_path, damage):
    kept(tmp_path / "fit", "k", make)
    (folder,) = tmp_path.iterdir()
    damage(folder)
    with pytest.raises(StoreError, match=r"fit-k.zarr: .*run the command again"):
        load(folder)
    with pytest.warns(UserWarning, match=r"fit-k.zarr: .*made again"):
        again = kept(tmp_path / "fit", "k", make)
    xr.testing.assert_identical(again, make())
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        xr.testing.assert_identical(kept(tmp_path / "fit", "k", lambda: pytest.fail("made")), make())
    assert list(tmp_path.iterdir()) == [folder]


def test_a_result_that_is_saved_again_replaces_the_old_one(tmp_path):
    save(make(), tmp_path / "results.zarr")
    save(make()[["x"]] * 2, tmp_path / "results.zarr")
    again = load(tmp_path / "results.zarr")
    assert list(again.data_vars) == ["x"] and again.x.values.tolist() == [2, 4]
    save(again, tmp_path / "copy.zarr")
    xr.testing.assert_identical(load(tmp_path / "copy.zarr"), again)
    plain = xr.open_zarr(tmp_path / "results.zarr", consolidated=False)
    np.testing.assert_array_equal(plain.x.values, [2, 4])


@pytest.mark.parametrize(
    "torn", ["", "{", "[]", '{"key": "k"', '{"key": "other", "numbers": {"n": 9}}', "\0" * 9]
)
def test_torn_numbers_and_those_of_another_key_are_made_again(tmp_path, torn):
    path = tmp_path / "done.json"
    path.write_text(torn)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert kept_json(path, "k", lambda: {"n": np.float32(0.5)}, settings={"a": Path("b")}) == {"n": 0.5}
    assert bool(caught) == ("other" not in torn)
    assert json.loads(path.read_text()) == {"key": "k", "settings": {"a": "b"}, "numbers": {"n": 0.5}}
    assert kept_json(path, "k", lambda: pytest.fail("made")) == {"n": 0.5}
    assert os.listdir(tmp_path) == ["done.json"]


KILLED = """
import os, signal, sys
from pathlib import Path
import xarray as xr
from dit_lens.experiments import cache
rename = os.rename
os.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
cache.kept(Path(sys.argv[1]) / "fit", "k", lambda: xr.Dataset({"x": ("n", [1.0])}))
"""


def test_what_a_killed_process_left_is_no_result_and_is_removed(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)])
    assert done.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".fit-k.zarr.partial-")
    alive = left.with_name(left.name.replace(f"-{left.name.split('-')[-2]}-", f"-{os.getpid()}-"))
    alive.mkdir()
    xr.testing.assert_identical(kept(tmp_path / "fit", "k", make), make())
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([alive.name, "fit-k.zarr"])


def test_what_cannot_be_made_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", fail)
        with pytest.raises(StoreError, match="No space left"):
            kept(tmp_path / "fit", "k", make)
        patched.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="No space left"):
            kept_json(tmp_path / "done.json", "k", dict)
    assert list(tmp_path.iterdir()) == []
    long = kept(tmp_path / ("x" * 400), "k", make)
    xr.testing.assert_identical(kept(tmp_path / ("x" * 400), "k", lambda: pytest.fail("made")), long)
    kept(tmp_path / ("x" * 399), "k", make)
    assert len(list(tmp_path.iterdir())) == 2
