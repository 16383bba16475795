"""Complete answers are read with a margin; a blend is none of its parts, and a part of an answer is none."""

import numpy as np
import pytest

import dit_lens as dl
from dit_lens import tasks
from dit_lens.errors import TaskError
from dit_lens.tasks import canvas as cv
from dit_lens.tasks import explore, trail
from dit_lens.tasks.complete import READERS, complete_answer, require_complete
from dit_lens.tasks.plans import agent_cells, require_agent
from dit_lens.tasks.rivals import rival_answers

SEEDS = range(1_000_000, 1_000_006)


def blend(a, b, share):
    return (a.astype(float) * share + b * (1 - share)).round().astype(np.uint8)


@pytest.mark.parametrize("task", READERS)
def test_right_videos_are_read_after_the_codec_and_the_question_holds_no_answer(task, through_codec):
    for seed in SEEDS:
        sample = tasks.make(task, seed)
        for answer in sample.answers:
            assert complete_answer(sample, answer.video) == answer.text
            assert complete_answer(sample, through_codec(answer.video)) == answer.text
        assert complete_answer(sample, sample.truth[:1]) == ""


@pytest.mark.parametrize("task", ["loop", "latin", "queens", "tictac", "odd"])
def test_a_blend_is_an_answer_only_where_its_share_is_over_the_margin(task):
    for seed in SEEDS:
        sample = tasks.make(task, seed)
        a, b = rival_answers(sample)[:2]
        assert complete_answer(sample, blend(a.video, b.video, 0.5)) == ""
        assert complete_answer(sample, blend(a.video, b.video, 0.9)) == a.text
        if task != "odd":  # a full ring that has not been through the codec is more than full
            assert complete_answer(sample, blend(a.video, b.video, 0.55)) == ""


def test_wrong_answers_are_read_as_such():
    maze = tasks.maze(1_000_000)
    known = maze.scorer.keywords
    (r0, c0), (r1, c1) = known["start"], known["goal"]
    path = [(r0, c) for c in range(c0, c1, np.sign(c1 - c0) or 1)] + [
        (r, c1) for r in range(r0, r1, np.sign(r1 - r0) or 1)
    ]
    path = [*path, (r1, c1)]
    wrong = trail.walk(trail.board(6, known["walls"], [known["goal"]]), path, 13)
    read = complete_answer(maze, wrong)
    assert read == trail.spell(trail.path_edges(path), path[0]) and read not in [a.text for a in maze.answers]
    short = trail.walk(trail.board(6, known["walls"], [known["goal"]]), path[:-1], 13)
    assert complete_answer(maze, short) == ""  # a part of an answer is none
    for task in ("tictac", "odd"):
        sample = tasks.make(task, 1_000_001)
        right = {a.text for a in sample.answers}
        texts = [a.text for a in rival_answers(sample)]
        assert [complete_answer(sample, a.video) for a in rival_answers(sample)] == texts
        assert len(right) == 1 and right < {*texts}
    latin = tasks.latin(1_000_000)
    video = latin.truth.copy()
    row = video[-1, : cv.CELL]
    video[-1, : cv.CELL] = np.concatenate([row[:, : cv.CELL]] * 4, 1)  # one colour four times in a row
    assert len({*complete_answer(latin, video)[:4]}) == 1


def test_the_way_of_arrows_ends_where_there_is_no_arrow():
    sample = tasks.arrows(1_000_000)
    known = sample.scorer.keywords
    board = trail.board(known["size"], [], [])
    known["things"]["arrows"](board)
    whole = trail.walk(board, known["path"], 25)
    assert complete_answer(sample, whole) == sample.answers[0].text
    assert complete_answer(sample, trail.walk(board, known["path"][:-1], 25)) == ""


@pytest.mark.parametrize(
    "task, reason", [("choose", "every trail to one goal is right"), ("circle", "a part of the rings")]
)
def test_tasks_whose_answers_cannot_be_wrong_are_refused_with_the_reason(task, reason):
    with pytest.raises(TaskError, match=reason):
        require_complete(tasks.make(task, 1))
    with pytest.raises(TaskError, match="no reader knows it"):
        require_complete(dl.Sample("a cat", size=(16, 16)))


def test_candidates_have_shares_of_sum_1_and_the_right_ones_are_among_them():
    for task in ("choose", "loop", "latin", "queens", "tictac", "odd", "pattern"):
        sample = tasks.make(task, 1_000_002)
        rivals = rival_answers(sample)
        assert len(rivals) > 1 and sum(a.prior for a in rivals) == pytest.approx(1)
        texts = [a.text for a in rivals]
        assert {a.text for a in sample.answers} <= {*texts} and len({*texts}) == len(texts)
        right = next(a for a in rivals if a.text == sample.score(sample.truth).answer)
        assert task == "choose" or np.array_equal(right.video, sample.truth)
    with pytest.raises(TaskError, match="one right answer"):
        rival_answers(tasks.maze(1_000_000))


@pytest.mark.parametrize("task", ["maze", "loop", "choose", "arrows", "bounce"])
def test_the_plan_of_a_right_video_is_its_walk_also_after_the_codec(task, through_codec):
    alike = []
    for seed in SEEDS:
        sample = tasks.make(task, seed)
        plan, decoded = (agent_cells(sample, v) for v in (sample.truth, through_codec(sample.truth)))
        walked = [cell for n, cell in enumerate(plan) if n == 0 or cell != plan[n - 1]]
        assert None not in plan
        edges = trail.read_trail(sample.truth[-1], sample.scorer.keywords["size"])
        if len(walked) == len(edges) + 1:  # slow enough that no cell is jumped over
            assert trail.path_edges(walked) == edges
        alike.append(np.mean([a == b for a, b in zip(plan, decoded, strict=True)]))
    assert np.mean(alike) > 0.8


def test_no_agent_two_agents_and_noise_are_no_plan(noise):
    sample = tasks.choose(1_000_000, goals=2)
    a, b = (answer.video for answer in sample.answers)
    assert agent_cells(sample, blend(a, b, 0.5))[-1] is None
    assert agent_cells(sample, noise(a))[1:] == [None] * (len(a) - 1)
    with pytest.raises(TaskError, match="no one agent"):
        require_agent(tasks.apart(1))


def test_branchings_are_counted_by_hand():
    maze = tasks.maze(1_000_000)
    known = maze.scorer.keywords
    route = trail.follow(known["routes"][0], known["start"])
    count = 0
    for n, (r, c) in enumerate(route[:-1]):
        around = [(r, c + 1), (r, c - 1), (r + 1, c), (r - 1, c)]
        inside = [cell for cell in around if min(cell) >= 0 and max(cell) < known["size"]]
        open_to = {cell for cell in inside if tuple(sorted([(r, c), cell])) not in known["walls"]}
        count += bool(open_to - {route[n + 1]} - {*route[max(n - 1, 0) : n]})
    assert explore.branchings(maze) == count > 0
    assert explore.branchings(tasks.loop(1_000_000)) is None and explore.branchings(tasks.arrows(1)) is None
    assert explore.path_length(tasks.arrows(1, depth=5)) == 6
