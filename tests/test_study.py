"""A study is measured once, block by block; clean runs are made once and shared."""

import json

import numpy as np
import pytest
import torch
import xarray as xr

import dit_lens as dl
from dit_lens import tasks
from dit_lens.experiments import study
from dit_lens.experiments.clean_runs import clean_runs
from dit_lens.experiments.study import Options


def measure(samples):
    names = [f"{s.task}/{s.id}" for s in samples]
    values = np.array([[float(s.id) + k for k in range(2)] for s in samples])
    answers = np.array([["a", "b"]] * len(samples), np.dtypes.StringDType())
    coords = {"sample": np.array(names, np.dtypes.StringDType()), "seed": [0, 1]}
    dims = ("sample", "seed")
    return xr.Dataset(
        {"score": (dims, values), "answer": (dims, answers), "sigma": ("step", [1.0, 0.5])}, coords
    )


def test_a_repeated_study_goes_on_where_it_stopped_and_ends_the_same(lens, tmp_path):
    made = []

    def counted(samples):
        made.append(len(samples))
        if len(made) == 2:
            raise KeyboardInterrupt
        return measure(samples)

    options = Options(task="circle", samples=5, seeds=2, block=2, out=tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        study.study(options, "s", lens, counted)
    again, code = study.study(options, "s", lens, counted)
    assert code == 0 and made == [2, 2, 2, 1]
    whole, _ = study.study(
        Options(task="circle", samples=5, seeds=2, block=2, out=tmp_path / "b"), "s", lens, measure
    )
    assert again.identical(whole.assign_attrs(again.attrs)) and again.sizes == {
        "sample": 5,
        "seed": 2,
        "step": 2,
    }
    assert (
        xr.open_zarr(tmp_path / "a" / "results.zarr", consolidated=False).answer.values.tolist()
        == [["a", "b"]] * 5
    )


def test_another_model_or_setting_makes_other_blocks(lens, tiny_pipe, tmp_path):
    made = []

    def counted(samples):
        made.append(1)
        return measure(samples)

    options = Options(task="circle", samples=2, block=2, out=tmp_path)
    study.study(options, "s", lens, counted)
    study.study(options, "s", dl.Lens(tiny_pipe(seed=1)), counted)
    study.study(Options(task="circle", samples=2, block=2, out=tmp_path, seed=9), "s", lens, counted)
    study.study(options, "s", lens, counted)
    assert len(made) == 3


def test_a_sample_that_fails_is_named_and_stops_no_other_not_even_of_its_block(lens, tmp_path, capsys):
    def broken(samples):
        if any(s.id == "1000000" for s in samples):
            raise ValueError("a bug")
        return measure(samples)

    options = Options(task="circle", samples=4, block=2, out=tmp_path)
    results, code = study.study(options, "s", lens, broken)
    assert code == 1 and results.sample.values.tolist() == [f"circle/100000{i}" for i in (1, 2, 3)]
    said = capsys.readouterr().err
    assert "circle/1000000 to 1000001 failed (ValueError: a bug)" in said and "circle/1000000 failed" in said
    assert options.left_out == {"circle/1000000": "ValueError: a bug"}
    study.finish(options, {})
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["samples left out"] == 1 and summary["left out"] == options.left_out
    with pytest.raises(dl.DitLensError, match="no block"):
        nothing = Options(task="circle", samples=2, block=2, out=tmp_path / "x")
        study.study(nothing, "s", lens, lambda samples: broken([samples[0].with_(id="1000000")]))


def test_noise_seeds_differ_between_samples_and_options_are_checked():
    options = Options(task="maze", samples=3, seeds=4)
    seeds = [s for sample in study.samples_of(options) for s in study.noise_seeds(sample, options)]
    assert len(set(seeds)) == 12
    with pytest.raises(dl.DitLensError, match="--samples 1"):
        study.samples_of(Options(samples=1))


def test_training_scenes_are_none_of_those_tested_and_a_task_without_enough_of_them_is_refused():
    options = Options(task="circle", samples=8)
    tested = {s.image.tobytes() for s in study.samples_of(options)}
    scenes = study.training_samples(options, 6)
    assert len(scenes) == 6 and not tested & {s.image.tobytes() for s in scenes}
    assert all(int(s.id) < 1_000_000 for s in scenes)
    with pytest.raises(dl.TaskError, match="so few scenes that only"):
        study.training_samples(Options(task="occlude", samples=400), 8)  # it has 24 layouts


def test_outcomes_are_the_scorers_words_and_the_distance(lens, tmp_path):
    samples = [tasks.circle(1_000_000), tasks.circle(1_000_001)]
    options = Options(seeds=2)
    batch = lens.batch(study.pairs_of(samples, options), steps=2)
    truth = torch.cat(
        [
            lens.pipe.vae.encode(torch.from_numpy(s.truth).permute(3, 0, 1, 2)[None] / 127.5 - 1)
            for s in samples
            for _ in range(2)
        ]
    )
    found = study.outcomes(batch, torch.stack([truth, truth + 0.5]), truth)
    assert np.allclose(found.distance[0], 0) and np.allclose(found.distance[1], 0.5)
    scores = [
        [s.score(batch.decode(x[None])[0]) for (s, _), x in zip(batch.pairs, arm, strict=True)]
        for arm in (truth, truth + 0.5)
    ]
    assert found.answer.values.tolist() == [[s.answer for s in row] for row in scores]
    table = study.by_sample(found, samples, options)
    assert table.score.dims == ("arm", "sample", "seed") and table.noise_seed.shape == (2, 2)
    assert table.answer.sel(sample="circle/1000001", seed=1).values.tolist() == [
        row[3].answer for row in scores
    ]


def test_clean_runs_are_single_runs_and_are_made_once(lens, sample, tmp_path, monkeypatch):
    pairs = [(sample, 0), (sample, 1)]
    runs = clean_runs(lens, pairs, tmp_path, steps=3)
    for run, (one, seed) in zip(runs, pairs, strict=True):
        single = lens.run(one, seed, steps=3, record=[dl.x0])
        assert run.complete
        for name in ("x0", "latents"):
            assert np.allclose(run[name].values, single[name].values, rtol=0, atol=1e-4)
        assert np.abs(run.video.astype(int) - single.video).max() <= 1
        assert run.attrs["manifest"]["identity"]["body"] == "batch"
    monkeypatch.setattr(type(lens), "batch", None)  # nothing is computed again
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


def test_no_scene_is_drawn_twice_and_a_task_with_too_few_says_so():
    options = study.Options(task="occlude", samples=24)
    found = study.samples_of(options)
    assert len({(s.image.tobytes(), s.prompt) for s in found}) == 24
    assert [s.id for s in found] == sorted((s.id for s in found), key=int)
    with pytest.raises(dl.TaskError, match=r"only 24 are there; ask for --samples 24.*--seeds"):
        study.samples_of(study.Options(task="occlude", samples=25))
