"""Folders of VBVR-Pro-Bench, as its kit lays them out: read, judged with their metadata, or refused with file and key."""

import json
import shutil
import warnings

import numpy as np
import pytest
from PIL import Image

import dit_lens as dl
from dit_lens.errors import TaskError
from dit_lens.experiments.benchmark import refuse_unscored
from dit_lens.experiments.options import ScoredOptions
from dit_lens.plot import write_video
from dit_lens.tasks.vbvr import find_evaluator, vbvr
from stand_ins import evaluator_package

IN, OUT, TASK = "In-Domain_50", "Out-of-Domain_50", "O-36_grid_shift_data-generator"
LABELS = [f"{IN}/{TASK}/00000", f"{IN}/{TASK}/00001", f"{OUT}/{TASK}/00000"]
METADATA = {"parameters": {"grid_size": 4}, "semantic_ground_truth": {"path": [[0, 1]]}, "task_id": "x"}

READS_METADATA = """
import json

class Evaluator:
    def evaluate(self, info, task_specific_only=False):
        assert info["no_ssim_fallback"] and info["gt_path"].endswith(info["video_idx"])
        size = json.load(open(info["metafile_path"][0]))["parameters"]["grid_size"]
        return {"score": size / 10, "dimensions": {"task_specific": size / 10}, "details": {"video_frame_count": 9}}

TASK_EVALUATOR_MAP = {"O-36_grid_shift_data-generator": Evaluator}
get_evaluator = lambda task, device: Evaluator()
get_task_category = lambda task: "Transformation"
"""
READS_NONE = READS_METADATA.replace(
    'json.load(open(info["metafile_path"][0]))["parameters"]["grid_size"]', "1"
)


