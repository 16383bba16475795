"""The evaluator's JSON in its forms, scores joined to results, and the protocol by which it is run.

The evaluator itself is not installed here: what runs below is a stand-in with the interface of its package, so
these tests are of the protocol (time limit, crash, garbage), not of any score.
"""

import json
import math
import os
import sys
import time
import types

import numpy as np
import pytest
import xarray as xr

from dit_lens.errors import TaskError
from dit_lens.tasks.vbvr import child, vbvr
from stand_ins import evaluator_package

IN, OUT = "In-Domain_50", "Out-of-Domain_50"
SORT, MAZE = "G-3_stable_sort_data-generator", "O-39_maze_data-generator"
LABELS = [f"{IN}/{SORT}/00000", f"{IN}/{SORT}/00001", f"{OUT}/{MAZE}/00004"]


def sample(task=SORT, name="00000.mp4", folder=IN, score=0.5, error=None, **more):
    """An entry as `run_evaluation.py` writes it."""
    split = {IN: "In_Domain", OUT: "Out_of_Domain"}[folder]
    dimensions = {} if error else {"task_specific": score}
    out = {
        "video_path": f"videos/{folder}/{task}/{name}",
        "video_file": name,
        "task_name": task,
        "split": split,
    }
    return (
        out
        | {
            "category": "Perception",
            "folder": folder,
            "score": score,
            "dimensions": dimensions,
            "error": error,
        }
        | more
    )


def detail(task=SORT, index="00000", folder=IN, score=0.5, **more):
    """An entry as `VBVRBench.evaluate` writes it."""
    split = {IN: "In_Domain", OUT: "Out_of_Domain"}[folder]
    weighted = {"final_frame_accuracy": score, "task_specific": score}
    out = {"score": score, "dimensions": weighted, "details": {"video_frame_count": 9}, "task_name": task}
    return out | {"video_path": f"v/{folder}/{task}/{index}.mp4", "split": split, "video_idx": index} | more


SAMPLES = {
    "model_name": "m",
    "summary": {},
    "samples": [
        sample(),
        sample(name="00001.mp4", score=0.0),
        sample(MAZE, "00004.mp4", OUT, 0.0, "Cannot open video"),
    ],
}
DETAILED = {
    "overall": {},
    "by_task": {},
    "by_category": {},
    "detailed": [
        detail(),
        detail(index="00001", score=0.0),
        detail(MAZE, "00004", OUT, 0.0, error="Cannot open video", dimensions={}),
    ],
}
RESULTS = {
    "summary": {},
    "results": [
        {
            "task_name": SORT,
            "file_split": IN,
            "video_idx": "00000",
            "split": "In_Domain",
            "score": 0.5,
            "status": "ok",
        },
        {
            "task_name": SORT,
            "file_split": IN,
            "video_idx": "00001",
            "split": "In_Domain",
            "score": 0.0,
            "status": "ok",
        },
        {
            "task_name": MAZE,
            "file_split": OUT,
            "video_idx": "00004",
            "score": 0.0,
            "status": "Cannot open video",
        },
    ],
}


@pytest.fixture
def read(tmp_path):
    def read(*contents):
        paths = [tmp_path / f"{i}.json" for i in range(len(contents))]
        for path, content in zip(paths, contents, strict=True):
            path.write_text(content if isinstance(content, str) else json.dumps(content))
        return vbvr.read_scores(paths if len(paths) != 1 else paths[0])

    return read


# Reading


@pytest.mark.parametrize(
    "content, schema, measure",
    [
        (SAMPLES, "samples + summary", "task-specific rules"),
        (DETAILED, "detailed + by_task", "weighted over dimensions"),
        (RESULTS, "results + summary", "unknown"),
    ],
)
def test_each_form_gives_the_same_scores_with_an_error_apart_from_a_true_0(read, content, schema, measure):
    data = read(content)
    assert data["sample"].values.tolist() == LABELS
    assert data["split"].values.tolist() == [IN, IN, OUT]
    assert data["task"].values.tolist() == [SORT, SORT, MAZE]
    assert data["id"].values.tolist() == ["00000", "00001", "00004"]
    np.testing.assert_array_equal(data["score"], [0.5, 0.0, math.nan])
    assert data["error"].values.tolist() == ["", "", "Cannot open video"]
    assert (data.attrs["schema"], data.attrs["measure"]) == (schema, measure)
    assert data["dimensions"].dims == ("sample", "dimension")
    assert float(data["score"].sel(sample=LABELS[1])) == 0


