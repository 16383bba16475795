"""Two agents that must not cross: which boards there are, which answers, and what is not solved."""

from itertools import pairwise, permutations, product

import numpy as np
import pytest

from dit_lens import tasks
from dit_lens.analysis import ideal_denoiser
from dit_lens.errors import TaskError
from dit_lens.tasks import canvas as cv
from dit_lens.tasks import detours, trail
from dit_lens.tasks.apart import AGENTS, GOALS, TRAIL, Ends, walkers
from dit_lens.tasks.canvas import EVAL_SEED
from dit_lens.tasks.scene import is_held_out
from dit_lens.tasks.walkers import picture, walk_together

SEEDS = [*range(10), *range(EVAL_SEED, EVAL_SEED + 10)]
CELLS = list(product(range(4), repeat=2))


def ends_of(sample):
    """Return where red and where blue starts and where its goal is."""
    return tuple(Ends(*ends) for ends in sample.scene.layout)


def board_of(sample):
    """Return the board without agents and trails."""
    out = trail.board(4, [], [])
    for name, ends in zip(AGENTS, ends_of(sample), strict=True):
        trail.paint_goals(out, [ends.goal], GOALS[name])
    return out


def shown_pair(sample):
    """Return the two paths of the right video, from the text of its answer."""
    paths = []
    for part, ends in zip(sample.score(sample.truth).answer.split(", "), ends_of(sample), strict=True):
        path = [ends.start]
        for letter in part.split()[1]:
            (r, c), (dr, dc) = path[-1], trail.MOVES[letter]
            path.append((r + dr, c + dc))
        paths.append(tuple(path))
    return tuple(paths)


# ---- boards and answers


def breadth_first_pairs(layout):
    """All pairs of least total length, by another way than the generator's: both walks grow together, one step at a time."""
    (a, b), (c, d) = layout
    grown = [((a,), (c,))]
    for _ in range(20):
        done = [pair for pair in grown if pair[0][-1] == b and pair[1][-1] == d]
        if done:
            return {*done}
        more = []
        for red, blue in grown:
            used = {*red, *blue}
            if red[-1] != b:  # red to its end first, then blue: every pair is grown once
                more += [((*red, n), blue) for n in trail.neighbours(red[-1], 4) if n not in used | {c, d}]
            elif blue[-1] != d:
                more += [(red, (*blue, n)) for n in trail.neighbours(blue[-1], 4) if n not in used]
        grown = more
    return set()


@pytest.mark.parametrize("seed", SEEDS)
def test_the_answers_are_all_pairs_of_least_total_length(seed):
    sample = tasks.apart(seed)
    pairs = sample.scorer.keywords["pairs"]
    assert 2 <= len(pairs) <= 8 and len({*pairs}) == len(pairs)
    assert {*pairs} == breadth_first_pairs(ends_of(sample))
    assert max(len(path) for pair in pairs for path in pair) <= detours.LONGEST


def test_goals_are_not_next_door_and_lone_shortest_ways_collide():
    for seed in SEEDS:
        red, blue = ends_of(tasks.apart(seed))
        lone = []
        for (r, c), (r1, c1) in (red, blue):
            steps = ["D" if r1 > r else "U"] * abs(r1 - r) + ["R" if c1 > c else "L"] * abs(c1 - c)
            assert len(steps) >= 2
            lone.append({cells((r, c), order) for order in permutations(steps)})
        share = np.mean([bool({*one} & {*other}) for one, other in product(*lone)])
        assert share >= 0.5


def cells(start, moves):
    path = [start]
    for letter in moves:
        path.append(tuple(np.add(path[-1], trail.MOVES[letter]).tolist()))
    return tuple(path)


@pytest.mark.slow
def test_there_are_thousands_of_layouts_on_both_sides():
    ends = [(a, b) for a, b in permutations(CELLS, 2) if detours.distance(a, b) >= 2]
    found = [
        (red, blue)
        for red, blue in product(ends, ends)
        if not {*red} & {*blue}
        and detours.crossing(red, blue, 4) >= 0.5
        and 2 <= len(detours.shortest_pairs(red, blue, 4)) <= 8
    ]
    assert len(found) == 8976
    assert 400 < sum(map(is_held_out, found)) < 800


def test_every_answer_is_drawn_and_each_as_often():
    by_count = {}
    for seed in range(150):
        sample = tasks.apart(seed)
        pairs = sample.scorer.keywords["pairs"]
        if len(pairs) == 3:
            n = pairs.index(shown_pair(sample))
            by_count[n] = by_count.get(n, 0) + 1
    assert min(by_count[n] for n in range(3)) > 0.15 * sum(by_count.values())


