"""Tasks of a ball that rolls: every frame is judged, masks are exact, and scenes are too many to be known by heart."""

import importlib
from dataclasses import replace

import numpy as np
import pytest

from dit_lens import tasks
from dit_lens.tasks import canvas as cv
from dit_lens.tasks import rolls
from dit_lens.tasks.canvas import CELL, EVAL_SEED

TASKS = ("roll", "back")
SEEDS = range(EVAL_SEED, EVAL_SEED + 8)
SIDE = rolls.SIDE * CELL


def film(sample, when=lambda share: share, **changes):
    """Return the right video of a scene that is changed, or of another time."""
    scene, count = replace(sample.scorer.keywords["roll"], **changes), len(sample.truth)
    return cv.to_frames([scene.picture(when(t / (count - 1))) for t in range(count)])


def free_spot(sample):
    """Return a pixel around which nothing is ever drawn, but perhaps a bar's edge."""
    drawn = np.any([mask.any(0) for mask in sample.masks.values()], axis=0)
    spots = [(x, y) for x in range(6, SIDE - 6) for y in range(6, SIDE - 6)]
    return next((x, y) for x, y in spots if not drawn[y - 6 : y + 6, x - 6 : x + 6].any())


def spoil(sample):
    """Return spoiled videos by name; in most of them the first and the last frame are right."""
    roll, truth = sample.scorer.keywords["roll"], sample.truth
    others = [name for name in cv.BALLS if name != roll.colour]
    dx, dy = (3, 0) if roll.upright else (0, 3)

    def between(video, frames=slice(16, -1)):
        out = truth.copy()
        out[frames] = video[frames]
        return out

    def beside(share):
        x, y = roll.way(share)
        return x + dx, y + dy

    spot, middle = free_spot(sample), slice(10, 13)
    jump, turn = truth.copy(), truth.copy()
    jump[1:8] = truth[8]
    turn[4], turn[5] = truth[7], truth[3]
    spoiled = {
        "larger": between(film(sample, radius=roll.radius + 2)),
        "beside its lane": between(film(sample, way=beside)),
        "a second ball": between(film(sample, other=(others[0], *spot)), middle),
        "a second ball of its colour": between(film(sample, other=(roll.colour, *spot)), middle),
        "too late": film(sample, lambda share: share**2.5),
        "a jump": jump,
        "a way back": turn,
        "gone too early": between(cv.to_frames([rolls._draw(roll.standing())] * 25), slice(1, 9)),
        "the last frame alone": truth[-1:],
        "every other frame": truth[::2],
        "no motion": np.repeat(truth[-1:], 25, 0),
    }
    spoiled |= {f"{name} in the end": between(film(sample, colour=name), slice(13, None)) for name in others}
    spoiled |= {f"{name} for a while": between(film(sample, colour=name)) for name in others}
    whole = sample.masks["ball"].sum((1, 2)) >= 0.95 * np.pi * roll.radius**2
    whole[:-3] &= whole[3:]  # as late as it may be, too
    whole[[0, -3, -2, -1]] = False
    if whole.any():
        greys = (0.2, 0.32, 0.45)
        spoiled |= {f"grey of {grey}": between(turned_grey(sample, grey), whole) for grey in greys}
    if roll.other is not None:
        colour, x, y = roll.other
        recoloured = next(name for name in others if name != colour)
        spoiled |= {
            "the other is gone": between(film(sample, other=None), middle),
            "the other has moved": between(film(sample, other=(colour, *spot)), middle),
            "the other is recoloured": between(film(sample, other=(recoloured, x, y)), middle),
        }
    if roll.bar is not None:
        left, right = roll.bar
        spoiled |= {
            "seen through the bar": between(film(sample, bar=None), middle),
            "a ball before the bar": between(_in_front(sample), middle),
            "half seen through the bar": _in_front(sample, 0.5),
            "a small ball over the bar": _in_front(sample, 1.0, 2),
            "a bar that moves": between(film(sample, bar=(left + 4, right + 4)), middle),
        }
    return spoiled


