"""What probes are asked on each task, what they read, and that folds keep scenes apart."""

import numpy as np
import pytest

import dit_lens as dl
from dit_lens.experiments import probes as probing
from dit_lens.tasks.permanence import ball, lanes


def test_goals_and_objects_are_read_at_their_cells():
    state = np.arange(2 * 4 * 4 * 3, dtype=np.float32).reshape(2, 4, 4, 3)
    choose = dl.tasks.choose(1_000_000)
    (goal,) = probing.ask("choose")
    cells = choose.scorer.keywords["goals"]
    assert np.array_equal(goal.read(choose, state), [state[-1, r, c] for r, c in cells])
    assert goal.right(choose, "goal 1") == "goal 1" and goal.right(choose, "goals [0, 1] by edges") == ""
    circle = dl.tasks.circle(1_000_000)
    (rings,) = probing.ask("circle")
    truth = rings.right(circle, circle.score(circle.truth).answer)
    wanted = circle.scorer.keywords["read"].keywords["wanted"]
    assert rings.labels(circle, truth).sum() == len(wanted)
    assert rings.name_of(circle, np.where(rings.labels(circle, truth), 1.0, -1.0)) == truth
    assert probing.ask("maze") == []


def test_the_hidden_ball_is_looked_for_behind_the_bar_alone():
    colour, lane = probing.ask("occlude")
    sample = dl.tasks.occlude(1_000_000)
    state = np.zeros((4, 4, 4, 2), np.float32)
    state[2, :, 1:3] = 7  # frames 5 to 8, of which all hide the ball
    assert (lane.read(sample, state) == 7).all() and lane.read(sample, state).shape == (4, 2)
    state[:2], state[3], state[2, :, [0, 3]] = 1, 1, 1
    assert (colour.read(sample, state) == 7).all() and colour.read(sample, state).shape == (1, 2)
    assert (colour.right(sample, "whatever"), lane.right(sample, "")) == lanes(sample)


def test_folds_cut_layouts_so_that_each_side_has_all_colours_and_lanes():
    (question, _), scenes = probing.ask("occlude"), [dl.tasks.occlude(i) for i in range(400)]
    layouts = {(*lanes(s), ball(s)[1]): question.fold(s) for s in scenes}
    assert len(layouts) == 24
    for fold in range(4):
        rest = [layout for layout, f in layouts.items() if f != fold]
        tested = [layout for layout, f in layouts.items() if f == fold]
        assert (
            len(tested) == 6 and len({c for c, *_ in rest}) == 3 and len({lane for _, lane, _ in rest}) == 4
        )
        assert len({c for c, *_ in tested}) == 3


@pytest.mark.slow
def test_probes_name_what_the_video_shows_better_than_shuffled_ones():
    organism = dl.load("organism")
    questions = probing.ask("choose")
    scenes = [(dl.tasks.choose(i), i) for i in range(48)]
    fitted = probing.fit(organism.batch(scenes, steps=4), questions)
    assert fitted.goal_weight.dims == ("fold", "step", "draw", "goal_choice", "goal_channel")
    tested = [(dl.tasks.choose(1_000_000 + i), i) for i in range(32)]
    found = probing.named(organism.batch(tested, steps=4), questions, fitted)
    there = found.goal_right != ""
    hit = found.goal_hit.isel(pair=there.values, step=-1)
    assert float(hit.mean()) > 0.8 > 0.7 > float(found.goal_shuffled.isel(pair=there.values, step=-1).mean())
    assert (found.goal_hit == ((found.goal_probe == found.goal_right) & there)).all()