def test_dimensions_are_a_table(read):
    data = read(DETAILED)
    assert data["dimension"].values.tolist() == ["final_frame_accuracy", "task_specific"]
    assert float(data["dimensions"].sel(sample=LABELS[0], dimension="task_specific")) == 0.5
    assert data["dimensions"].sel(sample=LABELS[2]).isnull().all()
    assert read({**SAMPLES, "samples": []}).sizes == {"sample": 0, "dimension": 0}


def test_a_dataset_of_scores_is_written_and_read(read, tmp_path):
    data = read(SAMPLES)
    data.to_zarr(tmp_path / "scores.zarr", consolidated=False)
    back = xr.open_zarr(tmp_path / "scores.zarr", consolidated=False)
    np.testing.assert_array_equal(back["score"], data["score"])
    assert back["sample"].values.tolist() == LABELS


@pytest.mark.parametrize(
    "entry, label",
    [
        (sample(video_path=None), LABELS[0]),
        ({"task_name": SORT, "split": "In_Domain", "video_idx": 1, "score": 1}, LABELS[1]),
        (
            {"task_name": MAZE, "split": "In_Domain", "score": 1, "video_path": f"/a/{OUT}/{MAZE}/00004.mp4"},
            LABELS[2],
        ),
        ({"task_name": SORT, "split": "Mine", "video_idx": "a", "score": 1}, f"Mine/{SORT}/a"),
    ],
)
def test_split_and_sample_are_taken_from_where_they_stand(read, entry, label):
    """The folder of a video says which split it is of; the evaluator's `split` is guessed from the task's name."""
    assert read({"samples": [entry]})["sample"].values.tolist() == [label]


@pytest.mark.parametrize(
    "more, error",
    [
        ({"details": {"video_frame_count": 0}}, "the evaluator read no frames of the video"),
        (
            {"details": {"task_specific_details": {"error": "no_marking_found"}}},
            "",
        ),  # a verdict, not a failure
        ({"score": None}, "the score is not a number"),
        ({"score": math.nan}, "the score is not a number"),
        ({"score": 0.0, "error": "no prediction", "video_path": None}, "no prediction"),
        ({"status": "missing_video"}, "missing_video"),
        ({"error": ""}, ""),
    ],
)
def test_what_counts_as_an_error(read, more, error):
    data = read({"samples": [sample(**more)]})
    assert data["error"].values.tolist() == [error]
    assert bool(data["score"].isnull()[0]) == bool(error)


@pytest.mark.parametrize(
    "contents, said",
    [
        ([{**SAMPLES, **DETAILED}], "mixes forms, it has samples and detailed"),
        ([SAMPLES, {"detailed": []}], "several forms, whose scores may measure different things"),
        (
            [SAMPLES, {"samples": [sample()]}],
            f"1 samples are scored more than once, such as {LABELS[0]}",
        ),
        ([{"m": {"overall": 0.5}}], "form that is not known (it has: m); expected samples + summary"),
        ([[1]], "form that is not known (it has: list)"),
        (['{"samples": ['], "is not JSON"),
        ([{"samples": [1]}], "holds something other than objects"),
        ([{"samples": [{"score": 1}]}], "samples[0] has no task_name"),
        ([{"samples": [{"task_name": SORT, "score": 1, "video_idx": 0}]}], "has no split"),
        (
            [{"samples": [{"task_name": SORT, "score": 1, "split": IN, "id": 7}]}],
            "which sample it is cannot be told",
        ),
        (
            [{"samples": [sample(score=1.5)]}],
            f"samples[0] ({SORT}) has the score 1.5; a score is a number in [0, 1]",
        ),
        ([{"samples": [sample(score="0.5")]}], "has the score '0.5'"),
        ([{"samples": [sample(score=True)]}], "has the score True"),
        ([], "no file given"),
    ],
)
def test_what_cannot_be_read_is_refused(read, contents, said):
    with pytest.raises(TaskError) as error:
        read(*contents)
    assert said in str(error.value)