def turned_grey(sample, grey):
    """Return the right video with a grey ball."""
    scene, count = sample.scorer.keywords["roll"], len(sample.truth)
    frames = []
    for t in range(count):
        layers = scene.layers(t / (count - 1))
        layers["ball"] = layers["ball"][0], (grey,) * 3
        frames.append(rolls._draw(layers))
    return cv.to_frames(frames)


def _in_front(sample, opacity=1.0, radius=None):
    """Return the right video with the ball on top of all."""
    out, roll = sample.truth.copy(), sample.scorer.keywords["roll"]
    for t in range(len(out)):
        share = t / (len(out) - 1)
        canvas, bare = (roll.picture(share) for _ in range(2))
        cv.disc(canvas, *roll.way(share), radius or roll.radius, cv.BALLS[roll.colour])
        out[t] = cv.to_frames([bare + np.float32(opacity) * (canvas - bare)])[0]
    return out


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("task", TASKS)
def test_a_roll_is_judged_in_every_frame(task, seed):
    sample = tasks.make(task, seed)
    assert sample.score(sample.truth).solved
    for name, video in spoil(sample).items():
        score = sample.score(video)
        assert not score.solved and score.score < 1, name


@pytest.mark.parametrize("task", TASKS)
def test_a_ball_may_be_a_little_late(task):
    sample = tasks.make(task, EVAL_SEED)
    late = film(sample, lambda share: max(share - 1 / 24, 0) if share < 1 else 1.0)
    assert sample.score(late).solved


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("task", TASKS)
def test_masks_are_the_pixels_of_which_an_object_covers_half(task, seed):
    sample = tasks.make(task, seed)
    roll, masks = sample.scorer.keywords["roll"], sample.masks
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    bar = np.zeros((SIDE, SIDE), bool) if roll.bar is None else (x > roll.bar[0]) & (x < roll.bar[1])
    for t in range(len(sample.truth)):
        at = roll.way(t / (len(sample.truth) - 1))
        ball = (np.hypot(x - at[0], y - at[1]) <= roll.radius) & ~bar
        assert (
            masks["ball"][t] ^ ball
        ).sum() <= 2  # single precision decides the pixels that are covered by half
        np.testing.assert_array_equal(masks.get("bar", masks["ball"] & False)[t], bar)
        if roll.other is not None:
            other = np.hypot(x - roll.other[1], y - roll.other[2]) <= rolls.SMALL
            np.testing.assert_array_equal(masks["other"][t], other)
    assert (~masks["ball"]).all((1, 2)).sum() >= 7


@pytest.mark.parametrize("task", TASKS)
def test_scenes_are_without_number_and_on_one_side_of_the_split(task):
    train = [tasks.make(task, seed, num_frames=2).scene.layout for seed in range(400)]
    held = [tasks.make(task, EVAL_SEED + seed, num_frames=2).scene.layout for seed in range(400)]
    assert len({*train}) >= 395  # of 10,000 scenes, 400 draws would give 392
    assert len({*held}) >= 380
    assert not {*train} & {*held}


def test_the_ball_leaves_at_the_nearest_edge():
    for seed in SEEDS:
        way = tasks.back(seed).scorer.keywords["roll"].way
        (x, y), out = way(0.0), way(0.5)
        edges = {(-1, 0): x, (1, 0): SIDE - x, (0, -1): y, (0, 1): SIDE - y}
        nearest = min(edges, key=lambda edge: edges[edge])
        assert tuple(np.sign(np.subtract(out, (x, y))).astype(int)) == nearest
        assert way(1.0) == (x, y)


@pytest.mark.parametrize("name", TASKS)
def test_there_are_too_many_scenes_to_be_known_by_heart(name):
    draw, rng = importlib.import_module(f"dit_lens.tasks.{name}")._layout, np.random.default_rng(0)
    assert len({draw(rng) for _ in range(12_000)}) > 10_000