@pytest.fixture
def bench(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
    for label in LABELS:
        folder = tmp_path / "VBVR-Pro-Bench-Video" / label
        folder.mkdir(parents=True)
        for name in ("first_frame", "final_frame"):
            Image.fromarray(pixels).save(folder / f"{name}.png")
        write_video(np.stack([pixels] * 6), folder / "ground_truth.mp4")
        (folder / "prompt.txt").write_text("shift the grid\n")
        (folder / "metadata.json").write_text(json.dumps(METADATA))
    return tmp_path / "VBVR-Pro-Bench-Video"


def read(root):
    """Read a folder; return the benchmark, its samples, and the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        opened = vbvr(root)
        return opened, list(opened), [str(w.message) for w in caught]


def judge(bench, evaluator):
    return vbvr.score(
        bench, {label: bench / label / "ground_truth.mp4" for label in LABELS}, evaluator=evaluator
    )


def test_a_folder_is_read_as_one_of_vbvr_bench_and_the_other_keys_are_listed(bench):
    opened, samples, said = read(bench)
    assert [s.label for s in samples] == LABELS and said == []
    (note,) = [n for n in opened.summary().notes if "metadata.json" in n]
    assert "task_id" in note and "parameters" not in note


def test_the_evaluator_of_pro_judges_by_the_metadata_and_is_named(bench, tmp_path, monkeypatch):
    evaluator = evaluator_package(tmp_path, monkeypatch, READS_METADATA, "vbvr_pro_bench")
    evaluator_package(tmp_path, monkeypatch, READS_NONE, "vbvr_bench")  # a clone with both: Pro's
    (bench / LABELS[1] / "metadata.json").write_text(json.dumps({"parameters": {"grid_size": 7}}))
    data = judge(bench, evaluator)
    np.testing.assert_allclose(data.score, [0.4, 0.7, 0.4])
    assert data.attrs["benchmark"] == "VBVR-Pro-Bench" and data.attrs["measure"] == "task-specific rules"
    assert data.attrs["evaluator"].endswith("vbvr_pro_bench") and data.category.values[0] == "Transformation"
    other = judge(bench, evaluator / "vbvr_bench")
    assert other.attrs["benchmark"] == "VBVR-Bench" and (other.score == 0.1).all()


@pytest.mark.parametrize(
    "content, said",
    [
        (None, r"metadata\.json: missing file"),
        ("{", "metadata is not JSON"),
        ("[1]", "metadata is no object"),
        (
            {"task_id": "x"},
            r"metadata has neither 'parameters' nor 'semantic_ground_truth' \(it has task_id\)",
        ),
        ({"parameters": {}}, "metadata has neither 'parameters'"),
        ({"parameters": [4], "semantic_ground_truth": {"a": 1}}, "metadata has no object under 'parameters'"),
    ],
)
def test_a_sample_without_its_metadata_gets_no_score_by_pro_and_the_error_names_file_and_key(
    content, said, bench, tmp_path, monkeypatch
):
    evaluator = evaluator_package(tmp_path, monkeypatch, READS_METADATA, "vbvr_pro_bench")
    path = bench / LABELS[1] / "metadata.json"
    path.unlink() if content is None else path.write_text(
        content if isinstance(content, str) else json.dumps(content)
    )
    data = judge(bench, evaluator)
    assert data.score.isnull().values.tolist() == [False, True, False]
    with pytest.raises(TaskError, match=said):
        raise TaskError(str(data.error.values[1]))
    assert str(path) in str(data.error.values[1])


def test_samples_that_lack_what_others_have_are_named(bench):
    (bench / LABELS[1] / "metadata.json").unlink()
    opened, samples, said = read(bench)
    assert len(samples) == 3 and len(said) == 1
    assert "1 of 3 samples have no metadata.json" in said[0] and LABELS[1] in said[0]
    assert any(LABELS[1] in note for note in opened.summary().notes)


def test_evaluator_and_folder_of_two_benchmarks_are_refused_or_said(bench, tmp_path, monkeypatch):
    evaluator = evaluator_package(tmp_path, monkeypatch, READS_METADATA, "vbvr_pro_bench")
    plain = evaluator_package(tmp_path, monkeypatch, READS_NONE, "vbvr_bench") / "vbvr_bench"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        refuse_unscored(ScoredOptions(score="vbvr", eval_root=bench, evaluator=evaluator))
    with pytest.warns(UserWarning, match="the scores are by the rules of VBVR-Bench"):
        refuse_unscored(ScoredOptions(score="vbvr", eval_root=bench, evaluator=plain))
    for path in bench.rglob("metadata.json"):
        path.unlink()
    with pytest.raises(TaskError, match=r"no sample of .* has the metadata\.json"):
        refuse_unscored(ScoredOptions(score="vbvr", eval_root=bench, evaluator=evaluator))
    refuse_unscored(ScoredOptions(score="vbvr", eval_root=bench, evaluator=plain))


def test_two_installed_evaluators_of_two_benchmarks_must_be_told_apart(tmp_path, monkeypatch):
    clone = evaluator_package(tmp_path, monkeypatch, READS_METADATA, "vbvr_pro_bench")
    shutil.move(clone / "vbvr_pro_bench", tmp_path / "lib" / "vbvr_pro_bench")
    assert find_evaluator().benchmark == "VBVR-Pro-Bench"
    evaluator_package(tmp_path, monkeypatch, READS_NONE, "vbvr_bench")
    shutil.move(clone / "vbvr_bench", tmp_path / "lib" / "vbvr_bench")
    with pytest.raises(TaskError, match="whose scores are no one measure"):
        find_evaluator()
    found = find_evaluator(evaluator=tmp_path / "lib" / "vbvr_bench")
    assert found.benchmark == "VBVR-Bench" and len(found.code) == 64


def test_the_image_setting_is_refused_and_passed_by_in_hints(bench, tmp_path):
    images = tmp_path / "VBVR-Pro-Bench-Image"
    shutil.copytree(bench, images)
    for path in images.rglob("ground_truth.mp4"):
        path.rename(path.with_name("frame_1.png"))
    with pytest.raises(dl.TaskError, match=r"image setting of VBVR-Pro-Bench.*VBVR-Pro-Bench-Video"):
        vbvr(images, num_frames=9)
    with pytest.raises(dl.TaskError, match=r"one folder further down: vbvr\('.*VBVR-Pro-Bench-Video'\)"):
        vbvr(tmp_path)
