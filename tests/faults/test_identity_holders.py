"""What a function holds says its name, however it holds it: odd tensors, a run, a lens, a forward below nnsight."""

import builtins
import dataclasses
import sys
import types

import pytest
import torch
from torch import nn

import dit_lens as dl
import forked
from dit_lens.plan.digests import digest
from dit_lens.plan.functions import describe
from dit_lens.plan.source import describe_source


def name(function):
    """The name of a function, which has one: two looks at it are equal."""
    unnamed = []
    data = digest(describe(function, unnamed))
    assert not unnamed and digest(describe(function)) == data
    return data


def holding(value):
    def edit(h, at):
        return h * value

    return edit


TABLE = torch.arange(12.0).reshape(2, 6) + 1

ODD = {
    "a column of one value": lambda k: TABLE[:1, k],
    "a strided view of one value": lambda k: TABLE[0, k:][::2][:1],
    "the real part of a number": lambda k: torch.complex(TABLE, TABLE)[0, k : k + 1].real,
    "one value in several dimensions": lambda k: TABLE.t()[k : k + 1, :1],
    "an expanded value": lambda k: TABLE[0, k].expand(3),
    "a sparse one": lambda k: torch.sparse_coo_tensor([[0]], TABLE[:1, k], (2,)),
    "a nested one": lambda k: torch.nested.nested_tensor([TABLE[0, k:][:2], TABLE[1, :3]]),
    "a nested one of the newer layout": lambda k: torch.nested.nested_tensor(
        [TABLE[0, k:][:2], TABLE[1, :3]], layout=torch.jagged
    ),
    "a bias of one value": lambda k: nn.Parameter(TABLE[:1, k]),
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_tensor_counts_by_its_values_however_it_lies_in_memory(kind):
    names = [name(holding(ODD[kind](k))) for k in (0, 3, 1, 0)]
    assert names[0] == names[3] and len({*names}) == 3
    assert len({name(holding([ODD[kind](k)])) for k in (0, 3, 1)}) == 3
    if "value" in kind:
        assert len({name(dl.scale(ODD[kind](k))) for k in (0, 3, 1)}) == 3


def test_a_body_reads_them_too():
    names = {describe_source("y = h * gain\n", {"gain": TABLE[:1, k]})["reads"] for k in (0, 3, 1)}
    assert len(names) == 3


class Moody(torch.Tensor):
    """A tensor that cannot be read when its values are asked for."""

    @classmethod
    def __torch_function__(cls, function, kinds, args=(), kwargs=None):
        if function is torch.Tensor.detach:
            raise RuntimeError("not today")
        return super().__torch_function__(function, kinds, args, kwargs or {})


def test_what_cannot_be_read_has_no_name_though_a_look_without_tensors_sees_nothing():
    edit, unnamed = holding(torch.ones(2).as_subclass(Moody)), []
    names = {describe(edit, unnamed)["code"], describe(edit)["code"]}
    assert len(names) == 2 and "not today" in " ".join(unnamed)


def test_a_class_of_the_users_counts_whatever_it_is_called():
    def parameter(gain, called):
        def act(cls, function, kinds, args=(), kwargs=None):
            with torch._C.DisableTorchFunctionSubclass():
                result = function(*args, **(kwargs or {}))
            return result * cls.gain if function is torch.Tensor.mul else result

        members = {"gain": gain, "__torch_function__": classmethod(act)}
        kind = type(called, (nn.Parameter,), members)
        return torch.Tensor._make_subclass(kind, torch.ones(3), False)

    for called in ("Parameter", "Tensor", "Buffer", "Gain"):
        names = [name(holding(parameter(gain, called))) for gain in (1.0, 0.3, 1.0)]
        assert names[0] == names[2] != names[1]


# ---- runs and lenses


def test_a_run_counts_by_what_its_dataset_holds_now():
    lens = dl.load("organism-v1")
    run = lens.run(dl.tasks.choose(7), steps=2, record=[dl.energy])

    def edit(h, at):
        return h * float(run["energy"].mean())

    first = name(edit)
    run.dataset.load()
    assert name(edit) == first  # the same values, in memory
    run.dataset["energy"].values[0] *= 0.5
    second = name(edit)
    run.dataset["energy"] = run.dataset["energy"] * 0.25
    third = name(edit)
    run.dataset.attrs["note"] = "changed"
    fourth = name(edit)
    run.dataset["sigma"].values[0] = 5.0  # labels are in memory from the beginning
    assert len({first, second, third, fourth, name(edit)}) == 5


def test_another_lens_counts_by_how_it_reads_its_model():
    lens = dl.load("organism-v1")

    def with_codec(decode):
        codec = dataclasses.replace(lens.family.codec, decode=decode)
        return dl.Lens(lens.pipe, family=dataclasses.replace(lens.family, codec=codec))

    ways = [lambda *args, k=k: k for k in (1, 2, 1)]
    names = [name(holding(with_codec(way))) for way in ways]
    assert names[0] == names[2] != names[1]
    given = with_codec(ways[0])
    given.specimen.gain = 3
    assert name(holding(given)) not in names


def test_a_lens_of_a_class_of_the_users_has_one_name_from_the_first_look_on(tmp_path):
    """In a process of its own: what this package remembers of earlier names is no part of one."""
    script = (
        "import dit_lens as dl\nfrom dit_lens.plan.content import content\n"
        "class Study(dl.Lens):\n    def __init__(self): self.gain = 1.0\n    specimen = 'a specimen'\n"
        "print(content(Study(), []) == content(Study(), []))\n"
    )
    (tmp_path / "script.py").write_text(script)
    done = forked.run(tmp_path / "script.py", folder=tmp_path)
    assert done.stdout == "True\n", done.stderr


# ---- forwards below nnsight


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(2, 2)

    def forward(self, x):
        return self.layer(x)


def test_a_bound_forward_below_nnsight_counts_with_all_that_it_reads():
    import nnsight

    def patched(change, wrapped):
        model = Model()
        original = type(model.layer).forward

        def forward(self, x):
            return change(original(self, x))

        model.layer.forward = types.MethodType(forward, model.layer)
        if wrapped:
            nnsight.NNsight(model)
        return name(holding(model))

    changes = [lambda h, k=k: h * k for k in (1.0, 0.5)] + [lambda h: h + 1]
    for wrapped in (False, True):
        assert len({patched(change, wrapped) for change in changes}) == 3


def test_a_forward_of_nnsights_stands_for_the_one_below_it():
    import nnsight

    def patched(factor, wrapped, users=False):
        model = Model()
        if users:
            own = model.layer.forward
            model.layer.forward = lambda x: own(x) + 1
        if wrapped:
            nnsight.NNsight(model)
        before = model.layer.forward

        def forward(x):
            return before(x) * factor

        return name(forward)

    names = {patched(factor, True, users) for factor in (0.5, 2.0) for users in (False, True)}
    assert len(names) == 4
    assert patched(0.5, True) == patched(0.5, False)


# ---- what code finds under a name that it makes


def test_a_builtin_that_stands_under_anothers_name_is_that_one(monkeypatch):
    def edit(h, at):
        return sum(h)

    before = name(edit)
    monkeypatch.setattr(builtins, "sum", max)
    assert name(edit) != before


def test_tables_of_names_have_no_name():
    def by_module(h, at):
        return h * sys.modules[__name__].TABLE

    def by_function(h, at):
        return h * name.__globals__["TABLE"]

    for edit in (by_module, by_function):
        unnamed = []
        describe(edit, unnamed)
        assert "what no name says" in " ".join(unnamed)
