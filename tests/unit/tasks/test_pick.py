"""`pick`: the pair that is asked for gets its rings, and two pairs are kept for evaluation."""

import numpy as np
import pytest

from dit_lens import tasks
from dit_lens.errors import TaskError
from dit_lens.tasks import canvas as cv
from dit_lens.tasks.canvas import EVAL_SEED
from dit_lens.tasks.pick import HELD_OUT_PAIRS, PAIRS


def looks_of(sample):
    return sample.scorer.keywords["draw"].keywords["looks"]


def wanted_of(sample):
    return sample.scorer.keywords["answers"][0]


def video_of(sample, ringed, looks=None, frames=slice(None)):
    """Return the right video of other rings, or of another board, in some frames; elsewhere the right one."""
    from dit_lens.tasks.rings import _draw

    looks, out = looks or looks_of(sample), sample.truth.copy()
    out[frames] = cv.fade(_draw(None, looks), _draw(ringed, looks), len(out))[frames]
    return out


@pytest.mark.parametrize("seed", [*range(30), *range(EVAL_SEED, EVAL_SEED + 30)])
@pytest.mark.parametrize("held_out", [False, True])
def test_all_of_the_pair_are_right_and_both_words_are_needed(seed, held_out):
    sample = tasks.pick(seed, held_out=held_out)
    _, _, colour, shape = sample.prompt.split()
    pairs = {cell: (s, c) for cell, (s, _, c) in looks_of(sample).items()}
    assert {*wanted_of(sample)} == {cell for cell, pair in pairs.items() if pair == (shape, colour)}
    assert 4 <= len(pairs) <= 9 and 1 <= len(wanted_of(sample)) <= 3
    assert any(s == shape and c != colour for s, c in pairs.values())
    assert any(s != shape and c == colour for s, c in pairs.values())
    assert ((shape, colour) in HELD_OUT_PAIRS) == held_out
    assert sample.task == ("pick-new" if held_out else "pick")


def test_held_out_pairs_stand_on_the_boards_of_training():
    seen = {(s, c) for seed in range(30) for s, _, c in looks_of(tasks.pick(seed)).values()}
    assert seen == {*PAIRS}


@pytest.mark.parametrize("pair", PAIRS)
def test_a_pair_may_be_asked_for(pair):
    sample = tasks.pick(3, *pair)
    assert sample.prompt == f"circle the {pair[1]} {pair[0]}"
    assert sample.task == ("pick-new" if pair in HELD_OUT_PAIRS else "pick")


def test_one_word_may_be_asked_for():
    assert {tasks.pick(seed, "disc").prompt for seed in range(20)} == {
        "circle the grey disc",
        "circle the green disc",
    }
    assert {tasks.pick(seed, colour="blue", held_out=True).prompt for seed in range(5)} == {
        "circle the blue disc"
    }


@pytest.mark.parametrize(
    "options", [{"shape": "cat"}, {"colour": "red"}, {"shape": "disc", "colour": "grey", "held_out": True}]
)
def test_a_pair_that_there_is_not_is_refused_with_those_that_there_are(options):
    with pytest.raises(
        TaskError, match=r"no such pair. Give shapes among disc, square and colours among grey"
    ):
        tasks.pick(3, **options)


@pytest.mark.parametrize("seed", [EVAL_SEED + n for n in range(8)])
def test_wrong_rings_and_changed_boards_are_not_solved(seed):
    sample = tasks.pick(seed)
    looks, wanted = looks_of(sample), wanted_of(sample)
    other = next(cell for cell in looks if cell not in wanted)
    empty = next(cell for cell in np.ndindex(4, 4) if cell not in looks)
    gone = {cell: look for cell, look in looks.items() if cell != other}
    shape, size, colour = looks[other]
    recoloured = shape, size, next(c for c in ("grey", "green", "blue") if c != colour)
    middle = slice(8, 12)
    spoiled = {
        "another ring": video_of(sample, [other]),
        "one ring too many": video_of(sample, [*wanted, other]),
        "a ring missing": video_of(sample, wanted[1:]),
        "a ring around nothing": video_of(sample, [*wanted, empty]),
        "other rings in the middle": video_of(sample, [other], frames=slice(12, -1)),
        "an object that is gone": video_of(sample, wanted, gone, middle),
        "an object that has moved": video_of(sample, wanted, gone | {empty: looks[other]}, middle),
        "an object of another colour": video_of(sample, wanted, looks | {other: recoloured}, middle),
        "every other frame": sample.truth[::2],
    }
    for name, video in spoiled.items():
        score = sample.score(video)
        assert not score.solved and score.score < 1, name


def test_a_board_is_on_one_side_of_the_split_whatever_is_asked():
    train = {repr(tasks.pick(seed, num_frames=2).scene.layout) for seed in range(200)}
    train |= {repr(tasks.pick(seed, held_out=True, num_frames=2).scene.layout) for seed in range(200)}
    held = {repr(tasks.pick(EVAL_SEED + seed, num_frames=2).scene.layout) for seed in range(200)}
    assert not train & held
