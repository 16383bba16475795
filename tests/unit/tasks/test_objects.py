"""`circle`, `pattern` and `occlude`: each scorer sees the one thing that is wrong, in the last frame and in those before it."""

import numpy as np
import pytest

from dit_lens import tasks
from dit_lens.errors import TaskError
from dit_lens.tasks import canvas as cv
from dit_lens.tasks.objects import BOARD, SIZES

SEEDS = [*range(25), *range(cv.EVAL_SEED, cv.EVAL_SEED + 25)]
CELLS = [(r, c) for r in range(BOARD) for c in range(BOARD)]


def drawn(frame, draw):
    """A frame with something drawn over it, as a video of one frame."""
    canvas = frame.astype(np.float32) / 255
    draw(canvas)
    return cv.to_frames([canvas])


def read(sample, video):
    """What is read off the last frame alone."""
    return sample.scorer.keywords["read"](video)


def known(sample):
    return sample.scorer.keywords["read"].keywords


def tile(frame, cell):
    r, c = (i * cv.CELL for i in cell)
    return frame[r : r + cv.CELL, c : c + cv.CELL]


def cleared(frame, *cells):
    out = frame.copy()
    for cell in cells:
        tile(out, cell)[:] = np.round(255 * np.array(cv.FLOOR))
    return out


def rings(sample, cells):
    return drawn(sample.truth[0], lambda canvas: [cv.ring(canvas, *cv.centre(c), 6.5, 2, 1.0) for c in cells])


def objects(sample):
    """The cells with an object in the first frame: those that are not floor."""
    return {c for c in CELLS if np.ptp(tile(sample.truth[0], c).astype(int)) > 50}


# ---- circle


def test_the_two_questions_about_a_scene_share_it_and_split_its_objects():
    for seed in SEEDS:
        disc, square = (tasks.circle(seed, kind=k) for k in ("disc", "square"))
        np.testing.assert_array_equal(disc.truth[0], square.truth[0])
        assert (disc.prompt, square.prompt) == ("circle the disc", "circle the square")
        discs, squares = (known(s)["wanted"] for s in (disc, square))
        assert discs and squares
        assert not discs & squares
        assert discs | squares == objects(disc)
        assert 2 <= len(discs | squares) <= 4


def test_a_disc_has_no_corners_and_a_square_has():
    for seed in SEEDS[:10]:
        sample = tasks.circle(seed, kind="disc")
        for cell in objects(sample):
            x, y = (int(v) for v in cv.centre(cell))
            corner_is_floor = sample.truth[0][y - 4, x - 4].mean() > 225
            assert corner_is_floor == (cell in known(sample)["wanted"])


def test_both_kinds_are_asked_for_where_the_kind_is_not_given():
    assert {tasks.circle(seed).prompt for seed in range(20)} == {"circle the disc", "circle the square"}


def test_the_ring_round_the_other_kind_is_not_solved_and_shares_nothing():
    for seed in SEEDS:
        disc, square = (tasks.circle(seed, kind=k) for k in ("disc", "square"))
        score = disc.score(square.truth)
        assert (score.solved, score.score) == (False, 0.0)
        assert square.score(square.truth).answer == score.answer


def test_a_missing_or_additional_ring_is_not_solved_and_scores_its_share():
    for seed in SEEDS:
        sample = tasks.circle(seed)
        wanted = known(sample)["wanted"]
        rest = [c for c in CELLS if c not in wanted]
        for cells in (sorted(wanted)[1:], [*wanted, rest[seed % len(rest)]]):
            score = read(sample, rings(sample, cells))
            assert not score.solved
            assert score.score == pytest.approx(min(len(cells), len(wanted)) / max(len(cells), len(wanted)))


def test_the_answer_names_the_ringed_cells_in_order():
    sample = tasks.circle(0)
    assert read(sample, rings(sample, [(2, 3), (0, 1)])).answer == "rings 01 23"
    assert read(sample, sample.truth[:1]).answer == "rings"


def test_a_blot_in_the_colour_of_the_ring_is_no_ring():
    sample = tasks.circle(0)
    blots = drawn(
        sample.truth[0],
        lambda canvas: [cv.disc(canvas, *cv.centre(c), 4, cv.RING) for c in known(sample)["wanted"]],
    )
    assert read(sample, blots).answer == "rings"


def test_an_unknown_kind_is_refused():
    with pytest.raises(TaskError, match=r"circle\(kind='star'\): kind is 'disc' or 'square'"):
        tasks.circle(0, kind="star")


# ---- pattern


def area(frame, cell):
    return float(cv.likeness(tile(frame, cell), cv.OBJECT).sum())


