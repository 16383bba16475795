"""A folder of VBVR-Bench through the scripts: laid out by split, task and sample, gone on with, broken samples told."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from PIL import Image

import dit_lens as dl
from dit_lens.engine.batch import Batch
from dit_lens.models.options import ModelOptions
from dit_lens.plot import write_video
from stand_ins import evaluator_package

pytestmark = pytest.mark.slow
SCRIPTS = Path(__file__).parents[3] / "analyses"
IN, OUT = "In-Domain_50", "Out-of-Domain_50"
SORT, MAZE = "G-3_stable_sort_data-generator", "O-39_maze_data-generator"


def write_sample(folder, height, width, frames):
    pixels = np.random.default_rng([height, width]).integers(0, 256, (height, width, 3), np.uint8)
    folder.mkdir(parents=True)
    Image.fromarray(pixels).save(folder / "first_frame.png")
    Image.fromarray(pixels).save(folder / "final_frame.png")
    write_video(np.stack([pixels] * frames), folder / "ground_truth.mp4")
    (folder / "prompt.txt").write_text("solve the maze\n")


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


def run(name, monkeypatch, lens, **options):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    monkeypatch.setattr(ModelOptions, "load", lambda _: lens)  # the real one, loaded once for all
    return module.main(module.Options(**options))


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
    with pytest.raises(dl.TaskError, match="no scorer"):
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


EVALUATOR = """
class Evaluator:
    def evaluate(self, info, task_specific_only=False):
        assert open(info["gt_video_path"], "rb").read(1) and info["prompt"]
        data = open(info["video_path"], "rb").read()
        if "00001" in info["video_path"] and "single" in info["video_path"]:
            raise ValueError("no frames")
        score = sum(data) % 101 / 100
        return {"score": score, "dimensions": {"task_specific": score}, "details": {"video_frame_count": 9}}

TASK_EVALUATOR_MAP = {"G-3_stable_sort_data-generator": Evaluator, "O-39_maze_data-generator": Evaluator}

def get_evaluator(task, device):
    return TASK_EVALUATOR_MAP[task]()

def get_task_category(task):
    return {"G": "Perception", "O": ""}[task[0]]
"""


@pytest.fixture
def evaluator(tmp_path, monkeypatch):
    """A stand-in with the interface of the official evaluator's package, which reads the bytes of a video."""
    return evaluator_package(tmp_path, monkeypatch, EVALUATOR)


@pytest.mark.filterwarnings("ignore:skipped")
def test_an_ensemble_on_a_benchmark_is_a_paired_table_of_the_evaluators_scores(
    bench, evaluator, tmp_path, monkeypatch, organism
):
    out = tmp_path / "out"
    given = {
        "eval_root": bench,
        "out": out,
        "block": 2,
        "steps": 3,
        "cfg_scale": 1.0,
        "ks": (2,),
        "layers": "4-6",
    }
    with pytest.raises(dl.TaskError, match="add --score vbvr"):
        run("seed_ensemble", monkeypatch, organism, **given)
    with pytest.raises(dl.TaskError, match="--score vbvr goes with --eval-root"):
        run("seed_ensemble", monkeypatch, organism, score="vbvr", out=out)
    with pytest.raises(dl.TaskError, match="the official evaluator is not in"):
        run("seed_ensemble", monkeypatch, organism, **given, score="vbvr", evaluator=tmp_path / "nothing")
    assert not (out / "blocks").exists()  # refused before anything was computed
    given |= {"score": "vbvr", "evaluator": evaluator}
    assert run("seed_ensemble", monkeypatch, organism, **given) == 1  # the broken sample
    arms = ["single run", "4-6, K = 2", "first frame held"]
    labels = [f"{IN}/{SORT}/00000", f"{IN}/{MAZE}/00000", f"{OUT}/{MAZE}/00000", f"{OUT}/{MAZE}/00001"]
    folders = [path.name for path in (out / "videos").iterdir()]
    assert len(folders) == 3
    scores = {}
    for arm in arms:
        folder = next(
            f for f in folders if f.replace("_", " ").startswith(arm[:6].replace(",", "_")) or f == arm
        )
        for label in labels:
            data = (out / "videos" / folder / f"{label}.mp4").read_bytes()
            scores[arm, label] = sum(data) % 101 / 100
    summary = json.loads((out / "summary.json").read_text())
    assert summary["measure"] == "task-specific rules"
    assert list(summary["videos without a score"]) == ["single run"]
    rows = {(row["group"], row["arm"]): row for row in summary["scores, against a single run"]}
    assert {group for group, _ in rows} == {"all", f"split {IN}", f"split {OUT}", "category Perception"}
    judged = labels[:3]  # of the fourth the single run has no score
    for arm in arms[1:]:
        row = rows["all", arm]
        assert row["samples"] == 3 and row["without a score"] == 1 and row["tasks"] == 3
        differences = [scores[arm, label] - scores["single run", label] for label in judged]
        assert row["difference"] == pytest.approx(np.mean(differences))
        assert row["low"] <= row["difference"] <= row["high"]
    assert rows["all", "single run"]["difference"] == 0
    assert "low" not in rows["category Perception", arms[1]]  # one task has no interval
    assert (out / "vbvr.csv").read_text().startswith("group,arm,samples")
    # A repeated command judges nothing again; a video that is gone is missed.
    stamps = {p: p.stat().st_mtime_ns for p in (out / "scores").rglob("zarr.json")}
    assert stamps and run("seed_ensemble", monkeypatch, organism, **given) == 1
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps
    # Another command in the same folder is one of its own, and the first then says that its videos are gone.
    assert run("seed_ensemble", monkeypatch, organism, **given, at_steps="1") == 1
    with pytest.raises(dl.StoreError, match="another command has written"):
        run("seed_ensemble", monkeypatch, organism, **given)
    shutil.rmtree(out / "blocks")
    assert run("seed_ensemble", monkeypatch, organism, **given) == 1
    again = json.loads((out / "summary.json").read_text())
    assert again["scores, against a single run"] == summary["scores, against a single run"]
    next((out / "videos").rglob("*.mp4")).unlink()
    with pytest.raises(dl.StoreError, match="are gone"):
        run("seed_ensemble", monkeypatch, organism, **given)


