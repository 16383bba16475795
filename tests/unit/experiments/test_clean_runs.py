"""Clean runs equal single runs, are made once, and end the same when they were interrupted."""

import numpy as np
import pytest

import dit_lens as dl
from dit_lens.experiments.clean_runs import clean_runs


def test_clean_runs_are_single_runs_and_are_made_once(lens, sample, tmp_path, monkeypatch):
    pairs = [(sample, 0), (sample, 1)]
    runs = clean_runs(lens, pairs, tmp_path, steps=3)
    for run, (one, seed) in zip(runs, pairs, strict=True):
        single = lens.run(one, seed, steps=3, record=[dl.x0])
        assert run.complete
        for name in ("x0", "latents"):
            assert np.allclose(run[name].values, single[name].values, rtol=0, atol=1e-4)
        assert np.abs(run.video.astype(int) - single.video).max() <= 1
        assert run.attrs["manifest"]["identity"]["loop"] == "batch"
    # The first run that a process takes from a store is begun again for one step; then nothing is computed.
    assert [r.path for r in clean_runs(lens, pairs, tmp_path, steps=3)] == [r.path for r in runs]
    monkeypatch.setattr(type(lens), "batch", None)
    assert [r.path for r in clean_runs(lens, pairs, tmp_path, steps=3)] == [r.path for r in runs]


def test_a_pair_that_is_asked_for_twice_is_made_once(lens, sample, tmp_path):
    runs = clean_runs(lens, [(sample, 0), (sample, 1), (sample, 0)], tmp_path, steps=2)
    assert [r.path for r in runs] == [runs[0].path, runs[1].path, runs[0].path]
    assert runs[0].path != runs[1].path and all(r.complete for r in runs)


class Stop(Exception):
    pass


def interrupted(lens, pairs, store, monkeypatch, *, finished, at_step=None, **options):
    """Make clean runs until so many are finished, or a step begins; then raise."""
    from dit_lens.engine import batch_run
    from dit_lens.engine.batch import Batch

    write, step, done = batch_run.write_outputs, Batch.advance, []

    def write_outputs(*args):
        if len(done) == finished:
            raise Stop
        done.append(1)
        write(*args)

    def stepped(batch, number, *args, **more):
        if number == at_step:
            raise Stop
        return step(batch, number, *args, **more)

    with monkeypatch.context() as patched:
        patched.setattr(batch_run, "write_outputs", write_outputs)
        patched.setattr(Batch, "advance", stepped)
        with pytest.raises(Stop):
            clean_runs(lens, pairs, store, **options)


@pytest.mark.parametrize("finished, at_step", [(1, None), (0, 2)])
def test_clean_runs_that_were_interrupted_end_as_those_that_were_not_bit_for_bit(
    lens, sample, tmp_path, monkeypatch, finished, at_step
):
    pairs = [(sample, seed) for seed in range(5)]
    options = {"steps": 4, "at_once": 3}
    whole = clean_runs(lens, pairs, tmp_path / "whole", **options)
    store = tmp_path / "resumed"
    interrupted(lens, pairs, store, monkeypatch, finished=finished, at_step=at_step, **options)
    for run, other in zip(clean_runs(lens, pairs, store, **options), whole, strict=True):
        assert run.path.name == other.path.name and run.complete
        assert run.attrs["manifest"]["batch"] == other.attrs["manifest"]["batch"]
        for name in ("x0", "latents"):
            assert np.array_equal(run[name].values, other[name].values)
        assert np.array_equal(run.video, other.video)


def test_steps_of_a_batch_with_other_rows_are_not_gone_on_from(lens, sample, tmp_path, monkeypatch):
    pairs = [(sample, seed) for seed in range(4)]
    interrupted(lens, pairs, tmp_path / "a", monkeypatch, finished=0, at_step=2, steps=3)
    (alone,) = clean_runs(lens, pairs[:1], tmp_path / "a", steps=3)
    (never,) = clean_runs(lens, pairs[:1], tmp_path / "b", steps=3)
    assert np.array_equal(alone["x0"].values, never["x0"].values)
    assert len(alone.attrs["manifest"]["batch"]["rows"]) == 1


def test_a_run_that_another_process_writes_leaves_no_lock_on_the_others(lens, sample, tmp_path, monkeypatch):
    from dit_lens.engine import batch_run

    pairs, opened, writer = [(sample, 0), (sample, 1)], [], batch_run.RunWriter

    def second_fails(*args, **options):
        if opened:
            raise dl.StoreError("locked")
        opened.append(writer(*args, **options))
        return opened[0]

    with monkeypatch.context() as patched:
        patched.setattr(batch_run, "RunWriter", second_fails)
        with pytest.raises(dl.StoreError, match="locked"):
            clean_runs(lens, pairs, tmp_path, steps=2)
    assert all(r.complete for r in clean_runs(lens, pairs, tmp_path, steps=2))  # no lock is left
