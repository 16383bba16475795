"""Studies on a folder of VBVR-Bench: videos of every arm, the evaluator's scores, the paired table.

The evaluator is a stand-in that scores how much a video moves, so that the held first frame gets 0 by construction.
"""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import dit_lens as dl
from benches import IN, MAZE, OUT, SORT, run, script, write_sample
from dit_lens.experiments.benchmark import FLOOR, folder_of_arm
from dit_lens.experiments.benchmark_table import averaged, table
from stand_ins import JUDGES_MOTION, evaluator_package, motion

pytestmark = pytest.mark.slow
LABELS = [f"{IN}/{SORT}/00000", f"{OUT}/{MAZE}/00000", f"{OUT}/{MAZE}/00001"]
STUDIES = {
    "seed_ensemble": ("single run", {"ks": (2,), "layers": "4-6", "steps": 2}),
    "noise_sensitivity": ("clean run", {"cka_layers": "none", "stops": "none", "steps": 2}),
    "step_count": ("2 steps", {"counts": (1, 2)}),
    "frame_count": ("9 frames", {"counts": (5, 9), "steps": 1}),
}
ARMS = {
    "seed_ensemble": ["4-6, K = 2"],
    "noise_sensitivity": [
        "after step 0",
        *(f"frame {f}, same scale{judged}" for judged in ("", ", elsewhere") for f in (0, 1)),
    ],
    "step_count": ["1 steps"],
    "frame_count": ["5 frames"],
}


@pytest.fixture
def bench(tmp_path):
    """Two tasks in two splits."""
    for label in LABELS:
        write_sample(tmp_path / "bench" / label, 32, 48, 5)
    return tmp_path / "bench"


@pytest.fixture
def evaluator(tmp_path, monkeypatch):
    return evaluator_package(tmp_path, monkeypatch, JUDGES_MOTION)


@pytest.fixture
def quick(tmp_path, monkeypatch):
    """Score a video by the size of its file, which is read in no time."""
    source = JUDGES_MOTION.replace("motion(info", "9, os.path.getsize(info").replace(
        '"])\n        return', '"]) / 1e6\n        return'
    )
    return evaluator_package(tmp_path, monkeypatch, source.replace("from stand_ins import motion", ""))


@pytest.fixture(scope="module")
def organism():
    return dl.load("organism-v1")


def size(path):
    """Return what the quick evaluator scores."""
    return path.stat().st_size / 1e6


def judged(tmp_path):
    """Return how many videos were judged so far."""
    return len((tmp_path / "judged.txt").read_text().splitlines())


def row_of(rows, arm, group="all", against=None):
    (row,) = [r for r in rows if (r["group"], r["arm"]) == (group, arm) and against in (None, r["against"])]
    return row


@pytest.mark.parametrize("name", list(STUDIES))
def test_every_study_has_a_paired_table_of_its_arms(name, bench, quick, tmp_path, monkeypatch, organism):
    baseline, how = STUDIES[name]
    out, arms = tmp_path / "out", [*ARMS[name], FLOOR]
    given = {"eval_root": bench, "score": "vbvr", "evaluator": quick, "out": out, "cfg_scale": 1.0, **how}
    first = folder_of_arm(arms[0], 0)
    monkeypatch.setenv("STAND_IN_FAILS", f"{first}/|{OUT}|00001")
    assert run(name, monkeypatch, organism, **given) == 1  # a video has no score
    files = {
        (arm, label): out / "videos" / folder_of_arm(arm, 0) / f"{label}.mp4"
        for arm in [baseline, *arms]
        for label in LABELS
    }
    assert sorted(files.values()) == sorted((out / "videos").rglob("*.mp4"))
    summary = json.loads((out / "summary.json").read_text())
    assert summary["judged by"]["benchmark"] == "VBVR-Bench" and summary["measure"] == "task-specific rules"
    unscored = summary["videos without a score"]
    assert list(unscored) == [arms[0]] and list(unscored[arms[0]]) == [LABELS[2]]
    assert "no frames" in unscored[arms[0]][LABELS[2]]
    assert summary["samples without a category"] == LABELS[1:]
    rows = summary[f"scores, against {baseline}"]
    assert {row["group"] for row in rows} == {"all", f"split {IN}", f"split {OUT}", "category Perception"}
    scores = {place: size(path) for place, path in files.items()}
    for arm in arms:
        row, left = row_of(rows, arm, against=baseline), LABELS[: 2 if arm == arms[0] else 3]
        assert (row["samples"], row["without a score"], row["tasks"]) == (len(left), 3 - len(left), 2)
        differences = [scores[arm, label] - scores[baseline, label] for label in left]
        by_task = np.mean([differences[0], np.mean(differences[1:])])
        assert row["difference"] == pytest.approx(by_task, abs=1e-9) and row["low"] <= by_task <= row["high"]
        assert row["frames read"] == 9  # as the evaluator says
    if name == "noise_sensitivity":
        row = row_of(rows, "mean over steps", against="mean over frames, same scale, elsewhere")
        assert row["samples"] == 2 and row["baseline"] == pytest.approx(
            np.mean([np.mean([scores[arm, label] for arm in ARMS[name][3:5]]) for label in LABELS[:2]])
        )
    alike = [
        files[arm, label].read_bytes() == files[baseline, label].read_bytes()
        for arm in arms
        for label in LABELS
    ]
    assert not all(alike[: len(LABELS)]) and not any(alike[-len(LABELS) :])
    frame = pd.read_csv(out / "vbvr.csv")
    assert len(frame) == len(rows) and list(out.glob("vbvr_difference*.png"))
    # The next command judges the video that got no score, and nothing else.
    before = judged(tmp_path)
    assert before == len(files)
    monkeypatch.delenv("STAND_IN_FAILS")
    assert run(name, monkeypatch, organism, **given) == 0 and judged(tmp_path) == before + 1
    summary = json.loads((out / "summary.json").read_text())
    rows = summary[f"scores, against {baseline}"]
    assert summary["videos without a score"] == {} and row_of(rows, arms[0], against=baseline)["samples"] == 3
    assert run(name, monkeypatch, organism, **given) == 0 and judged(tmp_path) == before + 1