def gap(sample):
    return known(sample)["cell"], known(sample)["right"]


def filled(sample, radius, colour=cv.OBJECT):
    return drawn(sample.truth[0], lambda canvas: cv.disc(canvas, *cv.centre(gap(sample)[0]), radius, colour))


def test_the_sizes_repeat_in_a_cycle_of_three_with_one_place_empty():
    for seed in SEEDS:
        sample = tasks.pattern(seed)
        cell, right = gap(sample)
        full, asked = (np.array([area(sample.truth[t], c) for c in CELLS]) for t in (-1, 0))
        start = int(np.argmax(full > 1)) // BOARD * BOARD
        row = full[start : start + 8]
        np.testing.assert_allclose(row[3:], row[:-3], rtol=0.05)
        np.testing.assert_allclose(sorted(row[:3]), np.pi * np.array(SIZES) ** 2, rtol=0.1)
        assert [c for c, a, f in zip(CELLS, asked, full, strict=True) if a < 1 < f] == [cell]
        assert area(sample.truth[-1], cell) == pytest.approx(np.pi * SIZES[right] ** 2, rel=0.1)


def test_every_size_is_asked_for():
    assert {gap(tasks.pattern(seed))[1] for seed in SEEDS} == {0, 1, 2}


def test_the_right_size_is_solved_and_the_others_are_not():
    names = ("small", "middle", "large")
    for seed in SEEDS:
        sample = tasks.pattern(seed)
        for size, radius in enumerate(SIZES):
            score = read(sample, filled(sample, radius))
            assert score.solved == (size == gap(sample)[1])
            assert score.answer == names[size]
        empty = read(sample, sample.truth[:1])
        assert (empty.solved, empty.score, empty.answer) == (False, 0.0, "empty")


def test_the_nearer_the_size_the_higher_the_score():
    sample = next(s for s in map(tasks.pattern, SEEDS) if gap(s)[1] == 2)
    small, middle, large = (read(sample, filled(sample, radius)).score for radius in SIZES)
    assert 0 < small < middle < large == 1


def test_what_is_none_of_the_sizes_is_unclear_and_not_solved(noise):
    for seed in SEEDS[:20]:
        sample = tasks.pattern(seed)
        whole = [filled(sample, radius)[0].astype(float) for radius in SIZES]
        empty = sample.truth[0].astype(float)
        for name, last in {
            "all sizes at once": sum(whole) / 3,
            "large, half faded in": (whole[2] + empty) / 2,
            "noise": noise(empty, seed),
            "all grey": np.full_like(empty, 128),
            "all in the colour of the discs": np.full_like(empty, 255) * cv.OBJECT,
        }.items():
            score = read(sample, np.round(last)[None].astype(np.uint8))
            assert (score.solved, score.answer) == (False, "unclear"), name


def test_a_faint_disc_is_none():
    sample = tasks.pattern(0)
    faint = 0.7 * sample.truth[0] + 0.3 * filled(sample, SIZES[0])[0]
    assert read(sample, faint.round()[None].astype(np.uint8)).answer == "empty"


def test_a_disc_of_another_colour_does_not_fill_the_gap():
    sample = next(s for s in map(tasks.pattern, SEEDS) if gap(s)[1] == 2)
    for colour in (cv.GOAL, cv.BALLS["green"], cv.BALLS["red"]):
        assert not read(sample, filled(sample, SIZES[2], colour)).solved


# ---- occlude


def question(sample):
    return known(sample)["end"], known(sample)["colour"]


def balls(sample, *placed):
    """The board with its bar, and balls of given colours in given cells."""
    canvas = cv.blank(BOARD)
    cv.rectangle(canvas, cv.CELL, 0, (BOARD - 1) * cv.CELL, BOARD * cv.CELL, cv.BAR)
    for cell, colour in placed:
        cv.disc(canvas, *cv.centre(cell), 6, cv.BALLS[colour])
    return cv.to_frames([canvas])


