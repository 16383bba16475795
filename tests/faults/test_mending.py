"""A run that is not whole is made again where it is asked for: by a run, a batch and a sweep, as a trace always is."""

import json
import os
import shutil
import warnings

import numpy as np
import pytest
import xarray as xr
import zarr

import dit_lens as dl
from dit_lens.errors import StoreError
from dit_lens.store import verify


def zero_at_1(h, at):
    return h * 0 if at.step == 1 else h


RECORD = [dl.energy, (dl.hidden, dl.at(layer=1))]


def by_run(lens, sample, store):
    return lens.run(sample, steps=3, record=RECORD, store=store, verify="never")


def by_batch(lens, sample, store):
    pairs = [(sample, 0), (sample, 1)]
    return lens.batch(pairs, steps=3, record=RECORD, store=store, verify="never").run()[0]


def by_sweep(lens, sample, store):
    arms = {"zero": [(zero_at_1, dl.at(layer=0))]}
    lens.sweep([(sample, 0)], arms, steps=3, record=RECORD, store=store, verify="never")
    return dl.Run(sorted(path for path in store.iterdir() if path.is_dir())[0])


def units(path, name):
    return sorted((path / name).glob("c.*"))


def cut(file, left):
    file.write_bytes(file.read_bytes()[:left])


def flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


DAMAGE = {
    "a unit is missing": (lambda p: units(p, "energy")[2].unlink(), "missing"),
    "a unit is cut": (lambda p: cut(units(p, "hidden")[1], -9), "the journal says"),
    "a folder is gone": (lambda p: shutil.rmtree(p / "energy"), "energy.* is missing"),
    "the video is gone": (lambda p: units(p, "video")[0].unlink(), "video.* missing"),
    "all data is gone": (lambda p: [file.unlink() for file in p.glob("*/c.*")], "missing"),
    "labels are gone": (lambda p: (p / "sigma" / "c.0").unlink(), "sigma has no labels"),
    "labels changed": (lambda p: flip(p / "sigma" / "c.0"), "the labels of sigma"),
    "the journal is gone": (lambda p: (p / "journal.jsonl").unlink(), "journal"),
    "the journal is cut": (lambda p: cut(p / "journal.jsonl", -60), "journal"),
    "a line of the journal changed": (lambda p: flip(p / "journal.jsonl"), "journal"),
    "the metadata is gone": (lambda p: (p / "zarr.json").unlink(), "has lost its zarr.json"),
    "the metadata is cut": (lambda p: cut(p / "zarr.json", 100), "is not JSON"),
    "the metadata is empty": (lambda p: cut(p / "zarr.json", 0), "is not JSON"),
}


def held(run):
    return {name: run[name].values for name in run.names}


CASES = [(make, kind) for make in (by_run, by_batch) for kind in DAMAGE]
CASES += [(by_sweep, kind) for kind in ("a unit is missing", "the journal is gone", "the metadata is cut")]


@pytest.mark.parametrize(("make", "kind"), CASES, ids=lambda case: getattr(case, "__name__", case))
def test_a_damaged_run_is_made_again(lens, sample, tmp_path, make, kind):
    damage, why = DAMAGE[kind]
    run = make(lens, sample, tmp_path)
    whole, names = held(run), sorted(os.listdir(tmp_path))
    damage(run.path)
    with pytest.warns(UserWarning, match=rf"(?s)made again: .*{run.path.name}.*{why}"):
        again = make(lens, sample, tmp_path)
    assert again.path == run.path and again.complete and list(verify(again.path)) == []
    for name, values in held(again).items():
        np.testing.assert_array_equal(values, whole[name], err_msg=name)
    assert sorted(os.listdir(tmp_path)) == names
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(lens, sample, tmp_path)  # which is handed out


def note_in_the_group(path):
    zarr.open_group(path, mode="r+").attrs["note"] = "look at step 2"


def note_on_an_array(path):
    zarr.open_group(path, mode="r+")["energy"].attrs["note"] = "look at step 2"