def test_steps_are_compared_with_frames_that_stop_at_the_same_step(monkeypatch):
    """Every arm that a comparison names is one that is run, or its like judged elsewhere."""
    module = script("noise_sensitivity")
    options = module.Options(score="vbvr", noise="add")
    arms = set(module.noise_of(options).arms([0, 1, 2], after=4, stops=[0, 2]))
    coords = {"after_step": range(4), "frame": range(3), "budget": list(module.BUDGETS), "stop": [0, 2]}
    results = xr.Dataset(coords=coords).assign(video=xr.DataArray(0))
    said = {}
    names = ("options", "written", "baseline", "means", "contrasts", "curves")
    monkeypatch.setattr(
        module.benchmark_table, "conclude", lambda *given: said.update(zip(names, given, strict=True))
    )
    module.on_benchmark(results, options)
    of_frames = {arm for arm in arms if arm.startswith("frame")}
    known = arms | {arm + ", elsewhere" for arm in of_frames}
    averaged_arms = [arm for members in said["means"].values() for arm in members]
    assert set(averaged_arms) == known and len(averaged_arms) == len(known)
    assert all(arm in known | set(said["means"]) for pair in said["contrasts"] for arm in pair)
    assert ("after step 2", "mean over frames, at step 2, elsewhere") in said["contrasts"]
    assert ("mean over steps", "mean over frames, same energy") in said["contrasts"]
    assert len(said["contrasts"]) == 2 * (2 + 2 * 2)
    assert all(arm in arms for places in said["curves"].values() for arm in places)


def test_every_seed_is_judged_and_paired_with_its_own(bench, quick, tmp_path, monkeypatch, organism):
    out = tmp_path / "out"
    given = {"eval_root": bench, "score": "vbvr", "evaluator": quick, "out": out, "cfg_scale": 1.0}
    second = folder_of_arm("1 steps", 1)
    assert second == "1 steps, seed 2"
    monkeypatch.setenv("STAND_IN_FAILS", f"{second}/|{OUT}|00001")
    assert run("step_count", monkeypatch, organism, **given, counts=(1, 2), seeds=2) == 1
    rows = json.loads((out / "summary.json").read_text())["scores, against 2 steps"]
    row = row_of(rows, "1 steps")
    assert (row["samples"], row["without a score"]) == (3, 1)

    def score(arm, seed, label):
        return size(out / "videos" / folder_of_arm(arm, seed) / f"{label}.mp4")

    seeds = {LABELS[0]: (0, 1), LABELS[1]: (0, 1), LABELS[2]: (0,)}
    by_sample = {
        label: np.mean([score("1 steps", seed, label) - score("2 steps", seed, label) for seed in scored])
        for label, scored in seeds.items()
    }
    expected = np.mean([by_sample[LABELS[0]], np.mean([by_sample[label] for label in LABELS[1:]])])
    assert row["difference"] == pytest.approx(expected, abs=1e-9)
    assert judged(tmp_path) == 3 * (2 + 2 + 1)  # the floor has one video for all seeds


