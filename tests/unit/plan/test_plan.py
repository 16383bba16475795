"""A plan is data: it prints, hashes, goes through JSON, and refuses what cannot be carried out."""

import json
import sys
import types

import numpy as np
import pytest

import dit_lens as dl
from dit_lens.edits import add_noise, patch, replace, zero
from dit_lens.errors import PlanError
from dit_lens.plan.plan import Layout, Placed, Plan
from dit_lens.records import channel_mean, energy, hidden, keeps, latents, x0

LAYOUT = Layout({"video": {"block": "", "q": "self_attn.q"}}, 12, 20, ("cond", "uncond"), ("high", "low"))
PLAN = Plan.of(
    record=[energy, (hidden, dl.at(layer=[5, 6], step="0-4")), x0],
    edit=[(add_noise(scale=0.5), dl.at(site="latents", step=5)), (zero(), dl.at(layer=-1, frame=0))],
)


def plain(h, at):
    return h


# ---- made, printed


def test_a_bare_function_stands_everywhere():
    assert Plan.of(record=energy) == Plan.of(record=[energy]) == Plan.of(record=[(energy, dl.at())])
    assert Plan.of(edit=zero()).edits == (Placed(zero(), dl.at()),)
    assert Plan.of() == Plan()


def test_one_pair_stands_for_itself():
    place = dl.at(layer=3)
    assert Plan.of(record=(energy, place)) == Plan.of(record=[(energy, place)])
    assert Plan.of(edit=(zero(), place)).edits == (Placed(zero(), place),)


def test_two_functions_in_a_tuple_are_two_records():
    assert [r.name for r in Plan.of(record=(energy, x0)).records] == ["energy", "x0"]


@pytest.mark.parametrize("entry", [(energy, "layer=3"), (energy, dl.at(), dl.at()), (energy,)])
def test_what_is_no_pair_is_refused(entry):
    with pytest.raises(PlanError, match=r"give a function, or a pair \(function, dl.at\(...\)\)"):
        Plan.of(record=[entry])


def test_a_plan_grows_by_returning_another():
    place = dl.at(layer=1)
    grown = Plan().with_record(energy, place).with_edit(zero(), place).with_record(x0)
    assert grown == Plan.of([(energy, place), x0], [(zero(), place)])
    assert Plan() == Plan.of()


def test_a_plan_prints_what_happens_where():
    assert str(PLAN) == (
        "Plan:\n"
        "  record energy everywhere\n"
        "  record hidden at(step=0-4, layer=5-6)\n"
        "  record x0 everywhere\n"
        "  edit add_noise(scale=0.5, seed=0) at(site=latents, step=5)\n"
        "  edit zero() at(layer=-1, frame=0)"
    )
    assert str(Plan()) == "Plan: nothing"


# ---- one thing at its place


def test_the_place_names_the_site_before_the_function_does():
    assert Placed(energy, dl.at()).site == "block"
    assert Placed(x0, dl.at()).site == "x0"
    assert Placed(x0, dl.at(site="latents")).site == "latents"
    assert Placed(energy, dl.at(site="q")).site == "q"


def test_a_variable_is_named_after_its_record_with_the_site_where_it_is_not_the_default():
    assert Placed(energy, dl.at()).variable == "energy"
    assert Placed(energy, dl.at(site="block")).variable == "energy"
    assert Placed(energy, dl.at(site="q")).variable == "energy_q"
    assert Placed(x0, dl.at(site="x0")).variable == "x0"
    assert Placed(x0, dl.at(site="latents")).variable == "x0_latents"


def test_lambdas_and_objects_have_names_that_can_name_a_variable():
    class Probe:
        def __call__(self, h):
            return h

    assert Placed(lambda h: h, dl.at()).variable == "lambda"
    assert Placed(Probe(), dl.at()).variable == "Probe"
    assert Placed(add_noise(), dl.at()).name == "add_noise"


