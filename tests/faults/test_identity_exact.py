"""The fast ways of reading a model see all that the slow ones see: types of attributes, signs, places of bytes, parts."""

import copy
import itertools
import math
import types

import pytest
import torch
from torch import nn

from dit_lens.families import fingerprint as fp
from dit_lens.families import identity
from dit_lens.families.fingerprint import CHUNK, ROW, Gathering, joint_checksums


class Block(nn.Module):
    """A module of the user's, with a property and a slot."""

    __slots__ = ("slotted",)

    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 4), nn.LayerNorm(4)
        self.slotted, self.kept = 1, [torch.ones(3)]

    @property
    def doubled(self):
        return 2 * self.norm.eps

    def forward(self, x):
        return self.norm(self.linear(x)) * self.slotted


def fingerprint(module):
    name = identity.fingerprint({"dit": module}, {})
    assert name == identity.fingerprint({"dit": module}, {}), "a look at a model changes nothing"
    return name


def make():
    torch.manual_seed(0)
    return nn.Sequential(Block(), nn.Linear(4, 4), nn.BatchNorm1d(4), nn.GELU(), nn.ModuleList([Block()]))


@pytest.fixture
def model():
    return make()


def joint(*tensors):
    gathering = Gathering()
    assert gathering.take(tensors) == 0
    return joint_checksums([gathering])[0]


# ---- plain attributes

VALUES = [
    True,
    1,
    1.0,
    0.0,
    -0.0,
    False,
    0,
    None,
    "",
    "1",
    "None",
    math.nan,
    math.inf,
    2,
    (1,),
    (1.0,),
    (True,),
    [1],
    ((1,),),
]


@pytest.mark.parametrize("place", ["0.linear", "1", "3", "0", "4.0.norm"])
def test_attributes_differ_by_value_and_by_type(model, place):
    names = set()
    for value in VALUES:
        model.get_submodule(place).scale = value
        names.add(fingerprint(model))
    assert len(names) == len(VALUES)


def test_attributes_that_are_renamed_added_or_removed_are_seen(model):
    names = [fingerprint(model)]
    for change in (
        lambda: setattr(model[1], "scale", 1),
        lambda: (delattr(model[1], "scale"), setattr(model[1], "factor", 1)),
        lambda: setattr(model[1], "scale", None),
        lambda: delattr(model[1], "factor"),
    ):
        change()
        names.append(fingerprint(model))
    assert len(set(names)) == len(names)
    del model[1].scale
    assert fingerprint(model) == names[0]


def test_values_that_change_their_attributes_are_seen(model):
    model[1].first, model[1].second = 1, 2
    before = fingerprint(model)
    model[1].first, model[1].second = 2, 1
    assert fingerprint(model) != before


def test_the_order_in_which_attributes_were_set_is_not_seen(model):
    other = make()
    model[1].first, model[1].second = 1, 2
    other[1].second, other[1].first = 2, 1
    assert fingerprint(model) == fingerprint(other)


def test_slots_and_what_properties_read_are_seen(model):
    before = fingerprint(model)
    model[0].slotted = 2
    assert (other := fingerprint(model)) != before
    model[0].norm.eps = 1e-3
    assert fingerprint(model) not in (before, other)


def test_a_tensor_in_a_list_that_is_written_in_place_is_seen(model):
    before = fingerprint(model)
    model[0].kept[0][1] = 5
    assert (other := fingerprint(model)) != before
    model[1].kept = {"a": [torch.zeros(2)]}
    third = fingerprint(model)
    model[1].kept["a"][0].data[0] = -0.0
    assert len({before, other, third, fingerprint(model)}) == 4


def test_hooks_and_a_forward_of_a_leaf_are_seen(model):
    names = [fingerprint(model)]
    handle = model[3].register_forward_hook(lambda module, args, out: out * 2)
    names.append(fingerprint(model))
    handle.remove()
    assert fingerprint(model) == names[0]
    model[3].forward = lambda x: x
    names.append(fingerprint(model))
    assert len(set(names)) == 3


