"""A selector of any kind selects what it says, or is refused with what can be said."""

import itertools
import re

import numpy as np
import pytest
import torch
import xarray as xr

import dit_lens as dl
from dit_lens.experiments.pictures import choose
from dit_lens.plan.places import positions
from dit_lens.plan.plan import Layout, Plan


def shown(value):
    """Return what a value is called in a test's name: the same in every process."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


GRID = (2, 3, 4)
MASK = np.random.default_rng(0).random(GRID) > 0.5
COORDINATES = ["step", "layer", "frame", "y", "x", "stage"]


def chosen(selector, count=10, name="layer"):
    return positions(name, getattr(dl.at(**{name: selector}), name), count)


@pytest.mark.parametrize("name", COORDINATES)
@pytest.mark.parametrize(
    "selector, expected",
    [
        (3, [3]),
        (np.int64(3), [3]),
        (np.uint8(3), [3]),
        (np.array(3), [3]),
        (torch.tensor(3), [3]),
        (-1, [9]),
        ([3, 3, 1], [1, 3]),
        ((np.int32(2), -1), [2, 9]),
        ({4, 2}, [2, 4]),
        (range(2, 5), [2, 3, 4]),
        (range(5, 2, -1), [3, 4, 5]),
        (range(-2, 0), [8, 9]),
        (np.arange(3), [0, 1, 2]),
        (torch.arange(3), [0, 1, 2]),
        ((n for n in (1, 2)), [1, 2]),
        (slice(np.int64(1), 3), [1, 2]),
        (slice(None, None), list(range(10))),
        ("3,3", [3]),
        (" 1 - 3 , 9", [1, 2, 3, 9]),
        ("all", list(range(10))),
        (None, list(range(10))),
    ],
    ids=shown,
)
def test_whole_numbers_of_every_kind_select(name, selector, expected):
    if not isinstance(selector, type(n for n in ())) or name == "step":  # a generator can be read once
        assert list(chosen(selector, name=name)) == expected


@pytest.mark.parametrize("name", COORDINATES)
@pytest.mark.parametrize(
    "selector",
    [
        *(1.0, np.float32(2), float("nan"), True, False, np.True_, 1j, object(), b"1", b"", {}, {1: 2}, ""),
        *(
            [],
            (),
            set(),
            [1.5],
            [True],
            [None],
            ["1"],
            [[1]],
            [1, "2"],
            np.zeros((1, 1), int),
            np.array([1.0]),
        ),
        *(
            np.array([True, False]),
            np.array(True),
            np.array([]),
            torch.tensor([1.0]),
            torch.zeros(1, 1, dtype=int),
        ),
        *(
            "a",
            "1.0",
            "1-2-3",
            ",",
            "1,,2",
            "5-3",
            "-1--3",
            "\u0663",
            "\uff11",
            "\u00b2",
            "0x1",
            "1e3",
            "+1",
            "1;2",
        ),
        *(
            "9" * 5000,
            "none",
            "auto",
            slice(3, 1),
            slice(0),
            slice(None, None, 0),
            slice(1.0, 2),
            slice(0, 3, True),
        ),
        *(slice(0, 10**9, 2), slice("a"), range(3, 3)),
    ],
    ids=lambda v: shown(v)[:40],
)
def test_everything_else_is_refused_by_name(name, selector):
    with pytest.raises(dl.PlanError, match=rf"at\({name}="):
        dl.at(**{name: selector})


@pytest.mark.parametrize(
    "selector", [10, -11, "0-10", "10-", "-11", [0, 10], range(10**12), "0-999999999999", 10**30]
)
def test_what_is_not_there_is_refused_with_how_many_there_are(selector):
    with pytest.raises(dl.PlanError, match=r"layer=.* is out of range: there are 10 of them, 0 to 9"):
        chosen(selector)


@pytest.mark.parametrize("selector", ["-1-2", slice(-1, 2), "9--5"])
def test_what_turns_out_to_run_backwards_is_refused(selector):
    with pytest.raises(dl.PlanError, match="runs backwards"):
        chosen(selector)


# ---- noise levels, names


@pytest.mark.parametrize(
    "sigma", [(0.2, 0.5), [0.2, 0.5], np.array([0.2, 0.5]), (np.float64(0.2), 0.5)], ids=shown
)
def test_a_range_of_noise_levels_is_two_numbers(sigma):
    assert dl.at(sigma=sigma) == dl.at(sigma=(0.2, 0.5))


@pytest.mark.parametrize(
    "sigma",
    [
        *(0.5, (0.5,), (0.5, 0.2), (0.1, 0.2, 0.3), ("0.2", "0.5"), "01", b"01", (True, 1.0), (0.1, None)),
        *(
            (float("nan"), 0.5),
            (0.2, float("nan")),
            (-0.1, 0.5),
            (0.2, 1.5),
            [],
            {0.2: 1, 0.5: 2},
            {0.2, 0.5},
        ),
        *(np.zeros((2, 2)), ([0.1], [0.2]), (1j, 1), slice(0, 1), float("inf")),
    ],
    ids=shown,
)
def test_other_noise_levels_are_refused(sigma):
    with pytest.raises(dl.PlanError, match=r"(?s)at\(sigma=.*0 <= low <= high <= 1"):
        dl.at(sigma=sigma)


@pytest.mark.parametrize("name", ["branch", "expert"])
def test_names_are_texts(name):
    for value in (["b", "a", "b"], ("a", "b"), {"a", "b"}, (n for n in "ab"), np.array(["b", "a"])):
        assert getattr(dl.at(**{name: value}), name) == ("a", "b")
    assert dl.at(**{name: "all"}) == dl.at()
    for value in (
        [],
        "",
        " ",
        ["a", 1],
        ["a", None],
        3,
        True,
        [""],
        b"a",
        [b"a"],
        [["a"]],
        float("nan"),
        {"a": 1},
    ):
        with pytest.raises(dl.PlanError, match=rf"at\({name}=.*give a name, a list of names"):
            dl.at(**{name: value})


@pytest.mark.parametrize("name", ["site", "stream"])
def test_a_site_and_a_stream_are_one_name(name):
    for value in ("", " ", 3, True, ["block"], ("x0",), b"x0", float("nan")):
        with pytest.raises(dl.PlanError, match=rf"at\({name}=.*give a name, as text"):
            dl.at(**{name: value})


# ---- masks


@pytest.mark.parametrize(
    "mask",
    [
        MASK,
        MASK.tolist(),
        np.asfortranarray(MASK),
        torch.from_numpy(MASK),
        xr.DataArray(MASK, dims=["frame", "y", "x"]),
    ],
    ids=lambda v: type(v).__name__,
)
def test_a_mask_of_any_library_selects_its_cells(mask):
    assert np.array_equal(dl.at(mask=mask).inside(GRID), MASK)


def test_a_named_mask_is_put_in_order_by_its_names():
    named = xr.DataArray(MASK, dims=["frame", "y", "x"])
    assert np.array_equal(dl.at(mask=named.transpose("x", "frame", "y")).inside(GRID), MASK)
    latent = named.rename(y="latent_y", x="latent_x").transpose("latent_x", "latent_y", "frame")
    assert np.array_equal(dl.at(mask=latent).inside(GRID), MASK)
    with pytest.raises(dl.PlanError, match="this array has a, b, c"):
        dl.at(mask=xr.DataArray(MASK, dims=["a", "b", "c"]))
    with pytest.raises(dl.PlanError, match="this array has layer, frame, y, x"):
        dl.at(mask=named.expand_dims("layer"))


@pytest.mark.parametrize(
    "mask",
    [
        *(
            MASK.astype(int),
            MASK.astype(float),
            np.full(GRID, np.nan),
            np.zeros(GRID, bool),
            MASK[0],
            MASK[None],
        ),
        *(
            True,
            1,
            "all",
            [],
            [[True], [True, False]],
            object(),
            MASK.astype(object),
            np.zeros((0, 3, 4), bool),
        ),
    ],
    ids=lambda v: shown(v)[:30].replace("\n", ""),
)
def test_other_masks_are_refused(mask):
    with pytest.raises(dl.PlanError, match=r"at\(mask=\.\.\.\)"):
        dl.at(mask=mask)


# ---- on a model

LAYOUT = Layout(
    {"video": {"block": "", "ffn": "ffn"}, "text": {"block": ""}}, 12, 20, ("cond", "uncond"), ("high", "low")
)


@pytest.mark.parametrize("kind", ["record", "edit"])
@pytest.mark.parametrize(
    "place, words",
    [
        *(
            ({"site": s, "stream": "text"}, f"unknown site '{s}'; there are block")
            for s in ("x0", "latents", "velocity")
        ),
        ({"site": "ffn", "stream": "text"}, "unknown site 'ffn'"),
        ({"site": "head"}, "unknown site 'head'"),
        ({"stream": "audio"}, "no stream 'audio', only video, text"),
        ({"site": "x0", "layer": 3}, "x0 stands outside the blocks"),
        ({"site": "latents", "branch": "cond"}, "latents stands outside the blocks"),
        ({"layer": 12}, "layer=12 is out of range"),
        ({"step": "18-20"}, "step=18-20 is out of range"),
        ({"branch": "negative"}, "no branch 'negative', only cond, uncond"),
        ({"branch": ["cond", "neg"]}, "no branch 'neg'"),
        ({"expert": "dit"}, "no expert 'dit', only high, low"),
        ({"stage": 1}, "stage=1 is out of range"),
    ],
    ids=shown,
)
def test_places_that_a_model_does_not_have_are_refused_before_the_run(kind, place, words):
    function = dl.energy if kind == "record" else dl.zero()
    with pytest.raises(dl.PlanError, match=words):
        Plan.of(**{kind: (function, dl.at(**place))}).check(LAYOUT)


def test_regions_that_a_grid_does_not_have_are_refused_before_the_run():
    grids = {"video": (2, 3, 4), "latent_video": (2, 6, 8)}
    good = [
        dl.at(frame=1, y="1-2"),
        dl.at(x=-4),
        dl.at(site="x0", y=5),
        dl.at(mask=MASK),
        dl.at(),
        dl.at(stream="text", y=9),
    ]
    Plan.of(edit=[(dl.zero(), place) for place in good]).check_grids(grids)
    bad = [
        (dl.at(frame=2), "frame=2 is out of range: there are 2 of them"),
        (dl.at(y=5), "y=5 is out of range: there are 3 of them"),
        (dl.at(site="x0", x=8), "x=8 is out of range: there are 8 of them"),
        (
            dl.at(site="x0", mask=MASK),
            r"mask is \(frame, y, x\) = \(2, 3, 4\), the grid at the site \(2, 6, 8\)",
        ),
    ]
    for place, words in bad:
        with pytest.raises(dl.PlanError, match=rf"edit zero at\(.*{words}"):
            Plan.of(edit=[(dl.zero(), place)]).check_grids(grids)


@pytest.mark.parametrize(
    "entries", [None, 3, dl.at(), "energy", [None], [3], [("energy", dl.at())], [(dl.energy, 3)]]
)
def test_what_is_no_function_is_refused(lens, sample, entries):
    for kind in ("record", "edit"):
        with pytest.raises(dl.PlanError, match="give"):
            lens.run(sample, steps=1, **{kind: entries})


# ---- on the command line


@pytest.mark.parametrize(
    "option, text",
    itertools.product(["layers", "vis-steps", "cka-layers"], ["4", "0,19", "a", "3-1", "", "-9", "0-4"]),
)
def test_the_command_line_names_its_option(option, text):
    with pytest.raises(dl.PlanError, match=rf"^--{option} {text}: "):
        choose(text, 4, option)


def test_the_command_line_selects():
    assert choose("auto", 20, "layers") == [0, 5, 10, 14, 19]
    assert choose("auto", 2, "layers") == [0, 1] and choose("all", 3, "layers") == [0, 1, 2]
    assert choose("0-1,-1", 4, "vis-steps") == [0, 1, 3]


@pytest.mark.parametrize("range_of", [(0.9, 1.0), (0.3, 0.7), (0.1, 0.1)])
def test_both_ends_of_a_range_of_noise_levels_are_in_it(lens, range_of):
    """Schedules are float32, which says 0.89999998 for 0.9."""
    levels = [float(level) for level in torch.linspace(1, 0.1, 10)]
    low, high = range_of
    right = [n for n, level in enumerate(levels) if round(low * 10) <= round(level * 10) <= round(high * 10)]
    layout = Layout(lens.specimen.paths, lens.layers, 10, ("cond",), ("dit",))
    (placed,) = Plan.of(edit=[(dl.zero(), dl.at(sigma=range_of))]).edits
    assert sorted(placed.bind(True, layout, levels).steps) == right