def test_the_picture_shows_both_agents_and_whose_each_goal_is():
    for seed in SEEDS:
        sample = tasks.apart(seed)
        (first,) = cv.to_frames([board_of(sample)])
        for name, ends in zip(AGENTS, ends_of(sample), strict=True):
            x, y = (int(i) for i in cv.centre(ends.goal))
            assert np.abs(sample.truth[0, y, x] / 255 - GOALS[name]).max() < 0.01
            x, y = (int(i) for i in cv.centre(ends.start))
            assert np.abs(sample.truth[0, y, x] / 255 - AGENTS[name]).max() < 0.01
            x, y = (int(i) for i in cv.centre(ends.goal))
            assert np.abs(sample.truth[-1, y, x] / 255 - AGENTS[name]).max() < 0.01
        agents = sample.masks["red agent"][0] | sample.masks["blue agent"][0]
        near = agents | np.roll(agents, 1, 0) | np.roll(agents, 1, 1)
        near |= np.roll(agents, -1, 0) | np.roll(agents, -1, 1)
        np.testing.assert_array_equal(sample.truth[0][~near], first[~near])


def test_masks_name_every_object_and_do_not_overlap():
    names = {f"{name} {thing}" for name in AGENTS for thing in ("agent", "trail", "goal")} | {"walls"}
    for seed in SEEDS[::5]:
        sample = tasks.apart(seed)
        assert set(sample.masks) == names
        assert np.sum([mask.astype(int) for mask in sample.masks.values()], 0).max() == 1
        painted = {f"{name} agent": colour for name, colour in AGENTS.items()}
        painted |= {f"{name} goal": colour for name, colour in GOALS.items()}
        painted |= {f"{name} trail": TRAIL for name in AGENTS} | {"walls": cv.WALL}
        for name, colour in painted.items():
            seen = sample.truth[sample.masks[name]] / 255
            assert len(seen) and np.median(np.abs(seen - colour).max(-1)) < 0.01, name


@pytest.mark.parametrize("size", [5, 6])
def test_larger_boards(size):
    sample = tasks.apart(EVAL_SEED, size=size)
    assert sample.task == f"apart{size}" and sample.size == (16 * size, 16 * size)
    assert 2 <= len(sample.answers) <= 8
    assert all(sample.score(answer.video).solved for answer in sample.answers)


@pytest.mark.parametrize("size", [3, 7, 4.5, "4"])
def test_a_board_that_cannot_be_made_is_refused(size):
    with pytest.raises(TaskError, match=r"size is 4 to 6|size=.*give a whole number"):
        tasks.apart(1, size=size)


# ---- the codec


@pytest.mark.slow
def test_every_answer_is_solved_after_the_codec(through_codec):
    read = []
    for seed in [*range(100, 115), *range(EVAL_SEED + 100, EVAL_SEED + 115)]:
        sample = tasks.apart(seed)
        for answer in sample.answers:
            score = sample.score(through_codec(answer.video))
            read.append(score.solved and score.answer == answer.text)
    assert np.mean(read) >= 0.98


def test_the_ideal_denoiser_knows_its_answers(codec):
    import torch

    def encode(video):
        pixels = torch.from_numpy(np.asarray(video)).float().permute(3, 0, 1, 2)[None] / 127.5 - 1
        return codec.encode(pixels)

    sample = tasks.apart(EVAL_SEED)
    ideal = ideal_denoiser(sample, encode)
    assert ideal.texts == tuple(answer.text for answer in sample.answers)
    np.testing.assert_allclose(ideal.weights(ideal.videos, 0.01), np.eye(len(ideal.texts)), atol=1e-6)


# ---- spoiled


def walk(sample, pair):
    return walk_together(board_of(sample), walkers(pair), sample.num_frames)


def recoloured(sample, frames):
    """Return the right video with red and blue agents in each other's colour in some frames."""
    out = sample.truth.copy()
    other = [
        type(w)(w.path, colour, TRAIL)
        for w, colour in zip(walkers(shown_pair(sample)), reversed(AGENTS.values()), strict=True)
    ]
    out[frames] = walk_together(board_of(sample), other, sample.num_frames)[frames]
    return out


def longer(sample):
    """Return a pair that shares no cell, goes to the goals, and is two steps longer than right."""
    red, blue = shown_pair(sample)
    for n, path in enumerate((red, blue)):
        taken = {*red, *blue}
        for i, (a, b) in enumerate(pairwise(path)):
            for side in trail.neighbours(a, 4):
                far = (side[0] + b[0] - a[0], side[1] + b[1] - a[1])
                if side not in taken and far not in taken and far in CELLS:
                    detour = (*path[: i + 1], side, far, *path[i + 1 :])
                    return (detour, blue) if n == 0 else (red, detour)
    return None


def crossed(sample):
    """Return a pair of lone shortest paths that share a cell."""
    red, blue = ends_of(sample)
    (ones, _), (others, _) = (detours.ways(*ends, 0, 4) for ends in (red, blue))
    return next((one, other) for one in ones for other in others if {*one} & {*other})


def at_the_others_goal(sample):
    """Return a pair that shares no cell and in which each agent goes to the other's goal; None where there is none."""
    red, blue = ends_of(sample)
    pairs = detours.shortest_pairs((red.start, blue.goal), (blue.start, red.goal), 4)
    return pairs[0] if pairs else None