@pytest.mark.filterwarnings("ignore:skipped")
def test_what_is_averaged_on_a_benchmark_has_a_video_a_movement_and_a_cost_for_every_arm(
    bench, evaluator, tmp_path, monkeypatch, organism
):
    out = tmp_path / "out"
    given = {"eval_root": bench, "split": OUT, "out": out, "steps": 2, "cfg_scale": 1.0, "seeds": 2}
    averages = {"what": ("x0", "latents"), "until": (), "score": "vbvr", "evaluator": evaluator}
    assert run("what_to_average", monkeypatch, organism, **given, **averages) == 0
    arms = ["x0, steps 0", "latents, steps 0", "x0, steps 0, placebo", "latents, steps 0, placebo"]
    summary = json.loads((out / "summary.json").read_text())
    rows = {row["arm"] for row in summary["scores, against a single run"] if row["group"] == "all"}
    assert rows == {"single run", *arms, "first frame held"}
    assert len(list((out / "videos").rglob("*.mp4"))) == 2 * len(rows)
    assert list(summary["movement right after"]) == arms
    assert all(moved > 1e-3 for moved in summary["movement right after"].values())
    costs = summary["cost in runs"]
    assert (costs[arms[0]], costs[arms[1]]) == (1.5, 1.0)


def test_a_table_counts_tasks_and_pairs_what_both_arms_have():
    from dit_lens.experiments.benchmark import table

    rng = np.random.default_rng(0)
    labels = [f"{split}/T-{task}/{n:05d}" for split in (IN, OUT) for task in range(8) for n in range(5)]
    task_effect = np.repeat(rng.normal(0, 0.1, 16), 5)
    base = np.clip(0.5 + task_effect + rng.normal(0, 0.1, 80), 0, 1)
    better, same = np.clip(base + 0.1, 0, 1), base.copy()
    better[:3] = np.nan
    text = np.dtypes.StringDType()
    judged = xr.Dataset(
        {"score": (("arm", "sample"), np.array([base, better, same]))},
        {
            "arm": np.array(["base", "better", "same"], text),
            "sample": np.array(labels, text),
            **{
                name: ("sample", np.array([x.split("/")[i] for x in labels], text))
                for i, name in enumerate(("split", "task"))
            },
            "category": ("sample", np.array(["a", ""] * 40, text)),
        },
    )
    rows = {(row["group"], row["arm"]): row for row in table(judged, "base")}
    row = rows["all", "better"]
    assert (row["samples"], row["without a score"], row["tasks"]) == (77, 3, 16)
    assert row["low"] > 0.05 and row["difference"] == pytest.approx(0.1, abs=0.02)
    assert (
        rows["all", "same"]["difference"] == 0
        and rows["all", "same"]["low"] < 0 < rows["all", "same"]["high"]
    )
    assert rows[f"split {IN}", "same"]["tasks"] == 8 and rows["category a", "same"]["samples"] == 40
    assert ("category ", "same") not in rows


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
        ("early_selection", {"seeds": 2, "at": "1"}),
        ("decode_steps", {}),
        ("token_maps", {"layers": "0"}),
    ):
        for shift in ((), ("sigma_shift=2",)):
            out = tmp_path / f"{name}{len(shift)}"
            options = {"task": "circle", "samples": 2, "steps": 3, "out": out, "pipe_arg": shift, **more}
            assert run(name, monkeypatch, organism, **options) == 0
            if name == "early_selection":
                found[shift] = xr.open_zarr(out / "results.zarr", consolidated=False).sigma.values
    assert not np.allclose(*found.values())
    levels = [
        dl.open_run(next((tmp_path / f"decode_steps{n}" / "store.zarr").glob("*"))).sigma.values
        for n in (0, 1)
    ]
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
