"""What is trained on, and what never is."""

import numpy as np
import pytest

from dit_lens.errors import TaskError
from dit_lens.tasks.pick import HELD_OUT_PAIRS
from judging import SETS, scene
from mixes import MAKERS, MIXES

GROUPS = [(mix, group) for mix, groups in MIXES.items() for group in groups]


def split(sample):
    try:
        return sample.split
    except TaskError:  # few layouts, which are not split
        return None


@pytest.mark.parametrize("mix, group", GROUPS, ids=[f"{mix} {group.name}" for mix, group in GROUPS])
def test_scenes_fit_their_group_and_their_side(mix, group):
    rng = np.random.default_rng(0)
    for held_out, side in ((False, "train"), (True, "eval")):
        for _ in range(25):
            sample = group.draw(rng, held_out)
            assert sample.truth.shape == group.shape
            assert split(sample) in (side, None)


@pytest.mark.parametrize("name", MAKERS)
def test_training_draws_no_layout_of_evaluation(name):
    rng = np.random.default_rng(1)
    drawn = [MAKERS[name](int(rng.integers(1_000_000)), rng, 13) for _ in range(60)]
    if split(drawn[0]) is None:
        assert name in ("pattern", "occlude")
        return
    assert {split(sample) for sample in drawn} == {"train"}


@pytest.mark.parametrize("name", SETS)
def test_evaluation_asks_for_layouts_of_evaluation_alone(name):
    assert {split(scene(name, number)) for number in range(12)} <= {"eval", None}


def test_pairs_and_tasks_that_are_held_out_are_never_drawn():
    rng = np.random.default_rng(2)
    prompts = {MAKERS["pick"](seed, rng, 13).prompt for seed in range(200)}
    assert len(prompts) == 4
    assert not prompts & {f"circle the {colour} {shape}" for shape, colour in HELD_OUT_PAIRS}
    assert not {"apart", "back", "queens"} & {name for _, group in GROUPS for name in group.shares}
