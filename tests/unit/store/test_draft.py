import copy
import errno
import gc
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from dit_lens.errors import StoreError
from dit_lens.store import RunWriter, Variable, files, scratch
from dit_lens.store.draft import MOST_BYTES, Draft
from dit_lens.store.run import Run
from dit_lens.store.scratch import Scratch

STEPS, MANIFEST = 3, {"seed": 1}


def fill(draft, size=4):
    """Give a draft one array, and return its values."""
    values = np.random.default_rng(0).normal(size=(STEPS, size)).astype("float32")
    draft.declare(Variable("score", ("step", "part"), (STEPS, size)))
    for step in range(STEPS):
        draft.write("score", {"step": step}, values[step])
        draft.commit_step(step, {"sigma": 1.0})
    return values


def put_off(size=4):
    """Return a run that nobody has read yet, and its values."""
    folder = Scratch()
    draft = Draft(folder.path / "stage0", {"step": range(STEPS)})
    values = fill(draft, size)
    path = folder.path / "run"
    folder.put_off(lambda: draft.finish(MANIFEST, path), draft.nbytes)
    return Run(path, folder), values


def is_written(run):
    return run._path.exists()


def test_a_small_run_is_written_when_it_is_read():
    run, values = put_off()
    assert not is_written(run)
    np.testing.assert_array_equal(run["score"].values, values)
    assert run.complete and run.attrs["manifest"] == MANIFEST
    assert [p.name for p in run.path.parent.iterdir() if p.is_dir()] == ["run"]
    np.testing.assert_array_equal(xr.open_zarr(run.path)["score"].values, values)


def test_a_large_run_is_written_as_it_goes(tmp_path):
    draft = Draft(tmp_path / "stage0", {"step": range(STEPS)})
    values = fill(draft, MOST_BYTES // 8)  # over the limit with the third step
    assert draft.is_written and (tmp_path / "stage0-0").is_dir()
    draft.finish(MANIFEST, tmp_path / "run")
    np.testing.assert_array_equal(Run(tmp_path / "run")["score"].values, values)


def test_what_a_writer_refuses_is_refused_at_once(tmp_path):
    draft = Draft(tmp_path / "stage0", {"step": range(STEPS)})
    draft.declare(Variable("score", ("step", "part"), (STEPS, 4)))
    with pytest.raises(StoreError, match="declared already"):
        draft.declare(Variable("score", ("step", "part"), (STEPS, 4), units="m"))
    with pytest.raises(StoreError, match="one size per dimension"):
        draft.declare(Variable("other", ("step", "part"), (STEPS, 5)))
    with pytest.raises(StoreError, match="one size per dimension"):
        draft.declare(Variable("longer", ("step",), (STEPS + 1,)))


@pytest.mark.parametrize("call", ["write_partial", "publish"])
def test_a_disk_that_is_full_loses_nothing(call, monkeypatch):
    run, values = put_off()

    def full(*_):
        raise OSError(errno.ENOSPC, "no space left")

    with monkeypatch.context() as patch:
        patch.setattr(files, call, full)
        with pytest.raises((StoreError, OSError), match="no space left"):
            run["score"]
    np.testing.assert_array_equal(run["score"].values, values)


def test_the_oldest_are_written_where_many_are_not_read(monkeypatch):
    gc.collect()
    scratch._PARENT.bound(0)
    monkeypatch.setattr(scratch, "_MOST_BYTES", 100)
    runs = [put_off()[0] for _ in range(4)]  # of 48 bytes each
    assert [is_written(run) for run in runs] == [True, True, False, False]
    del runs[2]
    gc.collect()
    runs.append(put_off()[0])
    assert [is_written(run) for run in runs] == [True, True, False, False]


def test_copies_and_pickles_of_a_run_read_its_folder():
    run, values = put_off()
    with pytest.warns(UserWarning, match="give store="):
        pickled = pickle.dumps(run)
    for other in (copy.copy(run), copy.deepcopy(run), pickle.loads(pickled)):
        np.testing.assert_array_equal(other["score"].values, values)
        del other
        gc.collect()
    np.testing.assert_array_equal(run["score"].values, values)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_process_that_is_forked_off_reads_the_run(monkeypatch):
    run, values = put_off()
    child = os.fork()
    if child == 0:
        same = np.array_equal(run["score"].values, values)
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    np.testing.assert_array_equal(run["score"].values, values)


@pytest.mark.parametrize("line", ["describe", "close", "rename"])
def test_an_interrupt_while_it_is_read_loses_nothing(line, monkeypatch):
    run, values = put_off()
    holder = Path if line == "rename" else RunWriter
    inner = getattr(holder, line)

    def interrupted(*args):
        inner(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(holder, line, interrupted)
        with pytest.raises(KeyboardInterrupt):
            run["score"]
    np.testing.assert_array_equal(run["score"].values, values)
    assert run.complete


def test_what_does_not_fit_is_refused_at_once(tmp_path):
    draft = Draft(tmp_path / "stage0", {"step": range(1)})
    draft.declare(Variable("h", ("step", "part"), (1, 2), "bfloat16", encoding="float16"))
    with pytest.raises(StoreError, match="does not fit float16"):
        draft.write("h", {"step": 0}, np.array([0x7F00, 0], np.uint16))
