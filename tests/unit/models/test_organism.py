"""The organism that ships: the real classes, real weights, and answers that are right."""

import hashlib

import numpy as np
import pytest
import torch

import dit_lens as dl
from dit_lens.models import organism


@pytest.fixture(scope="module")
def shipped():
    return dl.load("organism")


def test_it_is_diffsynths_own_classes_with_the_weights_that_the_manifest_names(shipped):
    assert type(shipped.pipe).__module__ == "diffsynth.pipelines.wan_video"
    assert type(shipped.pipe.dit).__module__ == "diffsynth.models.wan_video_dit"
    files = {organism.ORGANISMS[organism.DEFAULT].frozen, *organism.ORGANISMS[organism.DEFAULT].dits.values()}
    for name in files:
        content = (organism.FOLDER / name).read_bytes()
        assert shipped.info["weights"][name] == f"sha256:{hashlib.sha256(content).hexdigest()}"
    assert set(shipped.info["weights"]) == files and shipped.info["name"] == organism.DEFAULT


def test_all_that_ships_is_small():
    assert sum(file.stat().st_size for file in organism.FOLDER.glob("*.safetensors")) < 100e6


def test_it_circles_what_it_is_asked_to(shipped):
    solved = [
        dl.tasks.circle(seed).score(shipped.run(dl.tasks.circle(seed), steps=8).video).solved
        for seed in range(1_000_000, 1_000_006)
    ]
    assert sum(solved) >= 5


def test_the_last_x0_is_the_video(shipped):
    run = shipped.run(dl.tasks.choose(1_000_000), steps=4, record=[dl.x0])
    assert np.array_equal(shipped.decode(run["x0"].isel(step=-1)), run.video)


def test_unknown_names_are_named():
    with pytest.raises(dl.DitLensError, match="'wan9'"):
        dl.load("wan9")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", torch.bfloat16])
def test_it_runs_in_every_number_type_by_name(dtype):
    lens = dl.load("organism", dtype=dtype)
    assert str(lens.dtype).removeprefix("torch.") == str(dtype).removeprefix("torch.")
    run = lens.run(dl.tasks.maze(seed=1_000_007), steps=2, record=[dl.energy, dl.x0])
    assert np.isfinite(run["energy"].values).all() and run.video.std() > 1
    decoded = lens.decode(run["x0"].isel(step=-1)).astype(int)
    assert abs(decoded - run.video).max() <= (
        1 if "16" in str(dtype) else 0
    )  # the last step rounds once more


def test_a_number_type_that_is_none_is_refused():
    with pytest.raises(dl.PlanError, match=r"dtype='int8': one of float32, float16, bfloat16"):
        dl.load("organism", dtype="int8")