def test_the_ball_is_hidden_half_way_and_comes_out_on_the_other_side():
    for seed in SEEDS:
        sample = tasks.occlude(seed)
        (lane, end), colour = question(sample)
        start = (lane, BOARD - 1 - end)
        seen = [cv.likeness(frame, cv.BALLS[colour]) for frame in sample.truth]
        assert [cv.patch(seen[0], *cv.centre(c), 4) > 0.9 for c in (start, (lane, end))] == [True, False]
        assert [cv.patch(seen[-1], *cv.centre(c), 4) > 0.9 for c in (start, (lane, end))] == [False, True]
        hidden = sample.truth[len(sample.truth) // 2]
        np.testing.assert_array_equal(hidden, balls(sample)[0])


def test_every_colour_lane_and_direction_is_asked_for():
    asked = [question(tasks.occlude(seed)) for seed in range(60)]
    assert {colour for _, colour in asked} == set(cv.BALLS)
    assert {end for end, _ in asked} == {(lane, side) for lane in range(BOARD) for side in (0, BOARD - 1)}


@pytest.mark.parametrize("seed", SEEDS[:12])
def test_only_the_right_ball_in_the_right_place_is_solved(seed):
    sample = tasks.occlude(seed)
    end, colour = question(sample)
    other_colour = next(name for name in cv.BALLS if name != colour)
    lane, far = end
    other_lane, start = ((lane + 1) % BOARD, far), (lane, BOARD - 1 - far)
    right = read(sample, balls(sample, (end, colour)))
    assert (right.solved, right.score, right.answer) == (True, 1.0, f"{colour} at {lane}{far}")
    for name, spoiled, graded in [
        ("missing", balls(sample), 0),
        ("wrong lane", balls(sample, (other_lane, colour)), 0),
        ("never left", balls(sample, (start, colour)), 0),
        ("wrong colour", balls(sample, (end, other_colour)), 0.5),
        ("two balls", balls(sample, (end, colour), (other_lane, colour)), 0.99),
        ("left one behind", balls(sample, (end, colour), (start, colour)), 0.99),
    ]:
        score = read(sample, spoiled)
        assert not score.solved, name
        assert score.score == graded, name


def test_the_answer_names_every_ball_that_is_seen():
    sample = tasks.occlude(0)
    assert read(sample, balls(sample)).answer == "no ball"
    assert read(sample, balls(sample, ((3, 0), "red"), ((1, 3), "blue"))).answer == "blue at 13, red at 30"


def test_a_faint_ball_is_none():
    sample = tasks.occlude(0)
    end, colour = question(sample)
    faint = (0.3 * balls(sample, (end, colour)).astype(float) + 0.7 * balls(sample)).round().astype(np.uint8)
    assert read(sample, faint).answer == "no ball"


# ---- frames before the last one


def spoiled_before_the_end(sample):
    """Videos that are right in their last frame, by name."""
    truth = sample.truth
    early, late, backwards, gone, thing = (truth.copy() for _ in range(5))
    early[1:], late[:-1], backwards[:-1] = truth[-1], truth[0], truth[:-1][::-1]
    gone[4:8] = np.round(255 * np.array(cv.FLOOR))
    cell = next(c for c in CELLS if np.ptp(tile(truth[-1], c).astype(int)) < 10)
    for frame in thing[5:8]:
        frame[:] = drawn(frame, lambda canvas: cv.disc(canvas, *cv.centre(cell), 4, cv.WALL))[0]
    return {
        "at once": early,
        "at the end alone": late,
        "in another order": backwards,
        "a board that is wiped": gone,
        "a thing that comes": thing,
        "the last frame alone": truth[-1:],
        "every other frame": truth[::2],
    }


@pytest.mark.parametrize("seed", SEEDS[::10])
@pytest.mark.parametrize("task", ["circle", "pattern", "occlude"])
def test_what_is_wrong_before_the_last_frame_is_seen(task, seed):
    sample = tasks.make(task, seed)
    assert sample.score(sample.truth).solved
    for name, video in spoiled_before_the_end(sample).items():
        assert read(sample, video).solved, name
        score = sample.score(video)
        assert not score.solved and score.score < 1, name


def test_a_ball_that_comes_out_in_another_colour_or_shines_through_the_bar_is_wrong():
    sample = tasks.occlude(0)
    (lane, far), colour = question(sample)
    other = next(name for name in cv.BALLS if name != colour)
    for frames, cell, shown in ((slice(9, 11), (lane, far), other), (slice(5, 8), (lane, 2), colour)):
        video = sample.truth.copy()
        for frame in video[frames]:
            frame[:] = drawn(frame, lambda c, at=cell, s=shown: cv.disc(c, *cv.centre(at), 6, cv.BALLS[s]))[0]
        assert read(sample, video).solved and not sample.score(video).solved


def test_the_scenes_of_a_circle_belong_to_training_or_to_evaluation():
    trained, held = (
        [tasks.circle(s) for s in seeds] for seeds in (range(400), range(cv.EVAL_SEED, cv.EVAL_SEED + 60))
    )
    assert {s.split for s in trained} == {"train"} and {s.split for s in held} == {"eval"}
    assert not {s.truth[0].tobytes() for s in trained} & {s.truth[0].tobytes() for s in held}
    assert tasks.circle(3, kind="disc").split == tasks.circle(3, kind="square").split
