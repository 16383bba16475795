"""A benchmark folder as people have it: what can be read is read, and what is passed over is said."""

import json
import shutil
import warnings

import numpy as np
import pytest
import xarray as xr
from PIL import Image

import dit_lens as dl
from dit_lens.experiments.options import PictureOptions
from dit_lens.experiments.samples import draw
from dit_lens.plot import write_video
from dit_lens.tasks.vbvr import read_scores, vbvr
from dit_lens.tasks.vbvr.evaluator import _truth

IN, OUT = "In-Domain_50", "Out-of-Domain_50"
TASK = "G-3_stable_sort_data-generator"
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.fixture(scope="session")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound")
    Image.fromarray(PIXELS).save(folder / "first_frame.png")
    Image.fromarray(PIXELS).save(folder / "final_frame.png")
    write_video(np.stack([PIXELS] * 6), folder / "ground_truth.mp4")
    (folder / "prompt.txt").write_text("sort the blocks\n")
    return folder


@pytest.fixture
def make(sound, tmp_path):
    def make(*labels):
        for label in labels:
            shutil.copytree(sound, tmp_path / "bench" / label)
        return tmp_path / "bench"

    return make


def opened(root, **options):
    """Open a benchmark and read it; return it, its samples and the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        bench = vbvr(root, **options)
        samples = list(bench)
    return bench, samples, [str(w.message) for w in caught]


def test_a_final_frame_is_not_shown_to_a_model_and_may_be_missing(make):
    root = make(f"{IN}/{TASK}/00000")
    (root / IN / TASK / "00000" / "final_frame.png").unlink()
    _, (sample,), said = opened(root)
    assert np.array_equal(np.asarray(sample.image), PIXELS) and sample.num_frames == 6 and said == []
    with pytest.raises(dl.TaskError, match=r"final_frame\.png: missing file"):  # the evaluator does need it
        _truth(root / IN / TASK / "00000")


# ---- 7 beside 00007


def scores(tmp_path, **by_id):
    entries = [
        {"task_name": TASK, "folder": IN, "video_file": f"{name}.mp4", "score": value}
        for name, value in by_id.items()
    ]
    (tmp_path / "scores.json").write_text(json.dumps({"samples": entries, "summary": {}}))
    return read_scores(tmp_path / "scores.json")


def test_two_folders_of_one_number_are_two_samples_with_a_score_each(make, tmp_path):
    _, samples, said = opened(make(f"{IN}/{TASK}/7", f"{IN}/{TASK}/00007"))
    labels = [s.label for s in samples]
    assert sorted(s.id for s in samples) == ["00007", "7"] and said == []
    data = scores(tmp_path, **{"7": 0.25, "00007": 0.75})
    assert data["id"].values.tolist() == ["7", "00007"]
    joined = vbvr.join(xr.Dataset(coords={"sample": labels}), data)
    found = dict(zip(joined["sample"].values.tolist(), joined["vbvr_score"].values.tolist(), strict=True))
    assert found == {f"{IN}/{TASK}/7": 0.25, f"{IN}/{TASK}/00007": 0.75}


def test_a_score_never_lands_on_the_other_sample(tmp_path):
    results = xr.Dataset(coords={"sample": [f"{IN}/{TASK}/7", f"{IN}/{TASK}/00007"]})
    with pytest.warns(UserWarning, match="1 results have no score"):
        joined = vbvr.join(results, scores(tmp_path, **{"00007": 0.75}))
    assert np.isnan(joined["vbvr_score"].values[0]) and joined["vbvr_score"].values[1] == 0.75


@pytest.mark.parametrize("in_results, in_scores", [("7", "00007"), ("00007", "7"), ("00007", "00007")])
def test_one_sample_spelt_in_two_ways_is_one_sample(tmp_path, in_results, in_scores):
    results = xr.Dataset(coords={"sample": [f"{IN}/{TASK}/{in_results}"]})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        joined = vbvr.join(results, scores(tmp_path, **{in_scores: 0.5}))
    assert joined["vbvr_score"].values.tolist() == [0.5]


# ---- passed over


@pytest.mark.parametrize(
    "name", ["In-Domain50", "in-domain_50", "In_Domain_50", "Out-of-Domian_50", "Out-Of-Domain"]
)
def test_a_split_that_is_misspelt_gets_a_hint(make, name):
    bench, samples, said = opened(make(f"{IN}/{TASK}/00000", f"{name}/{TASK}/00001"))
    assert len(samples) == 2
    (hint,) = [s for s in said if name in s]
    assert "taken for a split of its own" in hint and "Did you mean" in hint
    assert any(name in note for note in bench.summary().notes)


def test_splits_of_ones_own_get_none(make):
    assert opened(make(f"{IN}/{TASK}/00000", f"hard/{TASK}/00001"))[2] == []


def test_what_looks_like_samples_and_is_passed_over_is_said(make):
    root = make(
        f"{IN}/{TASK}/00000", "questions/O-1_x_data-generator/x_task/x_00000000", "O-9_y_data-generator/00000"
    )
    (root / IN / TASK / "00003").mkdir()
    (root / IN / TASK / "00004").mkdir()
    (root / IN / "O-5_empty_data-generator").mkdir()
    (root / OUT).mkdir()
    (root / "notes").mkdir()
    bench, samples, said = opened(root)
    assert [s.label for s in samples] == [f"{IN}/{TASK}/00000"]
    words = (
        rf"{TASK} has 2 empty folders, which are passed over: 00003, 00004",
        "O-5_empty_data-generator holds no samples",
        f"{OUT} holds no samples",
        "x_task is passed over: it is in the data generators' raw layout",
        "O-9_y_data-generator is passed over: it looks like a task",
    )
    assert all(any(w in s for s in said) for w in words) and len(said) == len(words)
    assert all(any(w in note for note in bench.summary().notes) for w in words)


def test_a_sound_benchmark_says_nothing(make):
    _, samples, said = opened(make(f"{IN}/{TASK}/00000", f"{OUT}/{TASK}/00000"))
    assert len(samples) == 2 and said == []


# ---- metadata, ground truth


@pytest.mark.parametrize(
    "text, words", [("{", "metadata is not JSON"), ("", "empty file"), (POINTER.decode(), "git-LFS")]
)
def test_metadata_that_is_no_json_is_reported_and_the_sample_read(make, text, words):
    root = make(f"{IN}/{TASK}/00000", f"{IN}/{TASK}/00001")
    (root / IN / TASK / "00000" / "metadata.json").write_text("{}")
    (root / IN / TASK / "00001" / "metadata.json").write_text(text)
    bench, samples, said = opened(root)
    assert len(samples) == 2
    (warned,) = said
    assert warned.startswith(f"{IN}/{TASK}/00001: ") and words in warned
    assert any(words in note for note in bench.summary().notes)
    with pytest.raises(dl.TaskError, match=words):
        _truth(root / IN / TASK / "00001")
    (root / IN / TASK / "00001" / "metadata.json").write_text("{}")
    bench, _, said = opened(root)
    assert said == [] and _truth(root / IN / TASK / "00001")["prompt"] == "sort the blocks"


def gone(path):
    path.unlink()


def pointer(path):
    path.write_bytes(POINTER)


@pytest.mark.parametrize("spoil", [gone, pointer])
def test_without_a_ground_truth_the_number_of_frames_can_be_given(make, spoil):
    root = make(f"{IN}/{TASK}/00000", f"{IN}/{TASK}/00001")
    spoil(root / IN / TASK / "00001" / "ground_truth.mp4")
    assert [s.id for s in opened(root)[1]] == ["00000"]
    _, samples, said = opened(root, num_frames=9, frames_multiple=8)
    assert [(s.num_frames, s.frames_in_truth) for s in samples] == [(9, 6), (9, None)] and said == []
    options = PictureOptions(eval_root=root, num_frames=13)
    assert [s.num_frames for s in draw(options)] == [13, 13]
    with pytest.raises(dl.DitLensError, match=r"ground_truth\.mp4"):
        samples[1].read_truth()


def test_a_ground_truth_that_is_broken_is_not_taken_for_missing(make):
    root = make(f"{IN}/{TASK}/00000")
    (root / IN / TASK / "00000" / "ground_truth.mp4").write_bytes(b"<html>")
    bench, samples, _ = opened(root, num_frames=9)
    assert samples == [] and bench.summary().kinds == {"undecodable video": 1}


@pytest.mark.parametrize("num_frames", [0, -4])
def test_the_number_of_frames_is_a_number(make, num_frames):
    with pytest.raises(dl.TaskError, match=f"num_frames={num_frames}\\): give at least 1"):
        vbvr(make(f"{IN}/{TASK}/00000"), num_frames=num_frames)


# ---- pictures


def test_a_first_frame_of_any_kind_is_read_as_everywhere_else(make):
    root = make(f"{IN}/{TASK}/00000", f"{IN}/{TASK}/00001")
    turned = Image.fromarray(PIXELS).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(root / IN / TASK / "00000" / "first_frame.png", exif=exif)
    values = np.array([[0, 0x8000, 65535]], np.uint16)
    Image.fromarray(values).save(root / IN / TASK / "00001" / "first_frame.png")
    first, second = opened(root)[1]
    assert np.array_equal(np.asarray(first.image), PIXELS) and first.size == (40, 56)
    assert np.asarray(second.image)[0, :, 0].tolist() == [0, 128, 255]
