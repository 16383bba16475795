"""Scorers that read every frame: what is wrong in one of them is not solved, wherever it is."""

import numpy as np
import pytest

from dit_lens import tasks
from dit_lens.tasks import canvas as cv
from dit_lens.tasks import trail
from dit_lens.tasks.canvas import CELL, EVAL_SEED
from dit_lens.tasks.walkers import Walker, picture, trails
from spoiling import board_of, painted, walked_path

WALKS = {
    "arrows": {"depth": 10},
    "bounce": {"depth": 4},
    "maze": {"num_frames": 25},
    "loop": {"num_frames": 25},
    "choose": {"num_frames": 25, "size": 6},
}
SIGNS = {"maze": "walls", "loop": "walls", "choose": "goals"}
"""What tells the way; elsewhere it is what the task is called."""
FADES = ("latin", "tictac", "odd", "pick", "queens")


def free_cell(sample):
    """Return a cell that neither agent nor trail comes near."""
    busy = (sample.masks["agent"] | sample.masks["trail"]).any(0)
    size = busy.shape[0] // CELL
    tiles = busy.reshape(size, CELL, size, CELL).any((1, 3))
    cells = [cell for cell in np.ndindex(size, size) if not tiles[cell]]
    return max(cells, key=lambda cell: min(np.hypot(cell[0] - r, cell[1] - c) for r, c in np.argwhere(tiles)))


def spoil_walk(sample):
    """Return spoiled videos by name; most are right in their last frame, and wrong in some before it."""
    truth, (x, y) = sample.truth, cv.centre(free_cell(sample))
    size = sample.size[0] // CELL
    path, middle = [cv.centre(cell) for cell in walked_path(sample)], slice(8, 12)
    jump, back, gone = truth.copy(), truth.copy(), truth.copy()
    jump[3:16] = truth[2]  # it waits, and is far on in the next frame
    back[10:14] = truth[2]
    gone[12] = painted(truth, lambda c: cv.disc(c, *_agent(sample, 12), 7, cv.FLOOR))[12]
    board, bare = board_of(sample), trail.board(size, [], [])
    no_trail, full_trail, no_signs = truth.copy(), truth.copy(), truth.copy()
    known = sample.scorer.keywords
    signs = SIGNS.get(sample.task) or next(iter(known["things"]))
    for t, frame in enumerate(truth):
        agent = (
            sample.masks["agent"][t]
            | np.roll(sample.masks["agent"][t], 1, 0)
            | np.roll(sample.masks["agent"][t], 1, 1)
        )
        no_trail[t][~agent] = cv.to_frames([board])[0][~agent]
        full_trail[t][~agent] = truth[-1][~agent]
        ahead = sample.masks[signs][t]
        near_path = np.zeros(frame.shape[:2], bool)
        for px, py in path:
            near_path[int(py) - 8 : int(py) + 8, int(px) - 8 : int(px) + 8] = True
        no_signs[t][ahead & near_path] = cv.to_frames([bare])[0][ahead & near_path]
    no_trail[-1] = full_trail[-1] = truth[-1]
    return {
        "a second agent": painted(truth, lambda c: cv.disc(c, x, y, 5, cv.AGENT), middle),
        "a faint second agent": painted(truth, lambda c: _faint(c, x, y, 0.39)),
        "a thing that comes": painted(
            truth, lambda c: cv.rectangle(c, x - 6, y - 6, x + 6, y + 6, cv.WALL), middle
        ),
        "a board that is wiped": painted(
            truth, lambda c: cv.rectangle(c, x - 8, y - 8, x + 8, y + 8, cv.GOAL), middle
        ),
        "a block on the path": painted(
            truth,
            lambda c: cv.rectangle(
                c, path[-1][0] - 7, path[-1][1] - 7, path[-1][0] + 7, path[-1][1] + 7, cv.GOAL
            ),
            slice(0, 6),
        ),
        "a jump": jump,
        "a way back": back,
        "no agent": gone,
        "no trail": no_trail,
        "the whole trail at once": full_trail,
        "no signs on the way": no_signs,
        "a start further on": np.concatenate([truth[6:7], truth[1:]]),
        "the last frame alone": truth[-1:],
        "first and last frame": truth[[0, -1]],
        "every other frame": truth[::2],
    }


def _faint(canvas, x, y, share):
    disc = canvas.copy()
    cv.disc(disc, x, y, 5, cv.AGENT)
    canvas += share * (disc - canvas)


def _agent(sample, t):
    rows, columns = np.nonzero(sample.masks["agent"][t])
    return columns.mean() + 0.5, rows.mean() + 0.5


