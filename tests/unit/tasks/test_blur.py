"""What a codec blurs takes no room from a scorer: right videos that move fast pass, and what hides beside them does not."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from dit_lens import tasks
from dit_lens.models.organism import DEFAULT, FOLDER, ORGANISMS
from dit_lens.tasks import blur, trail
from dit_lens.tasks import canvas as cv
from dit_lens.tasks.apart import _board, walkers
from dit_lens.tasks.canvas import EVAL_SEED
from dit_lens.tasks.rolls import _draw
from dit_lens.tasks.walkers import Walker, picture, trails
from spoiling import board_of, painted, walked_path

FAST = {"maze": {}, "loop": {}, "choose": {"size": 6}, "arrows": {"depth": 20}}
"""Walks of many pixels in a frame."""


@pytest.mark.parametrize("frames", [1, 5, 13])
def test_a_blur_is_what_the_codec_that_ships_makes_of_a_video(frames, through_codec):
    truth = tasks.pick(EVAL_SEED, num_frames=13).truth[:frames]
    back = blur.blur(truth / 255)
    np.testing.assert_allclose(back * 255, through_codec(truth), atol=1.01)  # which is rounded down
    assert blur.FROZEN.samefile(FOLDER / ORGANISMS[DEFAULT].frozen)


def test_a_video_of_other_lengths_is_blurred_as_one_that_stays_as_it_ends():
    truth = tasks.maze(EVAL_SEED).truth / 255
    longer = np.concatenate([truth[:7], truth[6:7], truth[6:7]])
    np.testing.assert_array_equal(blur.blur(truth[:7]), blur.blur(longer)[:7])


@pytest.mark.parametrize("frames", [13, 25])
@pytest.mark.parametrize("task", [*tasks.TASKS, "arrows of 32"])
def test_right_videos_of_any_speed_pass_after_the_codec(task, frames, through_codec):
    make = partial(tasks.arrows, depth=32) if task == "arrows of 32" else tasks.TASKS[task]
    samples = [
        make(EVAL_SEED + n, num_frames=frames) for n in (*range(4), 12, 21, 23, 39)
    ]  # green balls among them
    assert all(sample.score(through_codec(sample.truth)).solved for sample in samples)


def walk(sample, draw, frames=slice(1, -1)):
    """Return the right video with some of its frames drawn by `draw(walker, moves, frames a move)`."""
    out, last, walker = sample.truth.copy(), len(sample.truth) - 1, Walker(walked_path(sample))
    steps = len(walker.path) - 1
    for t in range(last + 1)[frames]:
        out[t] = cv.to_frames([draw(walker, steps * t / last, steps / last)])[0]
    return out


def with_disc(board, walker, moves, a_frame, ahead, colour):
    """Draw a second disc on the path, so many frames ahead."""
    out, _ = trails(board, [walker], [moves])
    _, (there,) = trails(board, [walker], [np.clip(moves + ahead * a_frame, 0, len(walker.path) - 1)])
    _, (here,) = trails(board, [walker], [moves])
    cv.disc(out, *there, 5, colour)
    cv.disc(out, *here, 5, walker.colour)
    return out


def with_other_trail(board, walker, moves, _, pixels):
    """Draw a trail that ends so many pixels before its agent, or behind it."""
    out, _ = trails(board, [walker], [np.clip(moves + pixels / 16, 0, len(walker.path) - 1)])
    _, (here,) = trails(board, [walker], [moves])
    cv.disc(out, *here, 5, walker.colour)
    return out


@pytest.mark.parametrize("seed", [EVAL_SEED, EVAL_SEED + 1])
@pytest.mark.parametrize("task", FAST)
def test_on_a_fast_walk_nothing_hides_where_the_agent_will_be(task, seed, through_codec):
    sample = tasks.make(task, seed, **{"num_frames": 13, **FAST[task]})
    board = board_of(sample)
    colours = {"trail": cv.TRAIL, "near a trail": (0.3, 0.4, 0.8), "goal": cv.GOAL, "agent": cv.AGENT}
    spoiled = {
        f"a disc {ahead} frames ahead, colour of {name}": walk(
            sample, partial(with_disc, board, ahead=ahead, colour=colour)
        )
        for ahead in (2, 3)
        for name, colour in colours.items()
    }
    spoiled |= {
        f"a trail that is off by {pixels}": walk(sample, partial(with_other_trail, board, pixels=pixels))
        for pixels in (12, 24, -16)
    }
    for name, video in spoiled.items():
        for shown in (video, through_codec(video)):
            assert not sample.score(shown).solved, name


@pytest.mark.parametrize("task", ["maze", "loop", "choose", "arrows", "bounce"])
def test_a_board_that_is_two_pixels_off_is_another(task, through_codec):
    sample = tasks.make(task, EVAL_SEED)
    board = board_of(sample)
    moved = np.roll(board, 2, 1)
    moved[:, [0, 1, -1]] = board[:, [0, 1, -1]]
    video = walk(sample, lambda walker, moves, _: picture(moved, [walker], [moves]))
    for shown in (video, through_codec(video)):
        assert not sample.score(shown).solved


def test_two_agents_need_their_pale_goals_and_trails_to_the_end(through_codec):
    for seed in range(EVAL_SEED, EVAL_SEED + 4):
        sample = tasks.apart(seed)
        known = sample.scorer.keywords
        edges = {answer.text: pair for answer, pair in zip(sample.answers, known["pairs"], strict=True)}
        both, board = walkers(edges[sample.score(sample.truth).answer]), _board(4, known["layout"])
        steps = [len(each.path) - 1 for each in both]

        def drawn(t, background, late, both=both, steps=steps):
            moves = [many * t / 24 for many in steps]
            out, _ = trails(background, both, [max(made - late / 16, 0) for made in moves])
            for each, head in zip(both, trails(background, both, moves)[1], strict=True):
                cv.disc(out, *head, 5, each.colour)
            return out

        bare = trail.board(4, [], [])
        for name, frames, background, late in (
            ("no goals at the end", range(20, 24), bare, 0),
            ("short trails", range(4, 24), board, 16),
        ):
            video = sample.truth.copy()
            video[list(frames)] = cv.to_frames([drawn(t, background, late) for t in frames])
            for shown in (video, through_codec(video)):
                assert not sample.score(shown).solved, (seed, name)


@pytest.mark.parametrize("task", ["circle", "odd", "pick", "tictac", "latin", "queens"])
def test_a_thing_that_is_two_pixels_off_is_wrong(task, through_codec):
    """All that is given moves, in some frames."""
    sample = tasks.make(task, EVAL_SEED)
    given = (
        sample.masks["given"][0]
        if "given" in sample.masks
        else sample.masks["named"][0] | sample.masks["others"][0]
    )
    video, (floor,) = sample.truth.copy(), cv.to_frames([cv.blank(sample.size[0] // 16)])
    rows, columns = np.nonzero(given)
    kept = columns < given.shape[1] - 2
    for t in range(3, 8):
        frame = video[t].copy()
        frame[given] = floor[given]
        frame[rows[kept], columns[kept] + 2] = video[t][rows[kept], columns[kept]]
        video[t] = frame
    for shown in (video, through_codec(video)):
        assert not sample.score(shown).solved


@pytest.mark.parametrize("task", ["latin", "queens"])
def test_a_third_of_another_answer_is_wrong(task):
    """Of every seed, also where two answers' colours lie near each other; where they do not, a quarter is."""
    for seed in range(EVAL_SEED, EVAL_SEED + 8):
        sample = tasks.make(task, seed)
        for answer in sample.answers[:3]:
            if not np.array_equal(answer.video, sample.truth):
                video = sample.truth.copy()
                video[1:9] = answer.video[1:9]
                assert not sample.score(video).solved, seed