def test_a_place_resolves_on_a_layout():
    placed = Placed(energy, dl.at(step="-2-", layer=[0, -1], branch="uncond"))
    assert placed.steps(LAYOUT) == (18, 19)
    assert placed.layers(LAYOUT) == (0, 11)
    assert placed.branches(LAYOUT) == ("uncond",)
    everywhere = Placed(energy, dl.at())
    assert (len(everywhere.steps(LAYOUT)), len(everywhere.layers(LAYOUT))) == (20, 12)
    assert everywhere.branches(LAYOUT) == ("cond", "uncond")


# ---- JSON and hash


def through_json(plan):
    return Plan.from_json(json.loads(json.dumps(plan.to_json())))


def test_a_plan_goes_through_json_and_back():
    assert through_json(PLAN) == PLAN
    assert through_json(PLAN).hash == PLAN.hash
    assert str(through_json(PLAN)) == str(PLAN)
    assert through_json(Plan()) == Plan()


def test_the_functions_of_a_plan_that_came_back_still_work():
    import torch

    back = through_json(PLAN)
    spot = dl.Spot("latents", 5, 0.5, 500.0, 7, "dit")
    h = torch.ones(1, 1, 1, 4)
    assert torch.equal(back.records[0].function(h), energy(h))
    assert torch.equal(back.edits[0].function(h, spot), add_noise(scale=0.5)(h, spot))


def test_every_shipped_record_goes_through_json():
    shipped = [energy, hidden, channel_mean, dl.channel_variance, x0, latents, dl.velocity]
    assert through_json(Plan.of(shipped)) == Plan.of(shipped)


def test_a_plan_with_an_array_says_what_to_pass_anew():
    with pytest.raises(PlanError, match=r"The option value of dit_lens.edits:replace is an array"):
        through_json(Plan.of(edit=replace(np.ones(3))))


def written(source, monkeypatch):
    module = types.ModuleType("my_edits")
    exec(source, module.__dict__)
    monkeypatch.setitem(sys.modules, "my_edits", module)
    return module.edit


def test_a_plan_whose_function_changed_since_is_refused(monkeypatch):
    source = "def edit(h, at):\n    return h + 1\n"
    data = Plan.of(edit=written(source, monkeypatch)).to_json()
    assert Plan.from_json(data).edits[0].function(1, None) == 2
    written(source.replace("+ 1", "+ 2"), monkeypatch)
    with pytest.raises(PlanError, match="my_edits:edit is not what it was"):
        Plan.from_json(data)


def plans():
    """Plans that differ in one thing each."""
    source = "def edit(h, at):\n    return h + 1\n"
    with pytest.MonkeyPatch.context() as patched:
        edits = [written(source, patched), written(source.replace("+ 1", "+ 2"), patched)]
    ones, zeros = np.ones(5000), np.ones(5000)
    zeros[2500] = 0
    return [
        Plan(),
        Plan.of(record=energy),
        Plan.of(edit=energy),
        Plan.of(record=[energy, hidden]),
        Plan.of(record=[hidden, energy]),
        Plan.of(record=(energy, dl.at(layer=3))),
        Plan.of(record=(energy, dl.at(layer=4))),
        Plan.of(record=(energy, dl.at(step=3))),
        Plan.of(record=(energy, dl.at(site="q"))),
        Plan.of(record=(energy, dl.at(branch="cond"))),
        Plan.of(record=(energy, dl.at(expert="high"))),
        Plan.of(record=(energy, dl.at(sigma=(0, 0.5)))),
        Plan.of(edit=(zero(), dl.at(frame=1))),
        Plan.of(edit=(zero(), dl.at(y=1))),
        Plan.of(edit=(zero(), dl.at(x=1))),
        Plan.of(edit=add_noise()),
        Plan.of(edit=add_noise(scale=2.0)),
        Plan.of(edit=add_noise(seed=1)),
        *(Plan.of(edit=edit) for edit in edits),
        *(Plan.of(edit=replace(array)) for array in (ones, zeros, ones.astype(np.float32))),
    ]


def test_the_hash_tells_apart_whatever_differs_and_nothing_else():
    hashes = [plan.hash for plan in plans()]
    assert len(set(hashes)) == len(hashes)
    assert hashes == [plan.hash for plan in plans()]