@pytest.mark.parametrize("seed", [EVAL_SEED + n for n in range(8)])
@pytest.mark.parametrize("task", WALKS)
def test_a_walk_is_judged_in_every_frame(task, seed):
    sample = tasks.make(task, seed, **WALKS[task])
    assert sample.score(sample.truth).solved
    for name, video in spoil_walk(sample).items():
        score = sample.score(video)
        assert not score.solved and score.score < 1, name


@pytest.mark.parametrize("task", WALKS)
def test_a_walk_through_another_cell_is_wrong(task):
    sample = tasks.make(task, EVAL_SEED, **WALKS[task])
    other = tasks.make(task, EVAL_SEED + 1, **WALKS[task])
    score = sample.score(other.truth)
    assert not score.solved and score.score < 0.5


@pytest.mark.parametrize("seed", [EVAL_SEED + n for n in range(2)])
@pytest.mark.parametrize("task", ["maze", "loop"])
def test_a_wall_that_is_gone_for_a_while_is_wrong(task, seed):
    """Every other wall beside the path, where the agent passes it, and one at a time."""
    sample = tasks.make(task, seed)
    walls, path = sample.scorer.keywords["walls"], walked_path(sample)
    near = sorted(wall for wall in walls if {*wall} & {*path})
    assert near
    size = sample.size[0] // CELL
    (drawn,) = cv.to_frames([trail.board(size, walls, [])])
    for wall in near[::2]:
        (without,) = cv.to_frames([trail.board(size, walls - {wall}, [])])
        gone = (drawn != without).any(-1)
        video = sample.truth.copy()
        video[4:8, gone] = without[gone]
        assert not sample.score(video).solved, wall


@pytest.mark.parametrize("seed", [EVAL_SEED + n for n in range(4)])
@pytest.mark.parametrize("task", [task for task in WALKS if task != "choose"])
def test_a_new_wall_on_the_path_is_wrong_beside_the_agent_too(task, seed, through_codec):
    """It stands for five frames, while the agent walks through it; drawn on all that is there, and below trail and agent."""
    sample = tasks.make(task, seed, **WALKS[task])
    path, last = walked_path(sample), len(sample.truth) - 1
    size = sample.size[0] // CELL
    for k in range(2, len(path) - 2, 3):
        wall = trail.edge(path[k], path[k + 1])
        middle = round((k + 0.5) / (len(path) - 1) * last)
        above, below = (sample.truth.copy() for _ in range(2))
        for t in range(middle - 2, min(middle + 3, last)):
            canvas = above[t].astype(np.float32) / 255
            trail.paint_walls(canvas, size, [wall])
            (above[t],) = cv.to_frames([canvas])
            bare = board_of(sample)
            trail.paint_walls(bare, size, [wall])
            (below[t],) = cv.to_frames([picture(bare, [Walker(path)], [(len(path) - 1) * t / last])])
        for name, video in {"above": above, "below": below, "codec": through_codec(above)}.items():
            assert not sample.score(video).solved, (name, wall)


@pytest.mark.parametrize("task", WALKS)
def test_thin_walls_outer_walls_and_other_colours_of_the_agent_are_seen(task):
    sample = tasks.make(task, EVAL_SEED, **WALKS[task])
    side, path, last = sample.size[0], walked_path(sample), len(sample.truth) - 1
    (x, y), (x1, y1) = (cv.centre(cell) for cell in path[1:3])
    across = (x + x1) // 2, (y + y1) // 2

    def line(canvas):
        (cx, cy), upright = across, y == y1
        half = (0.5, 8) if upright else (8, 0.5)
        cv.rectangle(
            canvas, cx - half[0] + 0.5, cy - half[1], cx + half[0] + 0.5, cy + half[1], (0.0, 0.0, 0.0)
        )

    def gate(canvas):
        cv.rectangle(canvas, 20, 0, side - 20, 1, cv.FLOOR)

    spoiled = {
        "a line of a pixel across the way": painted(sample.truth, line, slice(1, -1)),
        "a gate in the outer wall": painted(sample.truth, gate),
    }
    for name, colour in {"magenta": (1.0, 0.0, 0.65), "orange": (1.0, 0.6, 0.0)}.items():
        video = sample.truth.copy()
        for t in range(1, last):
            shown = picture(board_of(sample), [Walker(path, colour)], [(len(path) - 1) * t / last])
            (video[t],) = cv.to_frames([shown])
        spoiled[f"an agent of {name}"] = video
    for name, video in spoiled.items():
        assert not sample.score(video).solved, name