def test_a_hook_that_watches_a_leaf_does_not_count(model):
    before = fingerprint(model)

    def watch(module, args, out):
        return None

    guest = types.FunctionType(watch.__code__, {"__name__": "dit_lens.engine.watcher"})
    model[3].register_forward_hook(guest)
    assert fingerprint(model) == before


# ---- parameters, buffers and parts


def test_a_parameter_a_buffer_and_a_missing_one_differ(model):
    weight = torch.ones(4)
    names = set()
    for change in (
        lambda m: m.register_parameter("x", nn.Parameter(weight.clone())),
        lambda m: m.register_buffer("x", weight.clone()),
        lambda m: m.register_parameter("x", None),
        lambda m: m.register_buffer("x", None),
        lambda m: setattr(m, "x", weight.clone()),
        lambda m: None,
    ):
        other = make()
        change(other[1])
        names.add(fingerprint(other))
    assert len(names) == 6


def test_swapped_tensors_are_seen(model):
    linear, other = model[1], make()
    before = fingerprint(model)
    linear.bias.data, model[0].linear.bias.data = model[0].linear.bias.data, linear.bias.data
    assert fingerprint(model) != before
    norm = other[0].norm
    norm.weight.data[:], norm.bias.data[:] = 3, 4
    before = fingerprint(other)
    norm.weight, norm.bias = norm.bias, norm.weight
    assert fingerprint(other) != before


def test_swapped_and_shared_parts_are_seen():
    one, other = nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2))
    orders = [(one, other, one), (one, one, other), (other, one, one), (one, other, other)]
    names = [fingerprint(nn.ModuleList(order)) for order in orders]
    assert len(set(names)) == 4
    flat = [fingerprint(nn.ModuleList([part[0] for part in order])) for order in orders]
    assert len(set(flat)) == 4


def test_equal_models_have_one_name(model):
    assert fingerprint(make()) == fingerprint(model)
    assert fingerprint(copy.deepcopy(model[1:4])) == fingerprint(model[1:4])
    tied = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    tied[1].weight, tied[1].bias = tied[0].weight, tied[0].bias
    untied = copy.deepcopy(tied)
    untied[1].weight, untied[1].bias = (
        nn.Parameter(tied[0].weight.clone()),
        nn.Parameter(tied[0].bias.clone()),
    )
    assert fingerprint(tied) == fingerprint(untied)


def test_a_module_that_holds_itself_has_an_end(model):
    model[0].around = [model]
    model[1].around = model
    before = fingerprint(model)
    model[1].around = model[0]
    assert fingerprint(model) != before


def test_tensors_that_are_no_blocks_of_numbers_count_beside_those_that_are(model):
    class Scaled(torch.Tensor):
        pass

    def changed(scale, value):
        other = make()
        tensor = torch.full((4,), value).as_subclass(Scaled)
        tensor.scale = scale
        other[1].register_buffer("scaled", tensor)
        return fingerprint(other)

    assert len({changed(1, 0.0), changed(2, 0.0), changed(1, 1.0)}) == 3 and changed(1, 0.0) == changed(
        1, 0.0
    )


# ---- tensors that are hashed together


def test_a_byte_that_moves_from_the_end_of_one_tensor_to_the_start_of_the_next_is_seen():
    numbers = torch.arange(100, dtype=torch.uint8)
    splits = [joint(numbers[:n], numbers[n:]) for n in range(101)]
    assert len(set(splits)) == 101
    assert joint(numbers) not in splits
    assert joint(numbers, None) != joint(None, numbers) != joint(numbers)