@pytest.mark.parametrize("change", [-12, 5, 12])
@pytest.mark.parametrize("task", tasks.TASKS)
def test_a_right_video_may_be_a_little_brighter_or_darker(task, change, through_codec):
    for seed in (EVAL_SEED + 20, EVAL_SEED + 21):
        sample = tasks.make(task, seed)
        video = (through_codec(sample.truth).astype(int) + change).clip(0, 255).astype(np.uint8)
        assert sample.score(video).solved, seed


@pytest.mark.parametrize(
    "task, options", [("maze", {}), ("maze", {"num_frames": 25}), ("arrows", {"depth": 20})]
)
def test_a_trail_is_told_from_none_with_room_on_both_sides_after_the_codec(task, options, through_codec):
    for seed in range(EVAL_SEED, EVAL_SEED + 20):
        sample = tasks.make(task, seed, **options)
        size = sample.size[0] // cv.CELL
        right = trail.read_trail(sample.truth[-1], size)
        strength = trail.trail_strength(through_codec(sample.truth)[-1], size)
        assert min(strength[e] for e in right) > trail.LAID + 0.1
        assert max(s for e, s in strength.items() if e not in right) < trail.LAID - 0.1


@pytest.mark.parametrize("task", ["maze", "arrows", "choose"])
def test_an_agent_of_another_colour_is_wrong(task):
    for seed in range(EVAL_SEED + 80, EVAL_SEED + 83):
        sample = tasks.make(task, seed)
        board, path = board_of(sample), walked_path(sample)
        for colour in ((0.95, 0.6, 0.1), (0.6, 0.2, 0.5)):  # orange, purple
            painter = partial(picture, board, [Walker(path, colour)])
            video = walk(sample, lambda _, moves, a_frame, paint=painter: paint([moves]))
            assert not sample.score(video).solved


@pytest.mark.parametrize("task", ["roll", "back"])
def test_a_ball_two_pixels_off_its_lane_is_wrong(task, through_codec):
    for seed in range(EVAL_SEED, EVAL_SEED + 4):
        sample = tasks.make(task, seed)
        roll, moved = sample.scorer.keywords["roll"], sample.truth.copy()
        way = roll.way

        def beside(share, way=way, upright=roll.upright):
            x, y = way(share)
            return (x + 2, y) if upright else (x, y + 2)

        other = replace(roll, way=beside)
        moved[1:-1] = cv.to_frames([other.picture(t / 24) for t in range(1, 24)])
        for shown in (moved, through_codec(moved)):
            assert not sample.score(shown).solved


