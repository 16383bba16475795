"""What a script says at its end: rates with intervals, and which command made it."""

import json

import numpy as np
import pytest

from dit_lens.experiments.options import PictureOptions
from dit_lens.experiments.summary import rate, write_summary


def test_rates_have_wilsons_interval():
    got = rate([True] * 8 + [False] * 2)
    assert got["n"] == 10 and got["rate"] == 0.8
    assert got["interval_95"] == pytest.approx([0.4901625, 0.9433178], abs=1e-6)  # Wilson 1927, by hand
    assert rate([]) == {"n": 0}


def test_the_summary_says_which_command_made_it(tmp_path):
    write_summary(
        PictureOptions(steps=3, out=tmp_path), {"solved": np.float32(1)}, {"maze/7": "no image"}, {"draws": 5}
    )
    said = json.loads((tmp_path / "summary.json").read_text())
    assert said["command"].startswith("python ") and said["solved"] == 1.0
    assert said["samples left out"] == 1 and said["left out"] == {"maze/7": "no image"}
    settings = json.loads((tmp_path / "manifest.json").read_text())["settings"]
    assert (settings["steps"], settings["task"], settings["bootstrap"]) == (3, "maze", {"draws": 5})