def late(sample, who, by):
    """Return the right video in which one agent waits, then catches up by the last frame."""
    both = walkers(shown_pair(sample))
    frames = []
    for t in range(25):
        shares = [t / 24, t / 24]
        shares[who] = 0 if t < by else (t - by) / (24 - by)
        moves = [(len(w.path) - 1) * share for w, share in zip(both, shares, strict=True)]
        frames.append(picture(board_of(sample), both, moves))
    return cv.to_frames(frames)


def without(sample, *names):
    """Return the right video with what some masks name, and a pixel around it, taken away."""
    out, (bare,) = sample.truth.copy(), cv.to_frames([cv.blank(4)])
    mask = np.any([sample.masks[name] for name in names], 0)
    kept = sample.masks["red agent"] | sample.masks["blue agent"]
    wide = mask | np.roll(mask, 1, 1) | np.roll(mask, -1, 1) | np.roll(mask, 1, 2) | np.roll(mask, -1, 2)
    if "agent" not in names[0]:
        wide &= ~kept
    out[wide] = np.broadcast_to(bare, out.shape)[wide]
    return out


def with_a_third(sample, colour, frames=slice(None)):
    """Return the right video with one more agent, in a cell that no mask comes near."""
    busy = np.any([mask.any(0) for name, mask in sample.masks.items() if name != "walls"], 0)
    free = next(c for c in CELLS if not busy.reshape(4, 16, 4, 16).any((1, 3))[c])
    out = sample.truth.copy()
    for t in range(25)[frames]:
        canvas = out[t].astype(np.float32) / 255
        cv.disc(canvas, *cv.centre(free), 5, colour)
        (out[t],) = cv.to_frames([canvas])
    return out


def spoil(sample):
    """Return spoiled videos by name."""
    truth, pair = sample.truth, shown_pair(sample)
    stays, jump = {}, truth.copy()
    jump[6:18] = truth[5]
    board = board_of(sample)
    for n, name in enumerate(AGENTS):
        still = walkers(pair)
        (alone,) = [w for m, w in enumerate(still) if m != n]
        moving = walk_together(board, [alone], 25).astype(np.float32) / 255
        for canvas in moving:
            cv.disc(canvas, *cv.centre(pair[n][0]), 5, AGENTS[name])
        stays[f"{name} stays"] = cv.to_frames(list(moving))
    rival = next(a.video for a in sample.answers if a.text != sample.score(truth).answer)
    out = {
        **stays,
        "agents swapped": recoloured(sample, slice(1, None)),
        "agents swapped for a while": recoloured(sample, slice(9, 13)),
        "agents swapped at the end": recoloured(sample, slice(22, None)),
        "a jump": jump,
        "a third agent, red": with_a_third(sample, AGENTS["red"]),
        "a third agent, blue": with_a_third(sample, AGENTS["blue"], slice(9, 13)),
        "a third agent, green": with_a_third(sample, cv.BALLS["green"], slice(9, 13)),
        "ways that cross": walk(sample, crossed(sample)),
        "no red trail": without(sample, "red trail"),
        "no blue trail": without(sample, "blue trail"),
        "no red goal": without(sample, "red goal"),
        "no blue goal": without(sample, "blue goal"),
        "no wall": without(sample, "walls"),
        "no red agent": without(sample, "red agent"),
        "no blue agent": without(sample, "blue agent"),
        "another answer before": np.concatenate([rival[:-1], truth[-1:]]),
        "the last frame alone is right": np.concatenate([np.repeat(truth[:1], 24, 0), truth[-1:]]),
        "arrived at once": np.concatenate([truth[:1], np.repeat(truth[-1:], 24, 0)]),
        "backwards": truth[::-1].copy(),
        "red is late": late(sample, 0, 12),
        "blue is late": late(sample, 1, 12),
        "every other frame": truth[::2].copy(),
    }
    more = {"a detour": longer(sample), "each at the other's goal": at_the_others_goal(sample)}
    return out | {name: walk(sample, pair) for name, pair in more.items() if pair}


@pytest.mark.parametrize("seed", SEEDS[5:15])
def test_spoiled_videos_are_not_solved(seed, through_codec):
    sample = tasks.apart(seed)
    for name, video in spoil(sample).items():
        for shown in [video, through_codec(video)] if len(video) == 25 else [video]:
            score = sample.score(shown)
            assert not score.solved and score.score < 1, name


def test_detours_and_the_others_goals_are_among_what_is_spoiled():
    samples = [tasks.apart(seed) for seed in SEEDS[5:15]]
    assert sum(longer(sample) is not None for sample in samples) >= 3
    assert sum(at_the_others_goal(sample) is not None for sample in samples) >= 3


def test_what_is_read_says_both_paths_and_what_is_wrong_with_them():
    sample = tasks.apart(EVAL_SEED)
    right = sample.score(sample.truth).answer
    assert right in {answer.text for answer in sample.answers}
    assert (
        sample.score(recoloured(sample, slice(1, None))).answer == f"{right}, red elsewhere, blue elsewhere"
    )
    assert sample.score(walk(sample, crossed(sample))).answer.startswith("edges ")
    assert sample.score(np.repeat(sample.truth[:1], 25, 0)).answer == "red stays, blue stays"