@pytest.mark.parametrize("task", WALKS)
def test_two_halves_of_an_agent_are_not_one(task):
    sample = tasks.make(task, EVAL_SEED, **WALKS[task])
    path, last, board = walked_path(sample), len(sample.truth) - 1, board_of(sample)
    for apart in (10, 14):
        video = sample.truth.copy()
        for t in range(3, last - 2):
            shown, (head,) = trails(board, [Walker(path)], [(len(path) - 1) * t / last])
            for side in (-1, 1):
                _faint(shown, head[0] + side * apart / 2, head[1], 0.5)
            (video[t],) = cv.to_frames([shown])
        assert not sample.score(video).solved, apart


def test_an_answer_that_is_walked_and_ends_in_another_is_wrong():
    for seed in range(EVAL_SEED, EVAL_SEED + 8):
        sample = tasks.loop(seed)
        one, other = (answer.video for answer in sample.answers)
        assert sample.score(one).solved and sample.score(other).solved
        assert not sample.score(np.concatenate([one[:-1], other[-1:]])).solved


def spoil_fade(sample):
    """Return spoiled videos by name."""
    truth, order = sample.truth, np.random.default_rng(0).permutation(24)
    rows, columns = np.nonzero(sample.masks["given"][0])
    x, y = cv.centre((rows[0] // CELL, columns[0] // CELL))
    late, early, shuffled, swapped = (truth.copy() for _ in range(4))
    late[:-1], early[1:] = truth[0], truth[-1]
    shuffled[:-1] = truth[order]
    swapped[[10, 13]] = truth[[13, 10]]
    half = np.linspace(0, 0.5, len(truth)), np.linspace(0, 1, len(truth)) ** 3, np.full(len(truth), 0.5)
    faint, slow, level = (faded(truth, shares) for shares in half)
    slow[-1] = level[-1] = truth[-1]
    level[0] = truth[0]
    spoiled = {
        "half of the answer at the end": faint,
        "an answer that is faint in between": slow,
        "half of the answer all the time": level,
        "two frames in each other's place": swapped,
        "the answer at the end alone": late,
        "the answer at once": early,
        "frames in another order": shuffled,
        "the last frame alone": truth[-1:],
        "a thing that is gone for a while": painted(
            truth, lambda c: cv.disc(c, x, y, 4.4, cv.FLOOR), slice(5, 9)
        ),
    }
    others = [answer.video for answer in sample.answers if not np.array_equal(answer.video, truth)]
    if others:
        rival = others[0].copy()
        rival[-1] = truth[-1]
        spoiled["another answer before"] = rival
    return spoiled


@pytest.mark.parametrize("task", [*FADES, "circle", "pattern"])
def test_the_graded_score_of_a_fade_falls_with_every_frame_that_is_wrong(task):
    sample, count = tasks.make(task, EVAL_SEED), 0
    noise = np.random.default_rng(0).integers(0, 256, sample.truth.shape, np.uint8)
    scores = []
    for count in (0, 1, len(noise) // 2, len(noise) - 1):
        video = sample.truth.copy()
        video[1 : 1 + count] = noise[1 : 1 + count]
        video[-1] = sample.truth[-1]
        scores.append(sample.score(video).score)
    assert scores == sorted(scores, reverse=True) and len({*scores}) == 4
    assert scores[1] > 0.75  # of `odd` and `pick` the last frame is worth 0.8, however sharp its ring
    wrong = np.concatenate([sample.truth[:1], noise[1:-1], sample.truth[:1]])
    assert sample.score(wrong).score <= 0.2


def faded(truth, shares):
    """Return the right video with other shares of the answer in its frames."""
    first, last = truth[0].astype(np.float32), truth[-1].astype(np.float32)
    return np.stack([(first + (last - first) * share).round().astype(np.uint8) for share in shares])


@pytest.mark.parametrize("seed", [EVAL_SEED + n for n in range(8)])
@pytest.mark.parametrize("task", FADES)
def test_a_fade_is_judged_in_every_frame(task, seed):
    sample = tasks.make(task, seed)
    assert sample.score(sample.truth).solved
    for name, video in spoil_fade(sample).items():
        score = sample.score(video)
        assert not score.solved and score.score < 1, name


@pytest.mark.parametrize("seed", [EVAL_SEED + n for n in range(8)])
@pytest.mark.parametrize("task", FADES)
def test_what_is_given_is_all_that_the_first_frame_shows(task, seed):
    sample = tasks.make(task, seed)
    first = cv.to_frames([sample.scorer.keywords["draw"](None), cv.blank(sample.size[0] // CELL)])
    drawn = (first[0] != first[1]).any(-1)
    assert drawn.any()
    for given in sample.masks["given"]:
        np.testing.assert_array_equal(given, drawn)


@pytest.mark.parametrize("colour", [cv.GOAL, cv.WALL, cv.BALLS["green"]])
def test_a_wrong_disc_of_any_colour_is_wrong(colour):
    sample = tasks.tictac(EVAL_SEED)
    known = sample.scorer.keywords["draw"].keywords["discs"]
    right = sample.scorer.keywords["answers"][0]
    free = next(cell for cell in np.ndindex(4, 4) if cell not in known and cell != right)
    video = painted(sample.truth, lambda c: cv.disc(c, *cv.centre(free), 5.5, colour))
    assert not sample.score(video).solved


@pytest.mark.parametrize("opacity", [1.0, 0.4])
@pytest.mark.parametrize("colour", [cv.RING, cv.OBJECT, cv.BALLS["green"], cv.BALLS["blue"]])
@pytest.mark.parametrize("task", ["odd", "pick", "circle"])
def test_rings_around_other_objects_are_wrong(task, colour, opacity, monkeypatch):
    sample = tasks.make(task, EVAL_SEED)
    known = sample.scorer.keywords
    right = known["answers"][0] if "answers" in known else known["read"].keywords["wanted"]
    wrong = next(cell for cell in np.ndindex(4, 4) if cell not in right)
    monkeypatch.setattr(cv, "RING", colour)
    for frames in (slice(1, -1), slice(4, 7), slice(None)):
        video = painted(sample.truth, lambda c: cv.ring(c, *cv.centre(wrong), 6.5, 2, opacity), frames)
        monkeypatch.undo()
        assert not sample.score(video).solved
        monkeypatch.setattr(cv, "RING", colour)


def test_the_depth_of_arrows_is_what_is_walked():
    for depth in (2, 8, 20, 32):
        path = tasks.arrows(3, depth=depth).scorer.keywords["path"]
        assert len(path) == depth + 1 == len(set(path))


def test_the_graded_score_of_a_walk_is_how_far_it_was_right():
    sample = tasks.arrows(EVAL_SEED, depth=10, num_frames=21)
    half = np.concatenate([sample.truth[:11], np.repeat(sample.truth[10:11], 10, 0)])
    score = sample.score(half)
    assert not score.solved and 0.25 <= score.score <= 0.6


def test_a_latin_square_has_the_answers_that_it_says():
    for seed in range(EVAL_SEED, EVAL_SEED + 20):
        sample = tasks.latin(seed)
        texts = [answer.text for answer in sample.answers]
        assert 2 <= len(texts) <= 8 and len(set(texts)) == len(texts)
        for text in texts:
            square = np.array(list(text)).reshape(4, 4)
            assert all(len(set(line)) == 4 for line in (*square, *square.T))


def test_one_cell_wins():
    from dit_lens.tasks.tictac import LINES

    for seed in range(EVAL_SEED, EVAL_SEED + 20):
        sample = tasks.tictac(seed)
        known = sample.scorer.keywords["draw"].keywords["discs"]
        right = sample.scorer.keywords["read"].keywords["right"]
        reds = {cell for cell, colour in known.items() if colour == "red"}
        assert any({*line} <= reds | {right} for line in LINES)
        empty = {cell for cell in np.ndindex(4, 4)} - set(known) - {right}
        assert not any({*line} <= reds | {cell} for line in LINES for cell in empty)


def test_queens_are_one_in_a_row_and_a_column_and_do_not_touch():
    for seed in range(EVAL_SEED, EVAL_SEED + 20):
        sample = tasks.queens(seed)
        given, blocked = sample.scene.layout
        texts = [answer.text for answer in sample.answers]
        assert 2 <= len(texts) <= 8 and len(set(texts)) == len(texts)
        for text in texts:
            cells = [(int(r), int(c)) for r, c in text.split()]
            assert {*given} <= {*cells} and not {*blocked} & {*cells}
            assert [r for r, _ in cells] == sorted(c for _, c in cells) == list(range(6))
            assert all(
                max(abs(a - c), abs(b - d)) > 1 for a, b in cells for c, d in cells if (a, b) != (c, d)
            )


def test_all_placings_of_queens_are_enumerated():
    from itertools import product

    from dit_lens.tasks.queens import PLACINGS

    apart = [
        columns
        for columns in product(range(6), repeat=6)
        if len({*columns}) == 6 and all(abs(columns[i] - columns[i + 1]) > 1 for i in range(5))
    ]
    assert [tuple(c for _, c in placing) for placing in PLACINGS] == apart
    assert len(apart) == 90


def test_a_wrong_placing_of_queens_is_not_solved():
    sample = tasks.queens(EVAL_SEED)
    draw, right = sample.scorer.keywords["draw"], sample.scorer.keywords["answers"][0]
    swapped = ((0, right[1][1]), (1, right[0][1]), *right[2:])
    for wrong in (right[:-1], swapped, (*right, (right[0][0], (right[0][1] + 3) % 6))):
        score = sample.score(cv.fade(draw(None), draw(wrong), 25))
        assert not score.solved and score.score < 1
