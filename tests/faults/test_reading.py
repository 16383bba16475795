"""What is read is what was written, of the run that was asked for, as it was when it was looked at."""

import pickle
import shutil

import numpy as np
import pytest
import torch

import dit_lens as dl
from dit_lens.errors import CaptureError, StoreError
from dit_lens.store import reader


class StopError(Exception):
    """Ends a run."""


@pytest.fixture
def stopped(lens, sample, tmp_path):
    """A run that was interrupted at step 2, and how to go on with it."""
    flag = tmp_path / "go on"

    def stop(h, at):
        if at.step == 2 and not flag.exists():
            raise StopError
        return h

    options = {"steps": 4, "record": [dl.x0, dl.energy], "edit": [(stop, dl.at(layer=0))]}

    def go_on(store=tmp_path / "store", **more):
        flag.touch()
        return lens.run(sample, store=store, **options, **more)

    with pytest.raises(StopError):
        lens.run(sample, store=tmp_path / "store", **options)
    (path,) = (p for p in (tmp_path / "store").iterdir() if p.is_dir())
    return path, go_on


def spoil(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x20
    path.write_bytes(data)


def test_a_run_that_ends_while_it_is_opened_is_shown_as_it_was(stopped, monkeypatch):
    path, go_on = stopped
    open_zarr = reader.xr.open_zarr

    def later(*args, **options):
        monkeypatch.undo()
        go_on()
        return open_zarr(*args, **options)

    monkeypatch.setattr(reader.xr, "open_zarr", later)
    dataset = dl.open_run(path)
    lacking = np.isnan(dataset["energy"].values).reshape(4, -1).all(1)
    assert (dataset.attrs["status"], lacking.tolist()) == ("incomplete", [False, False, True, True])
    assert dl.open_run(path).attrs["status"] == "complete"


def test_a_folder_under_another_runs_name_is_refused(lens, sample, tmp_path):
    first, second = (lens.run(sample, seed, steps=2, store=tmp_path) for seed in (0, 1))
    lens.run(sample, 1, steps=2, store=tmp_path)  # the first run from this store, which is checked
    place = first.path
    shutil.rmtree(place)
    second.path.rename(place)
    for again in (
        lambda: lens.run(sample, 0, steps=2, store=tmp_path),
        lambda: lens.run(sample, 0, steps=2, store=tmp_path, verify="never"),
    ):
        with pytest.raises(StoreError, match="holds another run than its name says"):
            again()


def test_values_that_are_not_those_that_were_written_are_refused(lens, sample, tmp_path):
    run = lens.run(sample, steps=2, record=[dl.energy, dl.hidden], store=tmp_path)
    for name in ("energy", "hidden", "latents"):
        file = sorted((run.path / name).glob("c.*"))[0]
        whole = file.read_bytes()
        spoil(file)
        with pytest.raises(StoreError, match="has crc32c"):
            dl.open_run(run.path)[name].load()
        file.write_bytes(whole)
        dl.open_run(run.path)[name].load()


def test_a_run_does_not_go_on_from_latents_that_were_spoiled(stopped):
    path, go_on = stopped
    spoil(sorted((path / "latents").glob("c.*"))[-1])
    with pytest.raises(StoreError, match="has crc32c"):
        go_on()


@pytest.mark.parametrize("name", ["sigma", "layer", "expert"])
def test_labels_that_are_cut_are_an_error_that_names_the_run(lens, sample, tmp_path, name):
    runs = [lens.run(sample, seed, steps=2, record=[dl.energy], store=tmp_path) for seed in (0, 1)]
    (runs[0].path / name / "c.0").write_bytes(b"")
    with pytest.raises(StoreError, match=f"{runs[0].path.name} cannot be opened"):
        dl.open_run(runs[0].path)
    with pytest.warns(UserWarning, match="left out"):
        assert list(dl.open_runs(tmp_path).children) == [runs[1].path.name]


ORDERS = {
    "the other way round": (lambda steps: list(steps)[::-1], "takes its steps in another order"),
    "twice": (lambda steps: [*steps, *steps], "more steps than the 4 of its schedule|another order"),
    "in part": (lambda steps: list(steps)[:2], "ended after 2 of 4 steps"),
}


@pytest.mark.parametrize("order", ORDERS)
def test_a_loop_that_does_not_go_through_its_schedule_is_refused(lens, sample, order):
    cut, message = ORDERS[order]
    with pytest.raises(CaptureError, match=message):
        lens.run(sample, steps=4, record=[dl.x0], progress_bar_cmd=cut)
    with pytest.raises(dl.DitLensError):
        lens.batch([(sample, 0)], steps=4, record=[dl.x0], progress_bar_cmd=cut).run()
    with pytest.raises(dl.DitLensError):
        lens.sweep([(sample, 0)], {"none": [(dl.zero(), dl.at(layer=1))]}, steps=4, progress_bar_cmd=cut)


def drawn(lens, sample, store, factor):
    """A trace whose values its name does not tell: the number comes from outside of Python's sight."""
    torch.manual_seed(factor)
    with lens.trace(sample, store=store, steps=2, cfg_scale=1.0) as trace:
        trace.record(dl.hidden)
        for call in trace.calls():
            h = call.block(0).output
            call.block(0).output = h + torch.randn_like(h)
    return trace.run


def test_a_trace_that_is_made_again_with_other_values_says_so_and_does_not_change_what_is_held(
    lens, sample, tmp_path
):
    first = drawn(lens, sample, tmp_path, 1)
    opened, values = dl.open_run(first.path), first["hidden"].isel(frame=0).values
    again = drawn(lens, sample, tmp_path, 1)  # the same values: who holds the first reads them still
    assert again.path == first.path
    held = [first, again]
    for read in (first["hidden"], opened["hidden"], again["hidden"]):
        np.testing.assert_array_equal(read.isel(frame=0).values, values)
    for factor in range(2, 8):  # systems give the number of a folder that is gone to the next one
        with pytest.warns(UserWarning, match="was made again, and holds other values than before"):
            held.append(drawn(lens, sample, tmp_path, factor))
    pickled = pickle.dumps(held[3]["hidden"])
    for read in (*(run["hidden"] for run in held[:-1]), opened["hidden"], pickle.loads(pickled)):
        with pytest.raises(StoreError, match="is not what it was when the run was opened"):
            read.isel(frame=0).load()
    last = held[-1]["hidden"]
    assert last.isel(frame=0).notnull().all() and not np.array_equal(last.isel(frame=0).values, values)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(held[-1]))["hidden"], last)


def test_a_damaged_trace_is_mended_by_tracing_it_again(lens, sample, tmp_path):
    run = drawn(lens, sample, tmp_path, 1)
    values = run["hidden"].values
    for file in (sorted((run.path / "hidden").glob("c.*"))[0], run.path / "sigma" / "c.0"):
        file.write_bytes(b"")
        again = drawn(lens, sample, tmp_path, 1)
        np.testing.assert_array_equal(dl.open_run(again.path)["hidden"].values, values)


@pytest.mark.parametrize("record", [dl.energy, dl.channel_mean], ids=lambda record: record.__name__)
def test_what_a_run_gives_by_name_is_compared_with_its_checksum(lens, sample, tmp_path, record):
    run = lens.run(sample, steps=2, record=[record], store=tmp_path)
    name = record.__name__
    spoil(sorted((run.path / name).glob("c.*"))[0])
    for read in (dl.Run(run.path)[name], dl.Run(run.path)[name].sel(step=[0, 1])):
        with pytest.raises(StoreError, match="has crc32c"):
            read.load()