def test_a_trail_that_is_no_path_has_a_graded_score_by_its_frames():
    """`choose`: a goal is touched, but a second piece of trail lies elsewhere; where frames are wrong too, it is worth less."""
    sample = tasks.choose(EVAL_SEED + 1)
    size = sample.size[0] // 16
    path = walked_path(sample)
    taken = {*path, *sample.scorer.keywords["goals"]}
    a, b = next((a, b) for a, b in trail.grid_edges(size) if not taken & {a, b})

    def piece(canvas):
        trail._line(canvas, np.array(cv.centre(a)), np.array(cv.centre(b)), cv.TRAIL)

    one = sample.score(painted(sample.truth, piece, slice(-1, None)))
    more = sample.score(painted(sample.truth, piece, slice(5, None)))
    assert one.answer.startswith("goals ") and not one.solved
    assert 0 < more.score < one.score < 2 / 3


@pytest.mark.parametrize("task", ["arrows", "bounce", "loop"])
def test_an_agent_does_not_go_to_and_fro_between_what_a_codec_draws_and_what_is_seen(task, through_codec):
    sample = tasks.make(task, EVAL_SEED, num_frames=25, **({} if task == "loop" else {"depth": 2}))
    video = through_codec(sample.truth)
    ahead = walk(
        sample,
        lambda walker, moves, _: picture(
            board_of(sample), [walker], [min(moves + 9 / 16, len(walker.path) - 1)]
        ),
    )
    video[2:23:2] = ahead[2:23:2]
    assert not sample.score(video).solved


def test_a_new_wall_that_the_trail_hides_in_part_is_seen(through_codec):
    sample = tasks.maze(EVAL_SEED + 1)
    path, walls = walked_path(sample), sample.scorer.keywords["walls"]
    size, steps = sample.size[0] // 16, len(path) - 1
    for t in range(5, 12):
        behind = int(steps * t / 12) - 1
        board = trail.board(size, {*walls, trail.edge(path[behind], path[behind + 1])}, [path[-1]])
        video = sample.truth.copy()
        (video[t],) = cv.to_frames([picture(board, [Walker(path)], [steps * t / 12])])
        assert not sample.score(video).solved, t


@pytest.mark.parametrize("task", ["arrows", "bounce"])
def test_signs_do_not_go_where_the_agent_will_be(task, through_codec):
    sample = tasks.make(task, EVAL_SEED, num_frames=25)
    things = next(iter(sample.scorer.keywords["things"].values()))
    path, told = walked_path(sample), next(iter(things.keywords.values()))
    for ahead in (1, 2, 3):
        video = sample.truth.copy()
        for t in range(1, 24):
            made = (len(path) - 1) * t / 24
            gone = path[min(int(made) + ahead, len(path) - 1)]
            board = trail.board(sample.size[0] // 16, [], [])
            things.func(board, {cell: sign for cell, sign in told.items() if cell != gone})
            (video[t],) = cv.to_frames([picture(board, [Walker(path)], [made])])
        assert not sample.score(video).solved


@pytest.mark.parametrize("task", ["roll", "occlude"])
def test_a_ball_is_not_gone_for_a_frame_and_does_not_go_back(task):
    for seed in range(EVAL_SEED, EVAL_SEED + 4):
        sample = tasks.make(task, seed, num_frames=25)
        known = sample.scorer.keywords
        roll = known["roll"] if "roll" in known else known["legal"].keywords["roll"]
        seen = [int(mask.sum()) for mask in sample.masks["ball"]]
        gone = max(t for t in range(1, 12) if seen[t] > 0.5 * max(seen))
        spoiled = {name: sample.truth.copy() for name in ("gone", "to and fro", "late", "swapped")}
        spoiled["gone"][gone] = cv.to_frames([_draw(roll.standing())])[0]
        for t in range(1, 24):
            spoiled["late"][t] = cv.to_frames([roll.picture(max(t - 4, 0) / 24)])[0]
        for t in range(1, 24, 2):
            spoiled["to and fro"][t] = cv.to_frames([roll.picture(min(t + 3, 24) / 24)])[0]
        for t in range(1, 23, 2):
            spoiled["swapped"][[t, t + 1]] = spoiled["swapped"][[t + 1, t]]
        for name, video in spoiled.items():
            assert not sample.score(video).solved, (seed, name)


@pytest.mark.parametrize("task", tasks.TASKS)
def test_another_number_of_frames_is_a_share_of_the_score(task):
    sample = tasks.make(task, EVAL_SEED)
    few, twice = sample.score(sample.truth[[0, -1]]), sample.score(np.repeat(sample.truth, 2, 0))
    assert few.score <= 2 / len(sample.truth) and not few.solved
    assert twice.score <= 0.5 and not twice.solved
