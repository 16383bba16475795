"""Wrong answers are whole answers: read as what they show, like right ones in every frame, and not solved."""

import pytest

from dit_lens import tasks
from dit_lens.tasks.wrong import wrong_answers


@pytest.mark.parametrize("task, fewest", [("tictac", 5), ("odd", 3), ("circle", 1)])
def test_a_wrong_answer_is_read_as_itself_and_is_wrong(task, fewest):
    for seed in range(1_000_000, 1_000_004):
        sample = tasks.make(task, seed)
        wrong = wrong_answers(sample)
        assert len(wrong) >= fewest and sum(answer.prior for answer in wrong) == pytest.approx(1)
        assert not {answer.text for answer in wrong} & {answer.text for answer in sample.answers}
        for answer in wrong:
            score = sample.score(answer.video)
            assert score.answer == answer.text and not score.solved
            assert answer.video.shape == sample.truth.shape and (answer.video[0] == sample.truth[0]).all()


def test_where_wrong_answers_are_not_known_there_are_none():
    assert wrong_answers(tasks.maze(1_000_000)) == []
