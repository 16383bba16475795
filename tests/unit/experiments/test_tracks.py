"""Tracks: an object is where its mask is, hidden where it is hidden, and matches count against chance and standing still."""

import numpy as np
import pytest

import dit_lens as dl
from dit_lens.experiments.tracks import centre_by_frame, count_matches, has_movers, tracks_of

GRID = (4, 6, 6)


def ball(columns, row=2, frames=4, cell=4):
    """Return a mask of a ball that fills one token in each frame, by its column; None where it is hidden."""
    mask = np.zeros((frames, 6 * cell, 6 * cell), bool)
    for frame, column in enumerate(columns):
        if column is not None:
            mask[frame, row * cell : (row + 1) * cell, column * cell : (column + 1) * cell] = True
    return mask


def found(columns, count, row=2):
    """Return matches of `count` places in one head, the same columns for each."""
    return np.array([[[[row, column] for column in columns]] * count], float)


def test_an_object_that_moves_is_followed_and_what_grows_or_stands_still_is_not():
    tracks = tracks_of(
        {"ball": ball([0, 1, 3, 5]), "bar": ball([1, 2, 3, 4]), "red agent": ball([2] * 4)}, GRID
    )
    assert tracks.places == ((0, 2, 0), (1, 2, 1), (2, 2, 3), (3, 2, 5))
    assert tracks.centres[0].tolist() == [[2, 0], [2, 1], [2, 3], [2, 5]]
    hidden = tracks_of({"ball": ball([0, None, 3, 5])}, GRID)
    assert [place[0] for place in hidden.places] == [0, 2, 3] and np.isnan(hidden.centres[:, 1]).all()


def test_an_object_that_is_mostly_hidden_has_no_centre():
    shares = np.zeros((3, 2, 2))
    shares[0, 0, 0], shares[1, 0, 0], shares[2, 1, 1] = 1.0, 0.3, 0.6
    np.testing.assert_array_equal(centre_by_frame(shares), [[0, 0], [np.nan] * 2, [1, 1]])
    assert np.isnan(centre_by_frame(np.zeros((2, 2, 2)))).all()


def test_matches_that_follow_hit_and_those_that_stand_still_are_the_baseline():
    tracks = tracks_of({"ball": ball([0, 1, 3, 5])}, GRID)
    right = count_matches(found([0, 1, 3, 5], 4), tracks, GRID, 0.75)
    assert np.array_equal(right["hits"][0], right["points"]) and right["points"][:, 0].tolist() == [6, 4, 2]
    assert (right["same_place"] == 0).all() and np.array_equal(right["points"][:, 0], right["points"][:, 1])
    wide = count_matches(found([0, 1, 3, 5], 4), tracks, GRID, 1.0)
    assert wide["same_place"][0].tolist() == [2, 0]  # columns 0 and 1 are one token apart, both ways
    assert wide["points"][0].tolist() == [6, 4]
    wrong = count_matches(found([0, 1, 3, 5], 4, row=0), tracks, GRID, 0.75)
    assert (wrong["hits"] == 0).all()


def test_chance_is_what_drawn_tokens_hit():
    tracks = tracks_of({"ball": ball([0, 1, 3, 5])}, GRID)
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, 6, (4000, 4, 4, 2)).astype(float)
    counts = count_matches(drawn, tracks, GRID, 1.0)
    np.testing.assert_allclose(counts["hits"].mean(0)[:, 0], counts["chance"][:, 0], rtol=0.05)


def test_frames_that_may_not_be_seen_are_no_pairs():
    tracks = tracks_of({"ball": ball([0, 1, 3, 5])}, GRID)
    past = found([0, 1, 3, 5], 4)
    for place in range(4):
        past[0, place, place + 1 :] = np.nan
    counts = count_matches(past, tracks, GRID, 0.75)
    assert counts["points"][:, 0].tolist() == [3, 2, 1] and np.array_equal(
        counts["hits"][0], counts["points"]
    )
    assert counts["chance"][0, 0] == pytest.approx(3 / 36)


def test_without_a_mover_there_is_nothing_to_count():
    tracks = tracks_of({"bar": ball([1] * 4)}, GRID)
    counts = count_matches(np.zeros((2, 0, 4, 2)), tracks, GRID, 1.0)
    assert counts["hits"].shape == (2, 3, 2) and not counts["hits"].any() and not counts["points"].any()


def test_the_agents_of_the_tasks_are_followed():
    arrows, circle = dl.tasks.arrows(1_000_000), dl.tasks.circle(1_000_000)
    assert has_movers(arrows) and not has_movers(circle)
    tracks = tracks_of(arrows.masks, (7, 6, 6))
    assert len(tracks.places) == 7 and tracks_of(circle.masks, (4, 4, 4)).places == ()
