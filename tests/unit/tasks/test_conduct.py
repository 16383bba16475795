"""Scorers that read every frame: what is wrong in one of them is not solved, wherever it is."""

import numpy as np
import pytest

from dit_lens import tasks
from dit_lens.tasks import canvas as cv
from dit_lens.tasks.canvas import CELL, EVAL_SEED

WALKS = {"arrows": {"depth": 10}, "bounce": {"depth": 4}}
FADES = ("latin", "tictac", "odd")


def painted(video, draw, frames=slice(None)):
    """Return a video with something drawn on some of its frames."""
    out = video.copy()
    for t in range(len(video))[frames]:
        canvas = out[t].astype(np.float32) / 255
        draw(canvas)
        out[t] = cv.to_frames([canvas])[0]
    return out


def free_cell(sample):
    """Return a cell that neither agent nor trail comes near."""
    busy = (sample.masks["agent"] | sample.masks["trail"]).any(0)
    size = busy.shape[0] // CELL
    tiles = busy.reshape(size, CELL, size, CELL).any((1, 3))
    cells = [cell for cell in np.ndindex(size, size) if not tiles[cell]]
    return max(cells, key=lambda cell: min(np.hypot(cell[0] - r, cell[1] - c) for r, c in np.argwhere(tiles)))


def spoil_walk(sample):
    """Return spoiled videos by name: each is right in its last frame, and wrong in some before it."""
    truth, (x, y) = sample.truth, cv.centre(free_cell(sample))
    middle = slice(8, 12)
    jump = truth.copy()
    jump[3:16] = truth[2]  # it waits, and is far on in the next frame
    back = truth.copy()
    back[10:14] = truth[2]
    gone = truth.copy()
    gone[12] = painted(truth, lambda c: cv.disc(c, *_agent(sample, 12), 7, cv.FLOOR))[12]
    return {
        "a second agent": painted(truth, lambda c: cv.disc(c, x, y, 5, cv.AGENT), middle),
        "a thing that comes": painted(
            truth, lambda c: cv.rectangle(c, x - 6, y - 6, x + 6, y + 6, cv.WALL), middle
        ),
        "a board that is wiped": painted(
            truth, lambda c: cv.rectangle(c, x - 8, y - 8, x + 8, y + 8, cv.GOAL), middle
        ),
        "a jump": jump,
        "a way back": back,
        "no agent": gone,
    }


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
        assert score.answer == sample.score(sample.truth).answer  # the last frame alone would be right


@pytest.mark.parametrize("task", WALKS)
def test_a_walk_through_another_cell_is_wrong(task):
    sample = tasks.make(task, EVAL_SEED, **WALKS[task])
    other = tasks.make(task, EVAL_SEED + 1, **WALKS[task])
    score = sample.score(other.truth)
    assert not score.solved and score.score < 0.5


@pytest.mark.parametrize("seed", [EVAL_SEED + n for n in range(8)])
@pytest.mark.parametrize("task", FADES)
def test_a_board_that_changes_elsewhere_is_wrong(task, seed):
    sample = tasks.make(task, seed)
    rows, columns = np.nonzero(sample.masks["given"][0])
    r, c = rows[0] // CELL, columns[0] // CELL
    x, y = cv.centre((r, c))
    truth = sample.truth
    for colour in (cv.FLOOR, cv.RING):  # a thing that is gone, and another in its place
        spoiled = painted(truth, lambda canvas, c=colour: cv.disc(canvas, x, y, 4.4, c), slice(5, 9))
        unlike = np.abs(spoiled.astype(int) - truth).max() > 60  # a red disc over a red one is none
        assert sample.score(spoiled).solved is not unlike
    assert sample.score(truth).solved


def test_the_depth_of_arrows_is_what_is_walked():
    for depth in (2, 8, 20, 32):
        path = tasks.arrows(3, depth=depth).scorer.keywords["path"]
        assert len(path) == depth + 1 == len(set(path))


def test_the_graded_score_of_a_walk_is_how_far_it_was_right():
    sample = tasks.arrows(EVAL_SEED, depth=10, num_frames=21)
    half = np.concatenate([sample.truth[:11], np.repeat(sample.truth[10:11], 10, 0)])
    score = sample.score(half)
    assert not score.solved and 0.3 <= score.score <= 0.6


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