def test_files_of_one_form_are_put_together(read, tmp_path):
    data = read({"samples": SAMPLES["samples"][:2]}, {"samples": SAMPLES["samples"][2:]})
    assert data["sample"].values.tolist() == LABELS and len(data.attrs["source"]) == 2
    with pytest.raises(TaskError, match="there is no file"):
        vbvr.read_scores(tmp_path / "none.json")


# Joining


def results(labels, dims=("sample", "step")):
    values = np.arange(2 * len(labels), dtype=float).reshape(-1, 2)
    names = np.array(labels, np.dtypes.StringDType())
    return xr.Dataset({"energy": (dims, values)}, {"sample": names, "step": [0, 5]})


def test_scores_stand_beside_results_whatever_their_order(read):
    joined = vbvr.join(results(LABELS[::-1]), read(SAMPLES))
    assert joined["vbvr_score"].dims == ("sample",) and joined["energy"].shape == (3, 2)
    np.testing.assert_array_equal(joined["vbvr_score"], [math.nan, 0.0, 0.5])
    assert joined["vbvr_error"].values.tolist() == ["Cannot open video", "", ""]
    assert joined["vbvr_category"].values.tolist() == ["Perception"] * 3
    assert joined.attrs["without_score"] == joined.attrs["without_result"] == []
    assert joined.attrs["vbvr_measure"] == "task-specific rules"


def test_what_does_not_match_is_reported(read):
    more = f"{OUT}/{MAZE}/00000"
    said = rf"1 results have no score \(such as {more}\); 2 scores have no result \(such as {LABELS[1]}\)"
    with pytest.warns(UserWarning, match=said):
        joined = vbvr.join(results([LABELS[0], more]), read(SAMPLES))
    assert joined["vbvr_error"].values.tolist() == ["", "no score"]
    assert joined.attrs["without_score"] == [more] and joined.attrs["without_result"] == LABELS[1:]
    with pytest.raises(TaskError, match=said):
        vbvr.join(results([LABELS[0], more]), read(SAMPLES), strict=True)


def test_where_nothing_matches_both_kinds_of_label_are_shown(read):
    with pytest.raises(
        TaskError, match=r"no sample matches. Results are labelled such as \['maze/7'\], scores"
    ):
        vbvr.join(results(["maze/7"]), read(SAMPLES))
    with pytest.raises(TaskError, match="no coordinate `sample`"):
        vbvr.join(xr.Dataset(coords={"step": [1]}), read(SAMPLES))


def test_runs_of_a_store_are_listed_with_their_scores(read, tmp_path):
    import dit_lens as dl
    from dit_lens.store import RunWriter

    for label, seed in ((LABELS[0], 0), (LABELS[0], 1), (LABELS[1], 0)):
        task, _, name = label.rpartition("/")
        manifest = {"identity": {"sample": {"task": task, "id": name}, "seed": seed}}
        coords = {"step": np.arange(1)}
        with RunWriter(tmp_path / "runs", f"run-{name}-{seed}", manifest, coords, durable=False) as writer:
            writer.commit_step(0, {"sigma": 1.0})
    with pytest.warns(UserWarning, match="1 scores have no result"):
        table = vbvr.join(dl.open_runs(tmp_path / "runs"), read(SAMPLES))
    assert table["run"].values.tolist() == ["run-00000-0", "run-00000-1", "run-00001-0"]
    assert table["seed"].values.tolist() == [0, 1, 0]
    np.testing.assert_array_equal(table["vbvr_score"], [0.5, 0.5, 0.0])
    with pytest.raises(TaskError, match="holds no runs"):
        vbvr.join(xr.DataTree(), read(SAMPLES))


# Running the evaluator: a stand-in

