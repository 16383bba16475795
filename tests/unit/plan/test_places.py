"""Selectors mean what Python's own indexing means, and say so when they cannot be read."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dit_lens.errors import PlanError
from dit_lens.plan.places import At, Spot, positions
from dit_lens.plan.selectors import at, parse_selector

SPOT = Spot("block", 3, 0.5, 500.0, 7, "high", "cond", 20)


def select(value, count):
    return positions("step", parse_selector("step", value), count)


@st.composite
def texts(draw):
    """A text such as '3, 5-7 ,-2-', its count, and the positions that it should select."""
    count = draw(st.integers(1, 12))
    place = st.integers(-count, count - 1)
    space = st.sampled_from(["", " "])
    parts, expected = [], set()
    for _ in range(draw(st.integers(1, 4))):
        low, high = draw(place), draw(st.none() | place)
        first, last = low % count, count - 1 if high is None else high % count
        if draw(st.booleans()):
            parts.append(str(low))
            expected.add(first)
        else:
            assume(first <= last)
            parts.append(f"{low}{draw(space)}-{draw(space)}{'' if high is None else high}")
            expected.update(range(first, last + 1))
        parts[-1] = draw(space) + parts[-1] + draw(space)
    return ",".join(parts), count, tuple(sorted(expected))


@given(texts())
def test_text_selects_the_union_of_its_inclusive_ranges(case):
    text, count, expected = case
    assert select(text, count) == expected


@given(texts())
def test_a_place_prints_as_text_that_selects_the_same(case):
    text, count, expected = case
    printed = str(at(step=text)).removeprefix("at(step=").removesuffix(")")
    assert select(printed, count) == expected


@given(st.integers(1, 12), st.data())
def test_a_slice_selects_what_python_selects_within_bounds(count, data):
    ends = st.none() | st.integers(-count, count)
    start, stop = data.draw(ends), data.draw(ends)
    expected = tuple(range(count))[start:stop]
    if expected:
        assert select(slice(start, stop), count) == expected
    else:
        with pytest.raises(PlanError):
            select(slice(start, stop), count)


@given(st.integers(2, 12), st.integers(1, 4), st.data())
def test_a_slice_with_a_stride_selects_what_python_selects(count, stride, data):
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, count)] * 2).filter(lambda p: p[0] != p[1])))
    from_end = data.draw(st.booleans()) and stop < count
    chosen = slice(start - count, stop - count, stride) if from_end else slice(start, stop, stride)
    assert select(chosen, count) == tuple(range(count))[chosen]


@given(st.integers(1, 12), st.data())
def test_a_list_selects_its_numbers_once_and_in_order(count, data):
    numbers = data.draw(st.lists(st.integers(-count, count - 1), min_size=1))
    expected = tuple(sorted({n % count for n in numbers}))
    for form in (numbers, tuple(numbers), iter(numbers), np.array(numbers)):
        assert select(form, count) == expected


@pytest.mark.parametrize(
    "value, expected",
    [
        (0, (0,)),
        (-1, (4,)),
        (np.int64(2), (2,)),
        ("3", (3,)),
        ("-1", (4,)),
        ("3-3", (3,)),
        ("-2--1", (3, 4)),
        ("0--2", (0, 1, 2, 3)),
        ("3-", (3, 4)),
        ("-2-", (3, 4)),
        (" 1 - 2 ,\t4 ", (1, 2, 4)),
        ("0-2,1-3,2", (0, 1, 2, 3)),
        ("all", (0, 1, 2, 3, 4)),
        (" all ", (0, 1, 2, 3, 4)),
        (None, (0, 1, 2, 3, 4)),
        (range(0, 5, 2), (0, 2, 4)),
        (slice(None), (0, 1, 2, 3, 4)),
        (slice(None, -1), (0, 1, 2, 3)),
        (slice(-2, None), (3, 4)),
        (slice(1, -1), (1, 2, 3)),
        (slice(-3, 4), (2, 3)),
        (slice(np.int64(1), np.int64(3)), (1, 2)),
    ],
)
def test_the_forms_of_a_selector(value, expected):
    assert select(value, 5) == expected


@pytest.mark.parametrize(
    "value",
    [
        *(
            "",
            " ",
            ",",
            "1,",
            "a",
            "1-a",
            "1.5",
            "1..3",
            "0:4",
            "-",
            "--1",
            "1-2-3",
            "- 3",
            "ALL",
            "1_000",
            "٣",
        ),
        *(True, False, 1.0, 2.5, [], (), [1, 2.0], [1, None], [True], ["1"], np.array([0.5]), {}, object()),
        *(slice(0.0, 2), slice("a", None), slice(0, 2, 0), slice(2, 0, -1), slice(0, 4, True)),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_name_and_a_form_that_can(value):
    with pytest.raises(PlanError) as error:
        at(layer=value)
    assert "at(layer=" in str(error.value)
    assert any(form in str(error.value) for form in ("'0-4,7'", "'45-'", "whole numbers"))


@pytest.mark.parametrize(
    "value",
    [
        slice(0, 0),
        slice(None, 0),
        slice(3, 0),
        slice(-3, 0),
        slice(5, 2),
        slice(4, 4),
        slice(-1, -3),
        slice(4, 4, 2),
    ],
)
def test_a_slice_that_is_empty_for_python_is_refused_at_once(value):
    with pytest.raises(PlanError, match=r"at\(step=slice\(.*\) selects nothing"):
        at(step=value)


@pytest.mark.parametrize("value", [slice(None, None, 2), slice(3, None, 2), slice(0, -1, 2), slice(-4, 4, 3)])
def test_a_stride_between_ends_that_only_the_count_could_compare_is_refused(value):
    with pytest.raises(PlanError, match="needs an end"):
        at(step=value)


@pytest.mark.parametrize("text", ["5-3", "1,5-3", "-1--2"])
def test_a_range_that_runs_backwards_is_refused_at_once(text):
    with pytest.raises(PlanError, match="runs backwards"):
        at(step=text)


@pytest.mark.parametrize("value", ["4--4", "0,4--4", slice(4, -3)])
def test_a_range_that_runs_backwards_for_this_count_is_refused(value):
    with pytest.raises(PlanError, match=r"runs backwards: 4 to [12], with 5 of them"):
        select(value, 5)


@pytest.mark.parametrize("value", [5, -6, "5", "0-5", "5-", "-6-", [0, 9], slice(0, 6), slice(-6, None)])
def test_a_position_that_is_not_there_is_refused_with_what_is(value):
    with pytest.raises(PlanError, match=r"step=.* is out of range: there are 5 of them, 0 to 4"):
        select(value, 5)


@pytest.mark.parametrize("form", ["cond", ["cond"], ("cond", "cond"), iter(["cond"])])
def test_names_are_kept_once(form):
    assert at(branch=form).branch == ("cond",)
    assert at(expert=["high", "low"]).expert == ("high", "low")
    assert at(branch="all", expert="all") == at()


@pytest.mark.parametrize("value", [[], "", [""], ["cond", None], [1], 3])
@pytest.mark.parametrize("name", ["branch", "expert"])
def test_what_is_no_name_is_refused(name, value):
    with pytest.raises(PlanError, match=rf"at\({name}=.*give a name"):
        at(**{name: value})


def test_a_sigma_range_is_inclusive_numbers_in_0_to_1():
    assert at(sigma=(0, 1)).sigma == (0.0, 1.0)
    assert at(sigma=[0.5, 0.5]).sigma == (0.5, 0.5)


@pytest.mark.parametrize(
    "value",
    [0.5, (0.5,), (0.1, 0.2, 0.3), (0.9, 0.1), (-0.1, 0.5), (0.5, 1.1), (0, float("nan")), ("a", "b")],
)
def test_another_sigma_range_is_refused(value):
    with pytest.raises(PlanError, match=r"at\(sigma=.*0 <= low <= high <= 1"):
        at(sigma=value)


def optional(strategy):
    return st.none() | strategy


selectors = st.integers(-9, 9) | st.lists(st.integers(-9, 9), min_size=1) | texts().map(lambda case: case[0])
names = st.lists(st.text(min_size=1).filter(str.strip), min_size=1)
places = st.builds(
    at,
    site=optional(st.sampled_from(["block", "q", "latents"])),
    step=optional(selectors),
    branch=optional(names),
    layer=optional(selectors),
    expert=optional(names),
    sigma=optional(st.tuples(st.floats(0, 1), st.floats(0, 1)).map(lambda p: tuple(sorted(p)))),
    frame=optional(selectors),
    y=optional(selectors),
    x=optional(selectors),
    stream=st.sampled_from(["video", "audio"]),
)


@given(places)
def test_a_place_goes_through_json_and_back(place):
    back = At.from_json(json.loads(json.dumps(place.to_json())))
    assert back == place
    assert hash(back) == hash(place)
    assert str(back) == str(place)


def test_a_place_is_frozen_and_equal_to_one_in_the_same_words():
    assert at(step="0-4", layer=[6, 5]) == at(layer=[5, 6], step=slice(0, 5))
    assert at(step=1) != at(step=2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        at().step = ((0, 0),)


def test_a_place_prints_what_was_selected_and_nothing_else():
    assert str(at()) == "everywhere"
    assert str(at(layer=[5, 6], step="0-4,9-", branch="cond")) == "at(step=0-4,9-, branch=cond, layer=5-6)"
    assert str(at(site="q", sigma=(0.25, 1), expert=["high", "low"], stream="audio")) == (
        "at(site=q, expert=high/low, sigma=0.25..1.0, stream=audio)"
    )


def test_the_region_is_the_part_of_the_grid_that_was_selected():
    assert at(step=1, layer=2).region == {}
    assert at(frame=0, x="2-3").region == {"frame": ((0, 0),), "x": ((2, 3),)}


def test_a_spot_prints_its_coordinates_and_leaves_out_what_it_has_not():
    assert str(SPOT) == "block(step=3, expert=high, branch=cond, layer=20)"
    assert str(dataclasses.replace(SPOT, site="x0", branch=None, layer=None)) == "x0(step=3, expert=high)"


def test_a_mask_selects_its_cells_and_stays_data():
    mask = np.zeros((2, 3, 5), bool)
    mask[1, 2, 3] = mask[0, 0, 0] = True
    place = at(mask=mask)
    assert np.array_equal(place.inside((2, 3, 5)), mask)
    assert np.array_equal(at(mask=mask, frame=1).inside((2, 3, 5)).nonzero(), [[1], [2], [3]])
    assert At.from_json(json.loads(json.dumps(place.to_json()))) == place and hash(place) == hash(
        at(mask=mask)
    )
    assert str(place) == "at(mask=2 of 2x3x5 cells)"
    assert at().inside((2, 3, 5)).all()


@pytest.mark.parametrize(
    "mask", [np.zeros((2, 3, 5), bool), np.ones((3, 5), bool), np.ones((2, 3, 5)), [[[1, 0]]]], ids=str
)
def test_a_mask_that_is_none_is_refused(mask):
    with pytest.raises(PlanError, match=r"booleans \[frame, y, x\]"):
        at(mask=mask)


def test_a_mask_of_another_grid_is_refused():
    with pytest.raises(PlanError, match=r"\(2, 3, 5\).*\(2, 3, 4\)"):
        at(mask=np.ones((2, 3, 5), bool)).inside((2, 3, 4))