def test_videos_of_other_lengths_are_read_and_what_does_nothing_is_told_from_what_moves(
    bench, evaluator, tmp_path, monkeypatch, organism
):
    out = tmp_path / "out"
    given = {"eval_root": bench, "score": "vbvr", "evaluator": evaluator, "out": out, "cfg_scale": 1.0}
    assert run("frame_count", monkeypatch, organism, **given, counts=(5, 9), steps=1, samples=2) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["frames made, by frames asked for"] == {"5": [5], "9": [9]}
    rows = summary["scores, against 9 frames"]
    for arm, frames in (("5 frames", 5), ("9 frames", 9), (FLOOR, 5)):
        files = [out / "videos" / folder_of_arm(arm, 0) / f"{label}.mp4" for label in LABELS[:2]]
        row = row_of(rows, arm)
        assert row["score"] == pytest.approx(np.mean([motion(path)[1] for path in files]))
        assert row["frames read"] == frames
    assert row_of(rows, FLOOR)["score"] == 0 and row_of(rows, FLOOR)["difference"] < -1e-3


def test_a_study_of_which_nothing_gets_a_score_says_so(bench, evaluator, tmp_path, monkeypatch, organism):
    out = tmp_path / "out"
    monkeypatch.setenv("STAND_IN_FAILS", ".mp4")
    given = {"eval_root": bench, "score": "vbvr", "evaluator": evaluator, "out": out, "cfg_scale": 1.0}
    assert run("step_count", monkeypatch, organism, **given, counts=(1, 2)) == 1
    summary = json.loads((out / "summary.json").read_text())
    assert summary["measure"] == "unknown" and len(summary["videos without a score"]) == 3
    rows = summary["scores, against 2 steps"]
    assert all(row["samples"] == 0 and "difference" not in row for row in rows)
    assert not list(out.glob("vbvr*.png")) and (out / "vbvr.csv").exists()


@pytest.mark.filterwarnings("ignore:skipped")
def test_what_is_averaged_on_a_benchmark_has_a_video_a_movement_and_a_cost_for_every_arm(
    bench, quick, tmp_path, monkeypatch, organism
):
    out = tmp_path / "out"
    given = {"eval_root": bench, "split": OUT, "out": out, "steps": 2, "cfg_scale": 1.0, "seeds": 2}
    averages = {"what": ("x0", "latents"), "until": "none", "score": "vbvr", "evaluator": quick}
    assert run("what_to_average", monkeypatch, organism, **given, **averages) == 0
    arms = ["x0, steps 0", "latents, steps 0", "x0, steps 0, placebo", "latents, steps 0, placebo"]
    summary = json.loads((out / "summary.json").read_text())
    rows = {row["arm"] for row in summary["scores, against single run"] if row["group"] == "all"}
    assert rows == {"single run", *arms, "first frame held"}
    assert len(list((out / "videos").rglob("*.mp4"))) == 2 * len(rows)
    assert list(summary["movement right after"]) == arms
    assert all(moved > 1e-3 for moved in summary["movement right after"].values())
    costs = summary["cost in runs"]
    assert (costs[arms[0]], costs[arms[1]]) == (1.5, 1.0)


def test_videos_that_are_gone_or_of_another_command_are_missed(
    bench, evaluator, tmp_path, monkeypatch, organism
):
    out = tmp_path / "out"
    given = {"eval_root": bench, "score": "vbvr", "evaluator": evaluator, "out": out, "cfg_scale": 1.0}
    given |= {"steps": 2, "ks": (2,), "layers": "4-6", "samples": 2}
    assert run("seed_ensemble", monkeypatch, organism, **given) == 0
    rows = json.loads((out / "summary.json").read_text())["scores, against single run"]
    # Another command in the same folder is one of its own, and the first then says that its videos are gone.
    assert run("seed_ensemble", monkeypatch, organism, **given, at_steps="1") == 0
    with pytest.raises(dl.StoreError, match="another command has written"):
        run("seed_ensemble", monkeypatch, organism, **given)
    shutil.rmtree(out / "blocks")
    assert run("seed_ensemble", monkeypatch, organism, **given) == 0
    again = json.loads((out / "summary.json").read_text())["scores, against single run"]
    for row, before in zip(again, rows, strict=True):
        assert row.keys() == before.keys() and row["arm"] == before["arm"]
        for column in ("score", "baseline", "difference"):
            assert row[column] == pytest.approx(before[column], abs=2e-3)  # an encoder may write it otherwise
    next((out / "videos").rglob("*.mp4")).unlink()
    with pytest.raises(dl.StoreError, match="are gone"):
        run("seed_ensemble", monkeypatch, organism, **given)