def test_making_a_plan_reads_no_array(tmp_path):
    """A source may be a store of terabytes: it is read when the plan is hashed, and a step at a time."""

    class Far:
        dims, dtype, shape = ("step", "channel"), np.dtype("float32"), (3, 4)

        def __array__(self, *_, **__):
            raise AssertionError("read")

    plan = Plan.of(edit=patch(Far()))
    plan.check(LAYOUT)
    assert "patch(source=<array (3, 4)>" in str(plan)


# ---- refused


def check(record=(), edit=()):
    Plan.of(record, edit).check(LAYOUT)


def test_what_can_be_carried_out_is_accepted():
    PLAN.check(LAYOUT)
    check([energy, (energy, dl.at(site="q")), (x0, dl.at(step="0-4", expert="low", sigma=(0, 0.5)))], plain)
    check((energy, dl.at(layer="0-11", step=-20, branch=["uncond", "cond"])))


@keeps("y", "frame")
def out_of_order(h):
    return h


@keeps("frame", "frame")
def doubled(h):
    return h


@keeps("layer", "channel")
def of_the_library(h):
    return h


@keeps("frame", "head", "channel")
def with_a_dimension_of_its_own(h):
    return h


def test_a_record_may_have_dimensions_of_its_own():
    check(with_a_dimension_of_its_own)


REFUSED = [
    ((), (zero, dl.at(layer=1)), ["edit zero at(layer=1)", "call it with its options", "zero(...)"]),
    ("energy", (), ["'energy'", "give a function"]),
    ({energy: dl.at(layer=1)}, (), ["give a function", "or a list of these"]),
    ((), [3], ["edit 3", "not a function"]),
    (
        (energy, dl.at(site="mlp")),
        (),
        ["record energy", "unknown site 'mlp'", "block, q, latents, velocity, x0"],
    ),
    ((energy, dl.at(stream="audio")), (), ["record energy", "no stream 'audio', only video"]),
    (
        (x0, dl.at(layer=3)),
        (),
        ["record x0 at(layer=3)", "x0 stands outside the blocks", "drop layer and branch"],
    ),
    ((), (zero(), dl.at(site="latents", branch="cond")), ["edit zero", "latents stands outside the blocks"]),
    ((energy, dl.at(step=20)), (), ["record energy at(step=20)", "step=20 is out of range", "0 to 19"]),
    ((energy, dl.at(layer="10-12")), (), ["record energy", "layer=10-12 is out of range", "0 to 11"]),
    ((x0, dl.at(step=-21)), (), ["record x0", "step=-21 is out of range"]),
    ((), (zero(), dl.at(branch="c")), ["edit zero", "no branch 'c'", "only cond, uncond", "cfg_scale=1"]),
    ((energy, dl.at(expert=["low", "mid"])), (), ["no expert 'mid', only high, low."]),
    (plain, (), ["record plain everywhere", "declare the dimensions", "@dl.keeps"]),
    (
        (energy, dl.at(frame=0, x=3)),
        (),
        ["record energy", "reads the whole grid", "select frame, x afterwards"],
    ),
    (out_of_order, (), ["record out_of_order", "('y', 'frame')", "frame, y, x, channel in this order"]),
    (doubled, (), ["record doubled", "declares 'frame' twice"]),
    (of_the_library, (), ["record of_the_library", "('layer', 'channel')"]),
    ([energy, (energy, dl.at(layer=3))], (), ["Two records write 'energy'", "merge their places"]),
]


@pytest.mark.parametrize("record, edit, said", REFUSED, ids=lambda v: v[0] if isinstance(v, list) else "")
def test_what_cannot_be_carried_out_is_refused_with_what_where_and_remedy(record, edit, said):
    with pytest.raises(PlanError) as error:
        check(record, edit)
    for part in said:
        assert part in str(error.value)


def test_an_edit_may_stand_on_a_part_of_the_grid_and_twice():
    check(edit=[(zero(), dl.at(frame=0, y="1-2", x=3)), (zero(), dl.at(frame=0))])
