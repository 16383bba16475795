"""A study is measured once, block by block, and a sample once; one that fails stops no other."""

import json
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

import dit_lens as dl
from dit_lens.experiments.options import PictureOptions, StudyOptions
from dit_lens.experiments.samples import draw
from dit_lens.experiments.study import each_sample, study


class Calls:
    """Counts in a file: what a function closes over by its content would make other blocks as it grows."""

    def __init__(self, path):
        self.path = path

    def add(self, number):
        self.path.write_text(json.dumps([*self.all, number]))

    @property
    def all(self):
        return json.loads(self.path.read_text()) if self.path.exists() else []


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
    made = Calls(tmp_path / "calls")

    def counted(samples):
        made.add(len(samples))
        if len(made.all) == 2:
            raise KeyboardInterrupt
        return measure(samples)

    options = StudyOptions(task="circle", samples=5, seeds=2, block=2, out=tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        study(options, "s", lens, counted)
    measured = study(options, "s", lens, counted)
    again = measured.results
    assert measured.exit_code == 0 and made.all == [2, 2, 2, 1]
    whole = study(replace(options, out=tmp_path / "b"), "s", lens, measure).results
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
    made = Calls(tmp_path / "calls")

    def counted(samples):
        made.add(1)
        return measure(samples)

    options = StudyOptions(task="circle", samples=2, block=2, out=tmp_path)
    study(options, "s", lens, counted)
    study(options, "s", dl.Lens(tiny_pipe(seed=1)), counted)
    study(replace(options, draw=9), "s", lens, counted)
    study(replace(options, at_once=1), "s", lens, counted)
    assert len(made.all) == 3


def test_samples_that_are_judged_otherwise_make_other_blocks(lens, tmp_path, monkeypatch):
    made = Calls(tmp_path / "calls")

    def counted(samples):
        made.add(1)
        return measure(samples)

    options = StudyOptions(task="circle", samples=2, block=2, out=tmp_path)
    study(options, "s", lens, counted)
    circle = dl.tasks.make

    def stricter(sample):
        return sample.with_(scorer=lambda video: dl.Score(False, 0.0, "none"))

    monkeypatch.setattr("dit_lens.tasks.make", lambda *args, **more: stricter(circle(*args, **more)))
    study(options, "s", lens, counted)
    monkeypatch.setattr(
        "dit_lens.tasks.make", lambda *a, **m: circle(*a, **m).with_(negative_prompt="blurry")
    )
    study(options, "s", lens, counted)
    assert len(made.all) == 3


def test_a_sample_that_fails_is_named_and_stops_no_other_not_even_of_its_block(lens, tmp_path, capsys):
    def broken(samples):
        if any(s.id == "1000000" for s in samples):
            raise ValueError("a bug")
        return measure(samples)

    options = StudyOptions(task="circle", samples=4, block=2, out=tmp_path)
    measured = study(options, "s", lens, broken)
    assert measured.exit_code == 1
    assert measured.results.sample.values.tolist() == [f"circle/100000{i}" for i in (1, 2, 3)]
    said = capsys.readouterr().err
    assert "circle/1000000 to 1000001 failed (ValueError: a bug)" in said and "circle/1000000 failed" in said
    assert measured.left_out == {"circle/1000000": "ValueError: a bug"}
    assert (
        study(options, "s", lens, measure).left_out == {}
    )  # what failed once is not held against the next try
    with pytest.raises(dl.DitLensError, match="no block"):
        nothing = StudyOptions(task="circle", samples=2, block=2, out=tmp_path / "x")
        study(nothing, "s", lens, lambda samples: broken([samples[0].with_(id="1000000")]))


def test_options_of_a_study_are_checked(lens):
    for options, says in ((StudyOptions(samples=1), "at least 2"), (StudyOptions(seeds=0), "--seeds 0")):
        with pytest.raises(dl.TaskError, match=says):
            study(options, "s", lens, measure)


def counting(calls, broken=None):
    def analyse(sample, folder):
        calls.add(str(folder))
        if broken is not None and sample.id in broken:
            raise broken[sample.id]
        return {"solved": np.bool_(True)}

    return analyse


def test_a_sample_that_is_done_is_not_made_again_unless_something_changed(tmp_path, lens, tiny_pipe):
    calls, options = Calls(tmp_path / "calls"), PictureOptions(task="circle", samples=2, out=tmp_path)
    first, left_out = each_sample(options, "script", lens, counting(calls))
    assert (len(calls.all), left_out, [n["task"] for n in first]) == (2, {}, ["circle"] * 2)
    again, _ = each_sample(replace(options, samples=3), "script", lens, counting(calls))
    assert len(calls.all) == 3 and again[:2] == first
    each_sample(replace(options, samples=3, seed=5), "script", lens, counting(calls))
    assert len(calls.all) == 6
    other = dl.Lens(tiny_pipe(seed=1))  # the same settings on another model
    each_sample(replace(options, samples=3, seed=5), "script", other, counting(calls))
    assert len(calls.all) == 9


def test_numbers_are_made_again_after_the_negative_prompt_or_the_code_changed(tmp_path, lens, monkeypatch):
    calls, options = Calls(tmp_path / "calls"), PictureOptions(task="circle", out=tmp_path)
    make = dl.tasks.make
    each_sample(options, "script", lens, counting(calls))
    monkeypatch.setattr("dit_lens.tasks.make", lambda *a, **m: make(*a, **m).with_(negative_prompt="blurry"))
    each_sample(options, "script", lens, counting(calls))
    assert len(calls.all) == 2

    def other(sample, folder):
        calls.add("other")
        return {"solved": False}

    numbers, _ = each_sample(options, "script", lens, other)
    assert len(calls.all) == 3 and numbers[0]["solved"] is False


@pytest.mark.parametrize("torn", ["", '{"key": "', "[]", "\x00\xff", '{"key": 1}'])
def test_a_torn_file_of_numbers_is_made_again(tmp_path, lens, torn):
    calls, options = Calls(tmp_path / "calls"), PictureOptions(task="circle", out=tmp_path)
    (first,), _ = each_sample(options, "script", lens, counting(calls))
    done = tmp_path / "circle" / first["id"] / "done.json"
    done.write_bytes(torn.encode("latin-1"))
    assert each_sample(options, "script", lens, counting(calls)) == ([first], {})
    assert len(calls.all) == 2 and json.loads(done.read_text())["numbers"] == first
    assert [p.name for p in done.parent.iterdir()] == ["done.json"]


@pytest.mark.parametrize("error", [dl.DitLensError("no such layer"), ValueError("a bug")])
def test_a_sample_that_fails_is_named_and_stops_no_other(tmp_path, capsys, error, lens):
    calls, options = Calls(tmp_path / "calls"), PictureOptions(task="circle", samples=3, out=tmp_path)
    second = list(draw(options))[1].id
    found, left_out = each_sample(options, "script", lens, counting(calls, {second: error}))
    assert (len(calls.all), len(found), list(left_out)) == (3, 2, [f"circle/{second}"])
    assert str(error) in left_out[f"circle/{second}"]
    said = capsys.readouterr().err
    assert f"circle/{second} failed" in said and str(error) in said
    assert each_sample(options, "script", lens, counting(calls, {}))[1] == {}