EVALUATOR = """
import json, os, sys, time
print("evaluators print to stdout")

class Evaluator:
    def evaluate(self, info, task_specific_only=False):
        assert task_specific_only and os.path.isfile(info["gt_video_path"]) and info["prompt"] == "sort"
        what = open(info["video_path"]).read()
        if what == "slow":
            time.sleep(30)
        if what == "crash":
            print("segmentation fault", file=sys.stderr, flush=True)
            os._exit(11)
        if what == "garbage":
            open(sys.argv[1], "w").write("not JSON")
            os._exit(0)
        if what == "silence":
            os._exit(0)
        if what == "list":
            json.dump([1], open(sys.argv[1], "w"))
            os._exit(0)
        if what == "raise":
            raise ValueError("no frames")
        if what == "error":
            return {"score": 0.0, "error": "Cannot open video", "dimensions": {}}
        frames = 0 if what == "unseen" else 9
        score, details = float(what) if frames else 0.5, {"video_frame_count": frames}
        return {"score": score, "dimensions": {"task_specific": score}, "details": details}

TASK_EVALUATOR_MAP = {"G-3_stable_sort_data-generator": Evaluator}

def get_evaluator(task, device):
    return TASK_EVALUATOR_MAP[task]()

def get_task_category(task):
    return "Perception"
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A folder with a package of the evaluator's interface, and an OpenCV that has a version and no more."""
    return evaluator_package(tmp_path, monkeypatch, EVALUATOR)


@pytest.fixture
def bench(tmp_path):
    """Ground truth that is there, and of which the stand-in reads the prompt only."""
    for label in [*(f"{IN}/{SORT}/{i:05d}" for i in range(11)), f"{OUT}/{MAZE}/00000"]:
        folder = tmp_path / "bench" / label
        folder.mkdir(parents=True)
        for name in ("prompt.txt", "first_frame.png", "final_frame.png", "ground_truth.mp4"):
            (folder / name).write_text("sort")
    return tmp_path / "bench"


@pytest.fixture
def videos(tmp_path):
    def videos(*contents, task=SORT, split=IN):
        folder = tmp_path / "videos" / split / task
        folder.mkdir(parents=True)
        for i, content in enumerate(contents):
            (folder / f"{i:05d}.mp4").write_text(content)
        return tmp_path / "videos"

    return videos


def test_each_video_is_scored_and_no_failure_stops_the_others(stand_in, bench, videos):
    given = videos("0.25", "crash", "garbage", "silence", "list", "raise", "error", "unseen", "2", "", "0")
    data = vbvr.score(bench, given, evaluator=stand_in)
    assert data["sample"].values.tolist() == [f"{IN}/{SORT}/{i:05d}" for i in range(11)]
    np.testing.assert_array_equal(data["score"], [0.25, *[math.nan] * 9, 0.0])
    said = data["error"].values.tolist()
    for error, part in zip(
        said[1:10],
        (
            "exit code 11: segmentation fault",
            "wrote no answer that can be read",
            "wrote no answer that can be read",
            "answered '[1]', not an object",
            "exit code 1: ValueError: no frames",
            "Cannot open video",
            "the evaluator read no frames of the video",
            "has the score 2.0; a score is a number in [0, 1]",
            "empty file",
        ),
        strict=True,
    ):
        assert part in error
    assert said[0] == said[10] == "" and data["category"].values[0] == "Perception"
    assert data.attrs["opencv"] == "4.14.0" and data.attrs["evaluator"] == str(stand_in / "vbvr_bench")
    assert data.attrs["measure"] == "task-specific rules"


def test_a_video_that_takes_too_long_is_given_up(stand_in, bench, videos):
    start = time.perf_counter()
    data = vbvr.score(bench, videos("slow", "1"), evaluator=stand_in / "vbvr_bench", time_limit=1.5)
    assert time.perf_counter() - start < 15
    assert data["error"].values.tolist() == ["no answer from the evaluator within 1.5 s", ""]
    np.testing.assert_array_equal(data["score"], [math.nan, 1.0])