@pytest.mark.parametrize("name", list(STUDIES))
def test_what_cannot_be_judged_is_refused_before_anything_is_computed(
    name, bench, evaluator, tmp_path, monkeypatch, organism
):
    out, how = tmp_path / "out", STUDIES[name][1]
    folder = {"eval_root": bench, "out": out, **how}
    with pytest.raises(dl.TaskError, match="--score vbvr goes with --eval-root"):
        run(name, monkeypatch, organism, score="vbvr", out=out, **how)
    if name in ("seed_ensemble", "frame_count"):
        with pytest.raises(dl.TaskError, match="add --score vbvr"):
            run(name, monkeypatch, organism, **folder)
    with pytest.raises(dl.TaskError, match="the official evaluator is not in"):
        run(name, monkeypatch, organism, **folder, score="vbvr", evaluator=tmp_path / "nothing")
    vbvr = {**folder, "score": "vbvr", "evaluator": evaluator}
    with pytest.raises(dl.TaskError, match="--text-only"):
        run(name, monkeypatch, organism, **vbvr, text_only=True)
    if name == "frame_count":
        with pytest.raises(dl.TaskError, match=r"--counts 1: some rules .* fewer than 5 frames"):
            run(name, monkeypatch, organism, **{**vbvr, "counts": (1, 9)})
    else:
        with pytest.raises(dl.TaskError, match="--num-frames 4: some rules"):
            run(name, monkeypatch, organism, **vbvr, num_frames=4)
    assert not (out / "blocks").exists() and not (out / "videos").exists()


# ---- the table


def scored(**arms):
    """Return scores of 2 splits x 8 tasks x 5 samples, by arm: [arm, seed, sample] of one seed."""
    labels = [f"{split}/T-{task}/{n:05d}" for split in (IN, OUT) for task in range(8) for n in range(5)]
    text = np.dtypes.StringDType()
    parts = {
        name: ("sample", np.array([x.split("/")[i] for x in labels], text))
        for i, name in enumerate(("split", "task"))
    }
    values = np.array(list(arms.values()))[:, None]
    data = {name: (("arm", "seed", "sample"), values + add) for name, add in (("score", 0), ("frames", 9))}
    category = ("sample", np.array(["a", ""] * 40, text))
    coords = {"arm": np.array(list(arms), text), "sample": np.array(labels, text), "category": category}
    return xr.Dataset(data, coords | parts)


def test_a_table_counts_tasks_and_pairs_what_both_arms_have():
    rng = np.random.default_rng(0)
    base = np.clip(0.5 + np.repeat(rng.normal(0, 0.1, 16), 5) + rng.normal(0, 0.1, 80), 0, 1)
    better = np.clip(base + 0.1, 0, 1)
    better[:3] = np.nan
    rows = table(scored(base=base, better=better, same=base.copy()), "base")
    row, same = row_of(rows, "better"), row_of(rows, "same")
    assert (row["samples"], row["without a score"], row["tasks"]) == (77, 3, 16)
    assert row["low"] > 0.05 and row["difference"] == pytest.approx(0.1, abs=0.02)
    assert same["difference"] == 0 and same["low"] < 0 < same["high"]
    assert row_of(rows, "base")["difference"] == 0 and "low" not in row_of(rows, "base")
    assert row_of(rows, "same", f"split {IN}")["tasks"] == 8
    assert row_of(rows, "same", "category a")["samples"] == 40
    assert "category " not in {row["group"] for row in rows}


def test_a_mean_of_arms_has_a_score_where_all_of_them_have_one():
    first, second, base = np.full(80, 0.2), np.full(80, 0.6), np.full(80, 0.3)
    second[7] = np.nan
    rows = table(
        averaged(scored(first=first, second=second, base=base), {"mean": ["first", "second"]}), "base"
    )
    row = row_of(rows, "mean")
    assert (row["samples"], row["without a score"]) == (79, 1)
    assert row["difference"] == pytest.approx(0.1) and row_of(rows, "first")["samples"] == 80
