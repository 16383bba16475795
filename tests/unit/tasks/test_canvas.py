"""What is drawn is what is read: areas, colours and positions in pixels."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dit_lens.errors import TaskError
from dit_lens.tasks import canvas as cv

SIDE = 4 * cv.CELL
COLOURS = {
    "agent": cv.AGENT,
    "goal": cv.GOAL,
    "trail": cv.TRAIL,
    "object": cv.OBJECT,
    "ring": cv.RING,
    **cv.BALLS,
}


def ink(canvas):
    """How much of a board has been painted black, in pixels."""
    return float((1 - canvas / np.asarray(cv.FLOOR)).mean(-1).sum())


def flat(colour, side=8):
    return cv.to_frames([np.full((side, side, 3), colour, np.float32)])[0]


@given(st.tuples(*[st.floats(0, SIDE)] * 2), st.tuples(*[st.floats(0, SIDE)] * 2))
def test_a_rectangle_covers_its_area_wherever_its_corners_fall(xs, ys):
    (x0, x1), (y0, y1) = sorted(xs), sorted(ys)
    board = cv.blank(4)
    cv.rectangle(board, x0, y0, x1, y1, (0, 0, 0))
    assert ink(board) == pytest.approx((x1 - x0) * (y1 - y0), abs=0.02)


@given(st.floats(12, SIDE - 12), st.floats(12, SIDE - 12), st.floats(2, 8))
def test_a_disc_covers_its_area_around_its_centre(x, y, radius):
    board = cv.blank(4)
    cv.disc(board, x, y, radius, (0, 0, 0))
    assert ink(board) == pytest.approx(np.pi * radius**2, rel=0.06)
    mass = 1 - board.mean(-1) / np.mean(cv.FLOOR)
    rows, columns = np.arange(SIDE) + 0.5, np.arange(SIDE) + 0.5
    assert (mass.sum(1) @ rows) / mass.sum() == pytest.approx(y, abs=0.1)
    assert (mass.sum(0) @ columns) / mass.sum() == pytest.approx(x, abs=0.1)


@given(st.floats(-30, SIDE + 30), st.floats(-30, SIDE + 30))
def test_drawing_over_the_border_draws_what_is_inside(x, y):
    board, wide = cv.blank(4), cv.blank(12)
    cv.disc(board, x, y, 5, (0, 0, 0))
    cv.disc(wide, x + SIDE, y + SIDE, 5, (0, 0, 0))
    np.testing.assert_allclose(board, wide[SIDE : 2 * SIDE, SIDE : 2 * SIDE], atol=1e-5)


def test_a_ring_is_solid_on_its_line_and_empty_within_and_without():
    board = cv.blank(1)
    cv.ring(board, 8, 8, 6.5, 2, 1.0)
    np.testing.assert_allclose(board[8, 1], cv.RING, atol=0.05)
    np.testing.assert_allclose(board[8, 8], cv.FLOOR)
    np.testing.assert_allclose(board[0, 0], cv.FLOOR)
    faint = cv.blank(1)
    cv.ring(faint, 8, 8, 6.5, 2, 0.5)
    assert np.abs(faint - cv.FLOOR).sum() == pytest.approx(np.abs(board - cv.FLOOR).sum() / 2, rel=1e-4)


def test_the_centre_of_a_cell_is_x_then_y():
    assert cv.centre((0, 0)) == (8, 8)
    assert cv.centre((1, 3)) == (56, 24)
    assert cv.blank(2, 3).shape == (32, 48, 3)


@pytest.mark.parametrize("name", COLOURS)
def test_likeness_is_0_at_the_floor_and_1_at_the_colour(name):
    np.testing.assert_allclose(cv.likeness(flat(cv.FLOOR), COLOURS[name]), 0, atol=0.01)
    np.testing.assert_allclose(cv.likeness(flat(COLOURS[name]), COLOURS[name]), 1, atol=0.01)


@pytest.mark.parametrize("name", COLOURS)
@given(st.floats(0, 1))
def test_likeness_measures_how_far_a_pixel_has_gone(name, share):
    mixed = np.asarray(cv.FLOOR) + share * (np.asarray(COLOURS[name]) - cv.FLOOR)
    np.testing.assert_allclose(cv.likeness(flat(mixed), COLOURS[name]), share, atol=0.02)


@given(st.tuples(*[st.integers(0, 255)] * 3), st.sampled_from(sorted(COLOURS)))
def test_likeness_is_between_0_and_1_for_any_pixel(pixel, name):
    value = cv.likeness(np.array([[pixel]], np.uint8), COLOURS[name])
    assert 0 <= value.item() <= 1


@pytest.mark.parametrize("other", [cv.WALL, cv.GOAL, cv.FLOOR])
def test_neither_wall_nor_goal_nor_floor_reads_as_a_trail(other):
    assert cv.likeness(flat(other), cv.TRAIL).max() < 0.5
    assert cv.likeness(flat(other), cv.AGENT).max() < 0.5


def test_the_nearest_ball_is_named_also_when_it_is_half_faded_or_tinted():
    for name, colour in cv.BALLS.items():
        for share, least in ((1.0, 0.99), (0.7, 0.6)):
            faded = tuple(share * c + (1 - share) * f for c, f in zip(colour, cv.FLOOR, strict=True))
            read, strength = cv.nearest(flat(faded), (8, 8), 4, cv.BALLS)
            assert strength > least and (read == name or share < 1)
        tinted = tuple(np.clip(np.add(colour, (0.08, -0.08, 0.08)), 0, 1))
        assert cv.nearest(flat(tinted), (8, 8), 4, cv.BALLS)[0] == name
    assert cv.nearest(flat(cv.FLOOR), (8, 8), 4, cv.BALLS)[1] < 0.05
    assert cv.nearest(flat(cv.BAR), (8, 8), 4, cv.BALLS)[1] < 0.6


def test_a_patch_is_the_mean_over_its_square_cut_at_the_border():
    values = np.arange(64, dtype=np.float32).reshape(8, 8)
    assert cv.patch(values, 4, 4, 2) == values[2:6, 2:6].mean()
    assert cv.patch(values, 0, 0, 2) == values[:2, :2].mean()


def test_frames_are_rounded_and_clipped():
    canvas = np.array([[[-0.1, 0.5, 1.2]]], np.float32)
    assert cv.to_frames([canvas, canvas]).tolist() == [[[[0, 128, 255]]]] * 2


def test_tasks_and_seeds_have_random_numbers_of_their_own():
    draws = {
        (task, seed): cv.rng_for(task, seed).integers(2**62)
        for task in ("maze", "loop")
        for seed in (0, 1, 2**40)
    }
    assert len(set(draws.values())) == len(draws)
    assert cv.rng_for("maze", 1).integers(2**62) == draws["maze", 1]


def test_a_negative_seed_and_a_video_of_no_frames_are_refused():
    with pytest.raises(TaskError, match=r"maze\(seed=-1\): seeds are whole numbers, 0 or more"):
        cv.rng_for("maze", -1)
    with pytest.raises(TaskError, match="num_frames is 0"):
        cv.to_frames([])
