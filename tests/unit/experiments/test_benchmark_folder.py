"""A folder of VBVR-Bench through the scripts: laid out by split, task and sample, gone on with, broken samples told."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import dit_lens as dl
from benches import IN, MAZE, OUT, SORT, run, write_sample
from dit_lens.engine.batch import Batch

pytestmark = pytest.mark.slow


@pytest.fixture
def bench(tmp_path):
    """Three tasks of two sizes (after rounding up to 16 pixels), and one sample whose picture is missing."""
    root = tmp_path / "bench"
    for label, height, width in (
        (f"{IN}/{SORT}/00000", 30, 44),
        (f"{IN}/{SORT}/00001", 32, 48),
        (f"{IN}/{MAZE}/00000", 48, 32),
        (f"{OUT}/{MAZE}/00000", 32, 46),
        (f"{OUT}/{MAZE}/00001", 32, 48),
    ):
        write_sample(root / label, height, width, 4)
    (root / IN / SORT / "00001" / "first_frame.png").write_bytes(b"")
    return root


@pytest.fixture(scope="module")
def organism():
    return dl.load("organism")


@pytest.mark.filterwarnings("ignore:skipped")
def test_x0_of_a_benchmark_is_laid_out_by_split_task_and_sample_and_gone_on_with(
    bench, tmp_path, monkeypatch, organism
):
    out = tmp_path / "out"
    given = {"eval_root": bench, "out": out, "steps": 2, "vis_steps": "all", "cfg_scale": 1.0}
    assert run("decode_steps", monkeypatch, organism, **given, split=IN) == 1  # one is broken
    labels = [f"{IN}/{SORT}/00000", f"{IN}/{MAZE}/00000"]
    for label in labels:
        assert (out / label / "x0" / "step_001.mp4").stat().st_size > 500
    made = {p: p.stat().st_mtime_ns for p in out.glob("*_50/**/*.mp4")}
    assert (
        run("decode_steps", monkeypatch, organism, **given) == 1
    )  # both splits: what is there is not made again
    assert {p: p.stat().st_mtime_ns for p in made} == made
    labels += [f"{OUT}/{MAZE}/00000", f"{OUT}/{MAZE}/00001"]
    results = xr.open_zarr(out / "results.zarr", consolidated=False)
    assert results.sample.values.tolist() == labels and "solved" not in results
    assert (results.distance.isel(step=0) > 0).all() and (results.distance.isel(step=-1) == 0).all()
    summary = json.loads((out / "summary.json").read_text())
    assert summary["n"] == 4 and list(summary["left out"]) == [f"{IN}/{SORT}/00001"]
    assert "first_frame.png" in summary["left out"][f"{IN}/{SORT}/00001"]
    shutil.copy(
        bench / IN / SORT / "00000" / "first_frame.png", bench / IN / SORT / "00001" / "first_frame.png"
    )
    assert run("decode_steps", monkeypatch, organism, **given) == 0  # the repaired one alone is made
    assert {p: p.stat().st_mtime_ns for p in made} == made
    assert json.loads((out / "summary.json").read_text())["samples left out"] == 0


def test_one_sample_that_fails_ends_no_run_and_the_exit_code_says_so(bench, tmp_path, monkeypatch, organism):
    from dit_lens.experiments import pictures

    believed = pictures.believed

    def fails(run, decode, sample, folder, steps):
        if sample.task.startswith(OUT) and sample.id == "00000":
            raise dl.DitLensError("the disk is full")
        return believed(run, decode, sample, folder, steps)

    monkeypatch.setattr(pictures, "believed", fails)
    given = {"eval_root": bench, "tasks": "O-39", "out": tmp_path / "out", "steps": 2, "cfg_scale": 1.0}
    assert run("decode_steps", monkeypatch, organism, **given) == 1
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["n"] == 2 and summary["left out"] == {f"{OUT}/{MAZE}/00000": "the disk is full"}


def test_token_maps_of_a_benchmark_take_samples_of_several_sizes(bench, tmp_path, monkeypatch, organism):
    given = {"eval_root": bench, "tasks": "O-39", "samples": 2, "out": tmp_path / "out", "steps": 2}
    options = {**given, "layers": "4", "vis_steps": "1", "cfg_scale": 1.0}
    assert run("token_maps", monkeypatch, organism, **options) == 0
    assert (tmp_path / "out" / IN / MAZE / "00000" / "energy_vs_step.png").stat().st_size > 500
    assert (tmp_path / "out" / OUT / MAZE / "00000" / "energy_vs_step.png").stat().st_size > 500


@pytest.mark.filterwarnings("ignore:skipped")
@pytest.mark.parametrize(
    "name, options",
    [
        ("noise_sensitivity", {"cka_layers": "0,9"}),
        ("depth_lens", {"layers": "4", "vis_steps": "0,2", "sheets": 2}),
        ("step_count", {"counts": (1, 3), "steps": None}),
        ("emergent", {}),
    ],
)
def test_a_study_of_a_benchmark_measures_distances_of_samples_of_several_sizes(
    name, options, bench, tmp_path, monkeypatch, organism
):
    out = tmp_path / "out"
    given = {"eval_root": bench, "out": out, "block": 2, "steps": 3, "cfg_scale": 1.0, **options}
    given |= {"clean": out / "clean.zarr"} if name == "emergent" else {}
    assert run(name, monkeypatch, organism, **given) == 1  # the broken one
    results = xr.open_zarr(out / "results.zarr", consolidated=False).load()
    labels = [f"{IN}/{SORT}/00000", f"{IN}/{MAZE}/00000", f"{OUT}/{MAZE}/00000", f"{OUT}/{MAZE}/00001"]
    assert results.sample.values.tolist() == labels
    distances = [n for n in results if "distance" in n]
    assert distances and not any("solved" in n or "answer" in n for n in results)
    summary = json.loads((out / "summary.json").read_text())
    assert list(summary["left out"]) == [f"{IN}/{SORT}/00001"]
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["settings"]["eval_root"] == str(bench) and manifest["settings"]["task"] == "bench"
    assert all(p.stat().st_size > 5000 for p in out.glob("*.png")) and list(out.glob("*.png"))
    if name == "depth_lens":
        assert (out / labels[0] / "depth_plain.png").exists()

    def refuse(*_, **__):
        raise AssertionError("a repeated command runs the model")

    monkeypatch.setattr(Batch, "step", refuse)
    assert run(name, monkeypatch, organism, **given) == 1
    assert xr.open_zarr(out / "results.zarr", consolidated=False).load().identical(results)


def test_what_a_benchmark_cannot_give_is_refused(bench, tmp_path, monkeypatch, organism):
    with pytest.raises(dl.TaskError, match="add --score vbvr"):
        run("frame_count", monkeypatch, organism, eval_root=bench, tasks="O-39", out=tmp_path)
    with pytest.raises(dl.TaskError, match="at least 2"):
        run("step_count", monkeypatch, organism, eval_root=bench, tasks="O-39", samples=1, out=tmp_path)
    with pytest.raises(dl.TaskError, match="come from one of them"):
        run("decode_steps", monkeypatch, organism, eval_root=bench, image=Path("a.png"), out=tmp_path)
    with pytest.raises(dl.TaskError, match="go with --eval-root"):
        run("decode_steps", monkeypatch, organism, tasks="O-39", out=tmp_path)
    picture = bench / IN / MAZE / "00000" / "first_frame.png"
    with pytest.raises(dl.TaskError, match="at least 2"):
        run("step_count", monkeypatch, organism, image=picture, prompt="go", out=tmp_path)


def test_samples_of_several_lengths_are_refused_before_anything_is_computed_where_frames_are_compared(
    tmp_path, monkeypatch, organism
):
    root, label = tmp_path / "bench", f"{IN}/{SORT}"
    for name, frames in (("00000", 5), ("00001", 9), ("00002", 8)):  # 8 frames are rounded up to 9
        write_sample(root / label / name, 32, 48, frames)
    given = {"eval_root": root, "out": tmp_path / "out", "steps": 2, "cfg_scale": 1.0, "stops": "none"}
    with monkeypatch.context() as patched:
        patched.setattr(Batch, "__init__", lambda *_, **__: pytest.fail("a batch is prepared"))
        with pytest.raises(
            dl.TaskError, match=r"5 \(1 of 3\), 9 \(2 of 3\)\. .* give --num-frames, or one --tasks"
        ):
            run("noise_sensitivity", monkeypatch, organism, **given)
    given |= {"num_frames": 5, "cka_layers": "none"}
    assert run("noise_sensitivity", monkeypatch, organism, **given) == 0
    assert xr.open_zarr(tmp_path / "out" / "results.zarr", consolidated=False).sizes["frame"] == 2


def test_arguments_of_the_pipeline_reach_it_or_are_refused(tmp_path, monkeypatch, organism):
    from dit_lens.experiments.options import StudyOptions

    given = ("sigma_shift=2", "switch_DiT_boundary=0.9", "motion=slow", "tiles=(1, 2)")
    parsed = StudyOptions(pipe_arg=given).arguments
    assert parsed == {"sigma_shift": 2, "switch_DiT_boundary": 0.9, "motion": "slow", "tiles": (1, 2)}
    for wrong, reason in (
        ("sigma_shift", "NAME=VALUE"),
        ("steps=3", "an option of its own"),
        ("a b=1", "NAME=VALUE"),
    ):
        with pytest.raises(dl.TaskError, match=reason):
            StudyOptions(pipe_arg=(wrong,)).arguments  # noqa: B018
    with pytest.raises(dl.TaskError, match="comes twice"):
        StudyOptions(pipe_arg=("a=1", "a=2")).arguments  # noqa: B018
    found = {}
    for name, more in (
        ("early_selection", {"samples": 2, "seeds": 2, "at": "1"}),
        ("decode_steps", {"vis_steps": "0"}),
        ("token_maps", {"vis_steps": "0", "layers": "0"}),
    ):
        for shift in ((), ("sigma_shift=2",)):
            out = tmp_path / f"{name}{len(shift)}"
            options = {"task": "circle", "steps": 3, "out": out, "pipe_arg": shift, **more}
            assert run(name, monkeypatch, organism, **options) == 0
            if name == "early_selection":
                found[shift] = xr.open_zarr(out / "results.zarr", consolidated=False).sigma.values
    assert not np.allclose(*found.values())
    for name in ("decode_steps", "token_maps"):
        stores = [tmp_path / f"{name}{n}" / "store.zarr" for n in (0, 1)]
        levels = [dl.open_run(next(store.glob("circle-*"))).sigma.values for store in stores]
        assert not np.allclose(*levels)
    with pytest.raises(dl.DitLensError, match="no block of samples"):  # the reason is on stderr
        run(
            "early_selection",
            monkeypatch,
            organism,
            task="circle",
            samples=2,
            steps=3,
            out=tmp_path / "x",
            pipe_arg=("no_such=1",),
        )