@pytest.mark.parametrize("size", [1, 100, ROW - 1, ROW, ROW + 1, CHUNK - 1, CHUNK, CHUNK + 1, 5 * CHUNK + 7])
def test_every_byte_of_every_tensor_counts_where_it_stands(size):
    torch.manual_seed(size)
    tensors = [torch.randint(-128, 127, (n,), dtype=torch.int8) for n in (7, size, 300_000, 900_000, 3)]
    names = {joint(*tensors)}
    places = [(n, place) for n, t in enumerate(tensors) for place in {0, len(t) // 2, len(t) - 1}]
    for n, place in places:
        tensors[n][place] += 1
        names.add(joint(*tensors))
        tensors[n][place] -= 1
    assert len(names) == 1 + len(places)
    assert joint(*tensors) in names
    tensors[2], tensors[3] = tensors[3], tensors[2]
    assert joint(*tensors) not in names


def test_number_types_shapes_and_order_count():
    floats, words = torch.randn(6, 4), torch.randint(9, (3,))
    names = [
        joint(floats, words),
        joint(words, floats),
        joint(floats.view(4, 6), words),
        joint(floats.view(torch.int32), words),
        joint(floats, words.view(torch.float64)),
        joint(floats.t(), words),
    ]
    assert len(set(names)) == len(names)
    assert joint(floats.t(), words) == joint(floats.t().contiguous(), words)
    assert joint(torch.tensor([0.0])) != joint(torch.tensor([-0.0]))
    one, other = (
        torch.tensor([bits], dtype=torch.int32).view(torch.float32) for bits in (0x7FC00000, 0x7FC00001)
    )
    assert joint(one) != joint(other)


def test_conjugates_and_negatives_count_as_their_numbers():
    x = torch.randn(50, dtype=torch.complex64)
    assert joint(x.conj()) == joint(x.conj().resolve_conj()) != joint(x)
    imaginary = x.conj().imag
    assert imaginary.is_neg() and joint(imaginary) == joint(imaginary.resolve_neg()) != joint(x.imag)


def test_sums_are_the_products_that_they_stand_for():
    """The matrix product of whatever library torch uses is exact."""
    from dit_lens.families import fingerprint as module

    rows = torch.randint(-128, 128, (40, ROW), dtype=torch.int8)
    weights = module._weights(rows.device)
    assert torch.equal(module._hash_rows(rows).long(), rows.long() @ weights.long())
    extreme = torch.full((1, ROW), -128, dtype=torch.int8)
    assert torch.equal(module._hash_rows(extreme).long(), extreme.long() @ weights.long())


@pytest.mark.parametrize(
    "dtypes", itertools.combinations([torch.bfloat16, torch.float8_e4m3fn, torch.bool], 2)
)
def test_tensors_of_other_number_types_stand_beside_each_other(dtypes):
    one, other = (torch.ones(9).to(dtype) for dtype in dtypes)
    before = joint(one, other, one)
    zero = torch.zeros(9).to(dtypes[1])
    assert len({before, joint(one, zero, one), joint(other, one, one), joint(one, one, other)}) == 4


# ---- the two products


def rows_of(kind):
    if kind == "random":
        return torch.randint(-128, 128, (65, ROW), dtype=torch.int8)
    weights = fp._weights(torch.device("cpu")).t().contiguous().repeat(2, 1)
    return torch.where(weights > 0, 127, -128).to(torch.int8) if kind == "largest" else weights * 0 - 128


@pytest.mark.parametrize("kind", ["random", "largest", "lowest"])
def test_floats_and_integers_make_the_same_sums(kind):
    rows = rows_of(kind)
    right = rows.long() @ fp._weights(rows.device).long()
    for product in (fp._by_integers, fp._by_floats):
        assert torch.equal(product(rows).long(), right)
    with torch.autocast("cpu"):
        assert torch.equal(fp._by_floats(rows).long(), right)


def test_floats_that_are_rounded_are_not_used(monkeypatch):
    """A CPU with bfloat16 units rounds them where the user asks for less precision."""
    monkeypatch.setattr(fp, "_floats_are_quicker", lambda: True)
    tensor = torch.randn(300, 1000)
    name = joint(tensor)
    monkeypatch.setattr(fp, "_by_floats", lambda rows: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        joint(tensor)
    before = torch.get_float32_matmul_precision()
    try:
        for precision in ("high", "medium"):
            torch.set_float32_matmul_precision(precision)
            assert joint(tensor) == name
    finally:
        torch.set_float32_matmul_precision(before)
    monkeypatch.setattr(fp, "_floats_are_quicker", lambda: False)
    assert joint(tensor) == name
