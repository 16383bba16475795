"""Blocks as one table: what differs between blocks stands by sample, or is refused by its name."""

from typing import ClassVar

import numpy as np
import pytest
import xarray as xr
from PIL import Image

import dit_lens as dl
from dit_lens.errors import DitLensError, TaskError
from dit_lens.experiments.cost import spoken_bytes
from dit_lens.experiments.options import StudyOptions
from dit_lens.experiments.study import study
from dit_lens.experiments.tables import require_one_table, together

TEXT = np.dtypes.StringDType()


def block(names, tokens=64, sigma=(1.0, 0.5), experts=("high", "low"), frames=3):
    data = {
        "score": (("sample", "step", "frame"), np.ones((len(names), 2, frames))),
        "tokens": ("of", [40, tokens]),
        "nothing": ("of", [np.nan, 1.0]),
    }
    coords = {
        "sample": np.array([*names], TEXT),
        "of": np.array(["compared", "all"], TEXT),
        "frame": np.arange(frames),
        "sigma": ("step", list(sigma)),
        "expert": ("step", np.array(experts, TEXT)),
    }
    return xr.Dataset(data, coords)


def test_a_number_that_differs_between_blocks_stands_by_sample_and_others_stay():
    table = together([block("ab"), block("c", tokens=144)], "s")
    assert table.tokens.sel(of="all").to_series().to_dict() == {"a": 64, "b": 64, "c": 144}
    assert table.nothing.dims == ("of",) and table.expert.values.tolist() == ["high", "low"]
    same = together([block("ab"), block("c")], "s")
    assert same.tokens.dims == ("of",) and same.sizes["sample"] == 3


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"sigma": (1.0, 0.7)}, r"`sigma` is not the same .*a has \[1.0, 0.5\]; c has \[1.0, 0.7\]"),
        ({"experts": ("high", "high")}, r"`expert` is not the same .*'low'\]; c has \['high', 'high'\]"),
        ({"frames": 5}, r"`frame` is not the same .*Give --num-frames"),
    ],
)
def test_an_axis_that_is_not_the_same_everywhere_is_refused_by_its_name(other, says):
    with pytest.raises(DitLensError, match=says):
        require_one_table(block("ab"), block("c", **other), "s")
    require_one_table(block("ab"), block("c", tokens=144), "s")


def samples(*sizes):
    pictures = [Image.new("RGB", size[::-1], (n, 0, 0)) for n, size in enumerate(sizes)]
    return [dl.Sample("go", image, task="t", id=str(n), num_frames=9) for n, image in enumerate(pictures)]


class Drawn(list):
    left_out: ClassVar = {}


def measured(part):
    tokens = part[0].height * part[0].width
    data = block([f"t/{s.id}" for s in part], tokens, sigma=(1.0, 0.5 if tokens < 5000 else 0.7))
    return data.assign(score=data.score.expand_dims(seed=[0]))


def test_shapes_that_do_not_fit_are_refused_after_a_block_of_each_and_earlier_results_stay(lens, tmp_path):
    calls = []

    def counted(part):
        calls.append([s.id for s in part])
        return measured(part)

    (tmp_path / "summary.json").write_text("earlier")
    options = StudyOptions(out=tmp_path, block=2)
    drawn = Drawn(samples(*[(64, 64)] * 5, (96, 96)))
    with pytest.raises(DitLensError, match="`sigma` is not the same in all of them"):
        study(options, "s", lens, counted, drawn=drawn)
    assert calls == [["0", "1"], ["5"]]
    assert (tmp_path / "summary.json").read_text() == "earlier"
    found = study(options, "s", lens, counted, drawn=Drawn(samples((64, 64), (32, 64), (64, 64)))).results
    assert found.sample.values.tolist() == ["t/0", "t/1", "t/2"]  # in their own order
    assert found.tokens.sel(of="all").values.tolist() == [4096, 2048, 4096]
    assert not (tmp_path / "summary.json").exists()


def test_options_that_no_sample_can_be_measured_by_end_a_study_at_once(lens, tmp_path):
    calls = []

    def refuse(batch):
        calls.append(len(batch.pairs))
        raise TaskError("--at 9: there is no such step")

    options = StudyOptions(out=tmp_path, block=2, steps=2)
    (tmp_path / "summary.json").write_text("earlier")
    with pytest.raises(TaskError, match="--at 9"):
        study(options, "s", lens, measured, runs=refuse, drawn=Drawn(samples(*[(64, 64)] * 4)))
    assert calls == [2] and (tmp_path / "summary.json").read_text() == "earlier"

    def broken(part):
        raise ValueError("a bug")

    with pytest.raises(DitLensError, match="no block of samples could be measured"):
        study(options, "s", lens, broken, drawn=Drawn(samples(*[(64, 64)] * 2)))
    assert (tmp_path / "summary.json").read_text() == "earlier"


def test_a_study_says_what_each_shape_costs(lens, tmp_path, capsys):
    drawn = Drawn(samples((64, 64), (32, 64), (64, 64)))
    study(StudyOptions(out=tmp_path, steps=2), "s", lens, measured, runs=lambda batch: 3.0, drawn=drawn)
    said = [line for line in capsys.readouterr().err.splitlines() if "by the speed of one row" in line]
    assert said[0].startswith("s, 64 x 64, 9 frames: 2 samples x 1 seeds x 3.0 runs = 6 runs of 2 steps")
    assert said[1].startswith("s, 64 x 32, 9 frames: 1 samples x 1 seeds x 3.0 runs = 3 runs of 2 steps")


def test_bytes_are_said_in_the_unit_in_which_they_are_read():
    assert [spoken_bytes(n) for n in (12, 10_600, 7.3e6, 12.34e9)] == [
        "12 bytes",
        "10.6 kB",
        "7.3 MB",
        "12.3 GB",
    ]