def add_an_array(path):
    xr.Dataset({"mean": ("step", np.arange(3.0))}).to_zarr(path, mode="a", zarr_format=3)


@pytest.mark.parametrize("change", [note_in_the_group, note_on_an_array, add_an_array])
@pytest.mark.parametrize("make", [by_run, by_batch, by_sweep])
def test_what_somebody_wrote_into_a_run_is_refused_and_never_removed(lens, sample, tmp_path, make, change):
    run = make(lens, sample, tmp_path)
    change(run.path)
    there = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    with pytest.raises(
        StoreError,
        match=r"(?s)zarr\.json is not what was written.*Save elsewhere what was added|store layout None",
    ):
        make(lens, sample, tmp_path)
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == there
    with pytest.raises(
        StoreError, match=r"is not what|says nothing of a run"
    ):  # xarray takes the attributes away
        dl.open_run(run.path)


@pytest.mark.parametrize("make", [by_run, by_batch], ids=["run", "batch"])
def test_labels_that_cannot_be_read_are_an_error_that_names_them(lens, sample, tmp_path, make):
    run, other = make(lens, sample, tmp_path / "a"), make(lens, sample, tmp_path / "b")
    file = run.path / "sigma" / "c.0"
    file.unlink()
    file.mkdir()
    before = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0
    for look in (dl.open_run, lambda path: make(lens, sample, path.parent)):
        with pytest.raises(StoreError, match=r"sigma.c\.0"):
            look(run.path)
    with pytest.warns(UserWarning, match="left out: .*sigma"):
        shown = dl.open_runs(tmp_path)
    assert len(shown.leaves) == sum(1 for _ in tmp_path.glob("*/*/zarr.json")) - 1
    assert other.complete
    if before:
        assert len(os.listdir("/proc/self/fd")) <= before + 1  # three looks would leave three


@pytest.mark.parametrize("make", [by_run, by_batch], ids=["run", "batch"])
def test_a_bit_that_changed_in_a_unit_is_found_when_it_is_read_and_mended_as_the_error_says(
    lens, sample, tmp_path, make
):
    run = make(lens, sample, tmp_path)
    whole = run["energy"].values
    flip(units(run.path, "energy")[1])
    with pytest.raises(StoreError, match="copy the run again, or remove its folder and make it again"):
        make(lens, sample, tmp_path)["energy"].load()
    shutil.rmtree(run.path)
    np.testing.assert_array_equal(make(lens, sample, tmp_path)["energy"], whole)


class StopError(Exception):
    """Ends a run."""


@pytest.fixture
def stopping(lens, sample, tmp_path):
    """Makes a run that stops at step 2 as long as a file says so."""
    flag = tmp_path / "stop"
    flag.touch()

    def stop(h, at):
        if at.step == 2 and flag.exists():
            raise StopError
        return h

    def make():
        edit = [(stop, dl.at(layer=0))]
        return lens.run(sample, steps=4, record=[dl.energy, dl.x0], edit=edit, store=tmp_path / "store")

    return make, flag


@pytest.mark.parametrize(
    "kind", ["a unit is missing", "labels changed", "the metadata is gone", "the metadata is cut"]
)
def test_an_interrupted_run_that_is_damaged_is_made_again(stopping, kind):
    make, flag = stopping
    with pytest.raises(StopError):
        make()
    (path,) = (p for p in flag.with_name("store").iterdir() if p.is_dir())
    units(path, "energy")[0].unlink() if kind == "a unit is missing" else DAMAGE[kind][0](path)
    flag.unlink()
    with pytest.warns(UserWarning, match="made again"):
        run = make()
    assert run.complete and list(verify(run.path)) == [] and np.isfinite(run["energy"].values).all()


def test_what_an_interrupted_mending_has_is_gone_on_with(stopping):
    make, flag = stopping
    flag.unlink()
    run = make()
    units(run.path, "energy")[3].unlink()
    flag.touch()
    with pytest.warns(UserWarning, match="made again"), pytest.raises(StopError):
        make()
    assert dl.Run(run.path).status.committed_steps == (0, 1)
    assert [p.name for p in run.path.parent.iterdir() if p.is_dir()] == [run.path.name]
    flag.unlink()
    assert make().complete and list(verify(run.path)) == []