def test_videos_by_label_come_from_anywhere(stand_in, bench, videos, tmp_path):
    one = videos("0.5") / IN / SORT / "00000.mp4"
    given = {f"{IN}/{SORT}/{i}": one for i in ("00010", "00002")} | {
        f"{IN}/{SORT}/00003": tmp_path / "none.mp4"
    }
    given |= {f"{OUT}/{MAZE}/00000": one, f"{IN}/{SORT}/00099": one}
    data = vbvr.score(bench, given, evaluator=stand_in)
    assert data["id"].values.tolist() == ["00002", "00003", "00010", "00099", "00000"]
    np.testing.assert_array_equal(data["score"], [0.5, math.nan, 0.5, math.nan, math.nan])
    errors = data["error"].values
    assert "none.mp4: missing file" in errors[1] and "prompt.txt: missing file" in errors[3]
    assert errors[4] == f"the evaluator knows no task {MAZE}"


def test_scores_by_step_are_put_together(stand_in, bench, videos):
    label, folder = f"{IN}/{SORT}/00000", videos("0.25", "0.75") / IN / SORT
    steps = [vbvr.score(bench, {label: folder / f"0000{i}.mp4"}, evaluator=stand_in) for i in range(2)]
    assert xr.concat(steps, "step")["score"].sel(sample=label).values.tolist() == [0.25, 0.75]


def test_without_an_evaluator_the_message_says_how_to_get_one(bench, videos, stand_in, tmp_path):
    given = videos("1")
    for asked, said in (
        (
            {},
            f"not in {sys.executable} (lmms_eval, vbvr_bench, vbvr_pro_bench). Install it with `pip install lmms-eval",
        ),
        ({"evaluator": tmp_path}, f"not in {tmp_path}. Install it with"),
        ({"evaluator": stand_in, "python": tmp_path / "python"}, "cannot be asked for the evaluator"),
    ):
        with pytest.raises(TaskError) as error:
            vbvr.score(bench, given, **asked)
        assert said in str(error.value)


@pytest.mark.parametrize(
    "cv2, said",
    [
        ("__version__ = '5.0.0'", "has OpenCV 5.0.0, with which some tasks score 0 in silence. Run"),
        ("raise ImportError('libGL.so.1')", r"has no OpenCV, which the evaluator needs \(libGL.so.1\)"),
    ],
)
def test_an_opencv_with_which_scores_go_wrong_is_refused(stand_in, bench, videos, tmp_path, cv2, said):
    (tmp_path / "lib" / "cv2.py").write_text(cv2)
    with pytest.raises(TaskError, match=said):
        vbvr.score(bench, videos("1"), evaluator=stand_in)


@pytest.mark.parametrize("given", [{}, "empty"])
def test_no_videos_is_an_error(bench, tmp_path, given):
    with pytest.raises(TaskError, match="no videos, none"):
        vbvr.score(bench, tmp_path / given if isinstance(given, str) else given)
    with pytest.raises(TaskError, match="'maze/7' is not split/task/id"):
        vbvr.score(bench, {"maze/7": "a.mp4"})


def test_the_evaluator_is_found_in_lmms_eval_without_importing_it(tmp_path, monkeypatch):
    package = tmp_path / "lmms_eval" / "tasks" / "vbvr" / "vbvr_bench" / "evaluators"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (tmp_path / "lmms_eval" / "__init__.py").write_text("raise ImportError('heavy')")
    monkeypatch.syspath_prepend(tmp_path)
    assert child.find(None) == [os.fspath(package.parent)]
    assert child.find(tmp_path / "nothing") == []


def test_the_benchmark_needs_nothing_heavy():
    code = (
        "import sys; before = set(sys.modules); import dit_lens.tasks.vbvr; "
        "print([m for m in ('torch', 'av', 'xarray', 'matplotlib', 'cv2') if m in sys.modules])"
    )
    import subprocess

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_belongs_to_the_benchmark_is_found_on_it():
    import dit_lens.tasks.vbvr as package

    module = package if isinstance(package, types.ModuleType) else sys.modules["dit_lens.tasks.vbvr"]
    assert vbvr.score is module.score and vbvr.read_scores is module.read_scores and vbvr.join is module.join
    assert all(f.__doc__ for f in (vbvr, vbvr.score, vbvr.read_scores, vbvr.join))
