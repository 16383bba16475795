"""Functions as data: the hash changes with what a function does, and with nothing else."""

import copy
import functools
import json
import os
import pickle
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
import xarray as xr
from PIL import Image

from dit_lens.edits import add_noise, patch, replace
from dit_lens.errors import PlanError
from dit_lens.plan.content import content
from dit_lens.plan.digests import digest
from dit_lens.plan.functions import Configured, describe, options, restore
from dit_lens.records import keeps


def define(source, name="written_by_a_user"):
    """Make a module of source text, as if imported from a file."""
    module = types.ModuleType(name)
    exec(compile(source, f"{name}.py", "exec"), module.__dict__)
    return module


def code_of(source, name="f"):
    return describe(getattr(define(source), name))["code"]


@pytest.fixture
def imported(monkeypatch):
    """Put a module of source text where `import` finds it; again to change it."""

    def put(source, name="written_by_a_user"):
        module = define(source, name)
        monkeypatch.setitem(sys.modules, name, module)
        return module

    return put


# ---- options


@options
def blend(h, at, *, weight, other=0.0, power=1):
    return (1 - weight) * h + weight * other**power


def test_a_configured_function_is_called_with_its_options():
    assert blend(weight=0.25, other=8.0)(4.0, None) == 5.0
    assert blend.function(4.0, None, weight=0.5) == 2.0


def test_options_may_be_given_in_order_and_take_their_defaults():
    assert blend(0.5, 2.0) == blend(weight=0.5, other=2.0, power=1)
    assert blend(0.5).options == {"weight": 0.5, "other": 0.0, "power": 1}


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: blend(), "unknown: [], missing: ['weight']"),
        (lambda: blend(weight=1, wieght=2), "unknown: ['wieght'], missing: []"),
        (lambda: blend(1, 2, 3, 4), "blend() takes the options ['weight', 'other', 'power']"),
        (lambda: add_noise(sigma=1), "add_noise() takes the options ['scale', 'seed']; unknown: ['sigma']"),
    ],
)
def test_wrong_options_are_named_beside_the_right_ones(make, said):
    with pytest.raises(PlanError) as error:
        make()
    assert said in str(error.value)


def test_a_configured_function_prints_as_it_is_written_and_arrays_by_their_shape():
    assert repr(blend(weight=0.5)) == "blend(weight=0.5, other=0.0, power=1)"
    assert repr(replace(np.zeros((3, 4)))) == "replace(value=<array (3, 4)>)"


def test_configured_functions_are_equal_where_function_and_options_are():
    assert add_noise(scale=1.0) == add_noise(scale=1.0)
    assert hash(add_noise(scale=1.0)) == hash(add_noise(scale=1.0))
    assert len({add_noise(), add_noise(), add_noise(seed=1), blend(weight=1)}) == 3
    assert replace(np.ones(3)) == replace(np.ones(3)) != replace(np.zeros(3))
    assert blend(weight=1) != "blend"


def test_a_record_with_options_keeps_what_was_declared_of_it():
    @options
    @keeps("frame", "y", "x", site="q", units="m", long_name="one channel")
    def channel(h, *, index):
        return h[..., index]

    record = channel(index=2)
    declared = (record.dims, record.site, record.units, record.long_name)
    assert declared == (("frame", "y", "x"), "q", "m", "one channel")
    assert record(torch.arange(4)).item() == 2
    assert not hasattr(add_noise(), "dims")


def test_a_configured_function_can_be_copied_and_pickled():
    edit = Configured(returning, {"name": "x"})
    assert copy.deepcopy(edit).options == edit.options
    assert copy.copy(edit) == edit
    assert pickle.loads(pickle.dumps(Configured(np.mean, {"axis": 0}))).options == {"axis": 0}


# ---- the hash: what changes it


BASE = "def f(h, at=1, *, k=2):\n    return h + 3 if at in {'a', 'b'} else [h for _ in range(k)]\n"


@pytest.mark.parametrize(
    "old, new",
    [
        ("+ 3", "+ 4"),
        ("+ 3", "- 3"),
        ("+ 3", "+ 3.0"),
        ("at=1", "at=2"),
        ("k=2", "k=3"),
        ("'b'", "'c'"),
        ("[h for", "[-h for"),
        ("range", "list"),
    ],
)
def test_the_hash_changes_with_code_constants_and_defaults(old, new):
    assert old in BASE
    assert code_of(BASE) != code_of(BASE.replace(old, new))


def test_the_hash_does_not_change_with_layout_comments_or_names_of_locals():
    same = "\n\n# moved\ndef f(h, at=1, *, k=2):  # commented\n    return (\n        h + 3\n"
    same += "        if at in {'a', 'b'} else [h for other in range(k)]\n    )\n"
    assert code_of(same) == code_of(BASE)