def test_a_mending_that_came_to_nothing_leaves_the_damaged_run(lens, sample, tmp_path):
    run = by_run(lens, sample, tmp_path)
    units(run.path, "energy")[2].unlink()

    def stop(step, *args, **options):
        raise StopError

    values = run["energy"].isel(step=0).values
    with pytest.MonkeyPatch.context() as patched, pytest.warns(UserWarning, match="made again"):
        patched.setattr("dit_lens.engine.recorder.Recorder.end_step", stop)
        with pytest.raises(StopError):
            by_run(lens, sample, tmp_path)
    np.testing.assert_array_equal(dl.open_run(run.path)["energy"].isel(step=0), values)
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == [run.path.name]


def test_a_run_that_lost_its_metadata_is_not_passed_over_in_silence(lens, sample, tmp_path):
    lost, run = (lens.run(sample, seed, steps=2, store=tmp_path) for seed in (0, 1))
    (lost.path / "zarr.json").unlink()
    with pytest.warns(UserWarning, match=f"left out: .*{lost.path.name}.* journal.jsonl of a run"):
        assert list(dl.open_runs(tmp_path).children) == [run.path.name]
    with pytest.raises(StoreError, match=r"journal.jsonl of a run, and its zarr.json is gone"):
        dl.open_run(lost.path)


# ---- a run's folder that is a link


@pytest.fixture
def linked(tmp_path):
    """Moves a run's folder elsewhere, and puts a link in its place."""

    def link(path):
        elsewhere = tmp_path / "elsewhere" / path.name
        elsewhere.parent.mkdir(exist_ok=True)
        path.rename(elsewhere)
        path.symlink_to(elsewhere)
        return elsewhere

    return link


def folders(store):
    return sorted(path.name for path in store.iterdir() if path.name != "zarr.json")


def test_an_interrupted_batch_run_whose_folder_is_a_link_begins_anew_there(
    lens, sample, tmp_path, linked, monkeypatch
):
    from dit_lens.engine.batch import Batch

    store, advance = tmp_path / "store", Batch.advance

    def stop(batch, step, *args, **options):
        if step == 2:
            raise StopError
        return advance(batch, step, *args, **options)

    def make(where):
        return lens.batch([(sample, 0)], steps=3, record=RECORD, store=where, verify="never").run()[0]

    expected = make(tmp_path / "other")
    with monkeypatch.context() as patched:
        patched.setattr(Batch, "advance", stop)
        with pytest.raises(StopError):
            make(store)
    (name,) = folders(store)
    elsewhere = linked(store / name)
    assert dl.Run(elsewhere).status.committed_steps
    run = make(store)
    assert run.complete and dl.Run(elsewhere).complete and (store / name).is_symlink()
    np.testing.assert_array_equal(run["energy"], expected["energy"])


def traced(lens, sample, store):
    with lens.trace(sample, store=store, steps=2) as trace:
        trace.record(dl.energy)
        for call in trace.calls():
            call.block(1).output  # noqa: B018
    return trace.run


@pytest.mark.parametrize("make", [by_run, by_batch, traced], ids=["run", "batch", "trace"])
def test_a_link_that_a_new_run_replaces_leaves_nothing_and_what_it_leads_to(
    lens, sample, tmp_path, linked, make
):
    store = tmp_path / "store"
    run = make(lens, sample, store)
    before, values = folders(store), run["energy"].values
    elsewhere = linked(run.path)
    if make is not traced:  # which is always made again
        units(elsewhere, "energy")[0].unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = make(lens, sample, store)
    np.testing.assert_array_equal(again["energy"], values)
    assert folders(store) == before and not again.path.is_symlink()
    assert json.loads((elsewhere / "zarr.json").read_text())["attributes"]["status"] == "complete"
