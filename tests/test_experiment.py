"""What the scripts share: a sample is made once, one that fails stops no other, rates come with intervals."""

import json

import pytest
from PIL import Image

import dit_lens as dl
from dit_lens.experiments import harness as experiment
from dit_lens.experiments.harness import Options


def counting(folders, broken=()):
    def analyse(sample, folder):
        folders.append(folder)
        if sample.id in broken:
            raise broken[sample.id]
        return {"solved": True}

    return analyse


def test_a_sample_that_is_done_is_not_made_again_unless_something_changed(tmp_path, lens, tiny_pipe):
    folders, options = [], Options(task="circle", max_samples=2, out=tmp_path)
    first, left_out = experiment.each_sample(options, "script", lens, counting(folders))
    assert (len(folders), left_out, [n["task"] for n in first]) == (2, {}, ["circle"] * 2)
    options.max_samples = 3
    again, _ = experiment.each_sample(options, "script", lens, counting(folders))
    assert len(folders) == 3 and again[:2] == first
    options.seed = 5
    experiment.each_sample(options, "script", lens, counting(folders))
    assert len(folders) == 6
    other = dl.Lens(tiny_pipe(seed=1))  # the same settings on another model
    experiment.each_sample(options, "script", other, counting(folders))
    assert len(folders) == 9


@pytest.mark.parametrize("error", [dl.DitLensError("no such layer"), ValueError("a bug")])
def test_a_sample_that_fails_is_named_and_stops_no_other(tmp_path, capsys, error, lens):
    folders, options = [], Options(task="circle", max_samples=3, out=tmp_path)
    second = experiment.samples(options)[1].id
    found, left_out = experiment.each_sample(options, "script", lens, counting(folders, {second: error}))
    assert (len(folders), len(found), list(left_out)) == (3, 2, [f"circle/{second}"])
    assert str(error) in left_out[f"circle/{second}"]
    said = capsys.readouterr().err
    assert f"circle/{second} failed" in said and str(error) in said
    again, left_out = experiment.each_sample(options, "script", lens, counting(folders))
    assert (len(folders), len(again), left_out) == (4, 3, {})  # only the one that failed runs again


def test_your_own_image_needs_a_prompt_and_the_other_way_round(tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "cat.png")
    (sample,) = experiment.samples(Options(image=tmp_path / "cat.png", prompt="it walks", num_frames=9))
    assert (sample.prompt, sample.id, sample.num_frames) == ("it walks", "cat", 9)
    for options, says in (
        (Options(image=tmp_path / "cat.png"), "--prompt"),
        (Options(prompt="it walks"), "--image"),
        (Options(image=tmp_path / "dog.png", prompt="it walks"), r"dog\.png"),
        (Options(task="chess"), "chess"),
    ):
        with pytest.raises(dl.DitLensError, match=says):
            experiment.samples(options)


def test_rates_have_wilsons_interval():
    got = experiment.rate([True] * 8 + [False] * 2)
    assert got["n"] == 10 and got["rate"] == 0.8
    assert got["interval_95"] == pytest.approx([0.4901625, 0.9433178], abs=1e-6)  # Wilson 1927, by hand
    assert experiment.rate([]) == {"n": 0}


def test_the_summary_says_which_command_made_it(tmp_path):
    experiment.write_summary(tmp_path, {"solved": 1.0}, {"steps": 3}, {"maze/7": "no image"})
    said = json.loads((tmp_path / "summary.json").read_text())
    assert said["command"].startswith("python ") and said["solved"] == 1.0
    assert said["samples left out"] == 1 and said["left out"] == {"maze/7": "no image"}
    assert json.loads((tmp_path / "manifest.json").read_text())["settings"] == {"steps": 3}