def test_the_hash_is_the_same_in_every_process():
    """Sets and addresses have another order and value in every process."""
    source = BASE.replace("{'a', 'b'}", "{'a', 'b', 'c', 'd', 'e'}") + (
        "class Steer:\n"
        "    def __init__(self): self.names, self.inner = {'a', 'b', 'c'}, object.__new__(Empty)\n"
        "    def __call__(self, h, at): return h\n"
        "class Empty: pass\n"
        "def closing(thing): return lambda h, at: thing\n"
        "import functools\n"
        "made = [f, Steer(), Steer().__call__, functools.partial(f, k={'x', 'y'})]\n"
        "made += [closing(Steer()), closing(print), closing({'x', 'y'})]\n"
    )
    child = f"""
import json, types
from dit_lens.plan.functions import describe
module = types.ModuleType("written_by_a_user")
exec({source!r}, module.__dict__)
print(json.dumps([describe(f) for f in module.made]))
"""
    seen = [
        subprocess.run(
            [sys.executable, "-c", child],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    ]
    assert seen[0] == seen[1] == seen[2]
    assert len({d["code"] for d in json.loads(seen[0])}) >= 5


def closing_over(value):
    return lambda h, at: value


class Probe(torch.nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((3,), weight))

    def forward(self, h, at):
        return h * self.weight


class Steer:
    def __init__(self, vector):
        self.vector = vector

    def __call__(self, h, at):
        return h + self.vector

    def apply(self, h, at):
        return h - self.vector


def returning(name):
    return name


def long(last):
    """An array that prints alike whatever its middle holds."""
    values = np.zeros(5000)
    values[2500] = last
    return values


WAYS = {
    "closure": closing_over,
    "closure of an object": lambda v: closing_over(Steer(v)),
    "closure of a function": lambda v: closing_over(closing_over(v)),
    "closure of a configured function": lambda v: closing_over(replace(v)),
    "default": lambda v: lambda h, at=v: at,
    "option": replace,
    "option in a list": lambda v: replace([v]),
    "option in a dict": lambda v: Configured(returning, {"name": {"a": v}}),
    "callable object": Steer,
    "method": lambda v: Steer(v).apply,
    "partial": lambda v: functools.partial(returning, name=v),
    "partial by position": lambda v: functools.partial(returning, v),
}
VALUES = {
    "number": (1.0, 1.5),
    "text": ("a", "b"),
    "set": ({1, 2}, {1, 3}),
    "array": (long(0), long(1)),
    "shape": (np.zeros((2, 3)), np.zeros((3, 2))),
    "dtype": (np.zeros(2, np.float32), np.zeros(2, np.int32)),
    "bfloat16": (torch.zeros(3, dtype=torch.bfloat16), torch.ones(3, dtype=torch.bfloat16)),
    "float64": (torch.ones(3).double(), torch.ones(3).double() + 1e-12),
    "large integers": (torch.tensor([2**60]), torch.tensor([2**60 + 1])),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("values", VALUES)
def test_a_function_is_told_apart_by_every_value_that_it_holds(way, values):
    one, other = (describe(WAYS[way](value)) for value in VALUES[values])
    assert one != other
    assert one == describe(WAYS[way](copy.deepcopy(VALUES[values][0])))
    json.dumps(one)


def test_modules_are_told_apart_by_their_parameters():
    assert describe(Probe(1.0)) == describe(Probe(1.0)) != describe(Probe(2.0))
    assert describe(closing_over(Probe(1.0))) != describe(closing_over(Probe(2.0)))


def test_callable_objects_are_told_apart_by_the_code_of_their_class():
    source = "class F:\n    def __call__(self, h, at): return self.g(h)\n    def g(self, h): return h + 1\n"
    source += "f = F()\n"
    assert code_of(source) != code_of(source.replace("+ 1", "+ 2"))


def test_named_arrays_are_told_apart_by_their_labels():
    states = xr.DataArray(np.zeros((2, 3)), dims=["step", "channel"], coords={"step": [0, 1]})
    relabelled = states.assign_coords(step=[3, 4])
    assert patch(states) == patch(states.copy()) != patch(relabelled)
    assert patch(states) != patch(states.rename(channel="x"))


def test_lazy_arrays_are_hashed_as_loaded_ones(tmp_path):
    states = xr.DataArray(np.arange(6.0).reshape(2, 3), dims=["step", "channel"], name="h")
    states.to_dataset().to_zarr(tmp_path / "a.zarr", consolidated=False, zarr_format=3)
    lazy = xr.open_zarr(tmp_path / "a.zarr", chunks=None, consolidated=False)["h"]
    assert describe(patch(lazy)) == describe(patch(states))


def test_numpy_numbers_are_numbers():
    assert add_noise(scale=np.float32(0.5), seed=np.int64(3)) == add_noise(scale=0.5, seed=3)


def test_a_recursive_function_can_be_described():
    def countdown(h, at):
        return h if h < 1 else countdown(h - 1, at)

    assert describe(countdown) == describe(countdown)


def test_an_object_that_holds_itself_can_be_described_at_any_depth_of_the_stack():
    def holding(weight):
        steer = Steer(weight)
        steer.me = [steer]
        return steer

    def deeper(n):
        return describe(holding(1)) if n == 0 else deeper(n - 1)

    assert deeper(0) == deeper(300) == describe(holding(1)) != describe(holding(2))


def test_a_function_may_close_over_the_model_that_it_is_placed_on():
    """Hooks of the user's own make it another model, also those that refer to the function itself."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), Probe(1.0))
    edit = closing_over(model)
    before = describe(edit)
    handle = model[0].register_forward_hook(lambda *_: edit)
    assert describe(edit) == describe(edit) != before
    handle.remove()
    assert describe(edit) == before
    with torch.no_grad():
        model[0].bias[1] += 1
    assert describe(edit) != before


def test_large_modules_are_told_apart_by_one_value():
    small = torch.nn.Linear(2000, 2000)
    other = copy.deepcopy(small)
    assert describe(closing_over(small)) == describe(closing_over(other))
    other.weight.data[1234, 567] += 1
    assert describe(closing_over(small)) != describe(closing_over(other))


def test_modules_are_told_apart_by_their_settings():
    assert (
        describe(torch.nn.Dropout(0.1)) == describe(torch.nn.Dropout(0.1)) != describe(torch.nn.Dropout(0.2))
    )
    assert describe(torch.nn.ReLU()) != describe(torch.nn.GELU())


def test_images_are_told_apart_by_their_pixels():
    black, white = Image.new("L", (4, 4)), Image.new("L", (4, 4), 255)
    assert (
        describe(closing_over(black)) == describe(closing_over(black.copy())) != describe(closing_over(white))
    )


# ---- and back


@pytest.mark.parametrize(
    "edit", [add_noise(scale=0.5, seed=3), replace([1, [2.5, None]]), replace("x"), replace(1)]
)
def test_a_shipped_edit_goes_through_json_and_back(edit):
    assert restore(json.loads(json.dumps(describe(edit)))) == edit


def test_users_functions_come_back_as_themselves(imported):
    module = imported(BASE)
    assert restore(describe(module.f)) is module.f


def test_a_partial_comes_back_as_the_same_function_of_a_value(imported):
    module = imported("def f(h, at, k):\n    return h * k\n")
    assert restore(describe(functools.partial(module.f, k=3)))(2, None) == 6


def test_an_option_that_is_a_function_comes_back_as_one(imported):
    module = imported("def f(h, at, *, by): return by(h)\ndef double(h): return 2 * h\n")
    edit = Configured(module.f, {"by": module.double})
    assert restore(json.loads(json.dumps(describe(edit))))(4, None) == 8


def test_a_function_that_changed_is_refused(imported):
    data = describe(imported(BASE).f)
    imported(BASE.replace("+ 3", "+ 4"))
    with pytest.raises(PlanError, match="written_by_a_user:f is not what it was"):
        restore(data)


def test_what_cannot_be_imported_is_refused_with_the_remedy(imported):
    imported("def g(h): return h\n")
    for name in ("written_by_a_user:f", "no_such_module:f", "written_by_a_user", ":f", "?:f"):
        with pytest.raises(PlanError, match="cannot be imported: put it in a module"):
            restore({"function": name, "code": ""})
    with pytest.raises(PlanError, match=r"<locals>.*cannot be imported"):
        restore(describe(closing_over(1)))


@pytest.mark.parametrize("value", [np.ones(3), torch.ones(3), [np.ones(3)], {"a": torch.ones(2)}])
def test_an_array_among_the_options_must_be_passed_anew(value):
    with pytest.raises(
        PlanError, match=r"The option value of dit_lens.edits:replace is an array.*pass it anew"
    ):
        restore(describe(replace(value)))


@pytest.mark.parametrize(
    "value", [{1, 2}, torch.bfloat16, slice(3), Steer(1), int, np], ids=lambda v: type(v).__name__
)
def test_an_option_that_json_does_not_hold_is_refused_not_replaced_by_its_text(value):
    edit = replace(value)
    data = json.loads(json.dumps(describe(edit)))
    with pytest.raises(PlanError):
        restore(data)


def test_a_callable_object_does_not_come_back_without_its_state():
    with pytest.raises(PlanError, match=r"Steer is not what it was.*state"):
        restore(describe(Steer(1)))


def test_an_array_of_a_library_counts_with_its_units():
    class Quantity:
        """As pint's and astropy's."""

        def __init__(self, values, units):
            self.values, self.units = np.asarray(values), units
            self.dtype, self.shape = self.values.dtype, self.values.shape

        def __array__(self, dtype=None, copy=None):
            return self.values

    Quantity.__module__ = "scipy.units"
    lengths = [Quantity([1.0, 2.0], units) for units in ("m", "km", "m")]
    names = [digest(content(length, [])) for length in lengths]
    assert names[0] == names[2] != names[1]
