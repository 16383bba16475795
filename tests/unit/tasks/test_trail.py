"""A walk that was drawn is read back edge by edge; what is no path is seen as such."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dit_lens.tasks import trail
from dit_lens.tasks.trail import MOVES, edge, follow, path_edges, spell

SIZE = 5


@st.composite
def paths(draw, least=2):
    """A path over the board that never meets itself, and its moves."""
    cells = [(draw(st.integers(0, SIZE - 1)), draw(st.integers(0, SIZE - 1)))]
    moves = ""
    for move in draw(st.lists(st.sampled_from("RDLU"), min_size=least, max_size=14)):
        r, c = cells[-1][0] + MOVES[move][0], cells[-1][1] + MOVES[move][1]
        if 0 <= r < SIZE and 0 <= c < SIZE and (r, c) not in cells:
            cells.append((r, c))
            moves += move
    if len(cells) < least:
        r, c = cells[0]
        cells, moves = ([(r, c), (r, c + 1)], "R") if c + 1 < SIZE else ([(r, c), (r, c - 1)], "L")
    return cells, moves


def edges(*pairs):
    return frozenset(edge(a, b) for a, b in pairs)


@given(paths())
def test_following_the_edges_of_a_path_gives_the_path(case):
    path, moves = case
    assert follow(path_edges(path), path[0]) == path
    assert follow(path_edges(path), path[-1]) == path[::-1]
    assert spell(path_edges(path), path[0]) == moves


@given(paths(), st.integers(0, SIZE - 1), st.integers(0, SIZE - 1))
def test_a_path_is_followed_from_its_ends_only(case, r, c):
    path, _ = case
    if (r, c) not in (path[0], path[-1]):
        assert follow(path_edges(path), (r, c)) is None


def test_no_trail_is_the_path_that_stays_where_it_is():
    assert follow(frozenset(), (1, 1)) == [(1, 1)]
    assert spell(frozenset(), (1, 1)) == ""


NOT_PATHS = {
    "fork": edges(((0, 0), (0, 1)), ((0, 1), (0, 2)), ((0, 1), (1, 1))),
    "cycle": edges(((0, 0), (0, 1)), ((0, 1), (1, 1)), ((1, 0), (1, 1)), ((0, 0), (1, 0))),
    "cycle on a stalk": edges(
        *(((0, 0), (0, 1)), ((0, 1), (0, 2)), ((0, 2), (1, 2)), ((1, 1), (1, 2)), ((0, 1), (1, 1)))
    ),
    "two pieces": edges(((0, 0), (0, 1)), ((3, 3), (3, 4))),
    "elsewhere": edges(((3, 3), (3, 4))),
}


@pytest.mark.parametrize("name", NOT_PATHS)
def test_what_is_not_one_path_from_the_start_is_not_followed_and_spelled_edge_by_edge(name):
    assert follow(NOT_PATHS[name], (0, 0)) is None
    spelled = spell(NOT_PATHS[name], (0, 0))
    assert spelled.startswith("edges ")
    assert len(spelled.split()) == 1 + len(NOT_PATHS[name])


def test_cells_of_large_boards_are_told_apart():
    one, other = (edges((cell, (cell[0], cell[1] + 1))) for cell in ((1, 11), (11, 1)))
    assert spell(one, (0, 0)) == "edges 1,11R" and spell(other, (0, 0)) == "edges 11,1R"


@given(st.sets(st.sampled_from(trail.grid_edges(SIZE))), st.sets(st.sampled_from(trail.grid_edges(SIZE))))
def test_two_trails_have_the_same_spelling_exactly_where_they_are_the_same(a, b):
    a, b = frozenset(a), frozenset(b)
    assert (spell(a, (0, 0)) == spell(b, (0, 0))) == (a == b)


def test_an_edge_has_one_spelling_and_a_board_has_all_of_them():
    assert edge((1, 1), (0, 1)) == edge((0, 1), (1, 1)) == ((0, 1), (1, 1))
    for size in (2, 5):
        found = trail.grid_edges(size)
        assert len(set(found)) == len(found) == 2 * size * (size - 1)
        assert all(edge(a, b) == (a, b) and abs(a[0] - b[0]) + abs(a[1] - b[1]) == 1 for a, b in found)


@settings(max_examples=40)
@given(paths(), st.data())
def test_a_walk_is_read_back_with_walls_and_goals_around_it(case, data):
    path, _ = case
    walls = data.draw(st.sets(st.sampled_from(trail.grid_edges(SIZE)))) - path_edges(path)
    frames = trail.walk(trail.board(SIZE, walls, [path[-1]]), path, 7)
    assert trail.read_trail(frames[-1], SIZE) == path_edges(path)
    assert trail.read_agent(frames[0], SIZE) == path[0]
    assert trail.read_agent(frames[-1], SIZE) == path[-1]
    assert trail.read_trail(frames[0], SIZE) == frozenset()


@settings(max_examples=20)
@given(paths())
def test_the_trail_grows_along_the_path(case):
    path, _ = case
    frames = trail.walk(trail.board(SIZE, [], [path[-1]]), path, 2 * len(path) + 1)
    seen = [trail.read_trail(frame, SIZE) for frame in frames]
    for before, after in pairwise(seen):
        assert before <= after <= path_edges(path)
        assert follow(after, path[0]) is not None


@pytest.mark.parametrize("num_frames", [2, 3, 13, 40])
def test_the_agent_arrives_in_the_last_frame_whatever_the_number_of_frames(num_frames):
    path = [(0, 0), (0, 1), (1, 1), (2, 1), (2, 2), (2, 3)]
    frames = trail.walk(trail.board(4, [], [(2, 3)]), path, num_frames)
    assert frames.shape == (num_frames, 64, 64, 3)
    assert trail.read_trail(frames[-1], 4) == path_edges(path)
    assert trail.read_agent(frames[-1], 4) == (2, 3)


def test_an_empty_board_has_neither_trail_nor_agent():
    board = (trail.board(4, trail.grid_edges(4), [(0, 0)]) * 255).astype(np.uint8)
    assert trail.read_trail(board, 4) == frozenset()
    assert trail.read_agent(board, 4) is None


def test_an_agent_in_two_places_is_in_none():
    frames = [trail.walk(trail.board(4, [], []), [(r, 0), (r, 1)], 1)[0] for r in (0, 3)]
    assert trail.read_agent(np.minimum(*frames), 4) is None


def test_strength_is_how_much_of_the_trail_is_there():
    path = [(0, 0), (0, 1), (0, 2)]
    empty, full = (trail.walk(trail.board(4, [], []), path, 2)[i].astype(float) for i in (0, 1))
    faint = trail.trail_strength((empty + 0.3 * (full - empty)).round().astype(np.uint8), 4)
    assert faint[(0, 0), (0, 1)] == pytest.approx(0.3, abs=0.1)
    assert faint[(3, 2), (3, 3)] == pytest.approx(0, abs=0.01)
    assert trail.trail_strength(full.astype(np.uint8), 4)[(0, 0), (0, 1)] > 0.95


@given(paths(), paths())
def test_overlap_is_shared_over_all(one, other):
    a, b = path_edges(one[0]), path_edges(other[0])
    shared = sum(e in b for e in a)
    assert trail.overlap(a, b) == trail.overlap(b, a) == shared / (len(a) + len(b) - shared)
    assert trail.overlap(a, a) == 1
    assert trail.overlap(frozenset(), frozenset()) == 0
