"""The body of a trace is named by its source and by what it reads, not by what an earlier run left in its variables."""

import re
import sys
import threading
import types

import numpy as np
import pytest
import torch

from dit_lens.plan.source import describe_source


def shown(value):
    """Return what a value is called in a test's name: the same in every process."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


BODY = """
total = 0
for call in tr.calls(step=steps):
    h = call.block(layer).output
    call.block(layer).output = helper(h) * scale["k"] if layer in chosen else h
    norms = [n for n in config.norms]
    total += h.sum()
kept = total
"""


def helper(h):
    return h * FACTOR


FACTOR = 2


class Config:
    def __init__(self):
        self.norms, self.other = [1, 2], 5


def scope(**changes):
    plain = {
        "steps": "0-2",
        "layer": 1,
        "helper": helper,
        "scale": {"k": np.ones(3)},
        "chosen": {1, 2},
        "tr": threading.Lock(),
    }
    return {**plain, "config": Config(), **changes}


def name(text=BODY, unnamed=None, **changes):
    return describe_source(text, scope(**changes), {}, unnamed, apart=["tr"])


def test_equal_bodies_have_one_name_whatever_stands_in_variables_that_they_set():
    unnamed = []
    left_over = {"h": np.zeros(3), "call": threading.Lock(), "total": 7, "kept": 8, "n": 3, "norms": 1}
    assert name(unnamed=unnamed) == name(unnamed=unnamed, **left_over)
    assert name(text="# again\n" + BODY.replace("    h =", "    h  =")) == name() and unnamed == []


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": "0-3"},
        {"layer": 2},
        {"scale": {"k": np.zeros(3)}},
        {"chosen": {1, 3}},
        {"helper": lambda h: h},
    ],
    ids=shown,
)
def test_every_value_that_a_body_reads_counts(changes):
    assert name(**changes) != name()


def test_what_helpers_and_attributes_hold_counts(monkeypatch):
    before, config = name(), Config()
    config.other = 6  # not read
    assert name(config=config) == before
    config.norms = [1, 3]
    assert name(config=config) != before
    monkeypatch.setitem(globals(), "FACTOR", 3)
    assert name() != before


def test_locals_win_over_globals():
    assert describe_source("x", {"x": 1}, {"x": 2}) == describe_source("x", {"x": 3}, {"x": 2})


@pytest.mark.parametrize(
    "text, reads",
    [
        ("x = 1\nx", False),
        ("x += 1", True),
        ("if a: x = 1\nx", True),
        ("if a: x = 1\nelse: x = 2\nx", False),
        ("for x in a: x", False),
        ("for i in a: x = 1\nx", True),
        ("[x for x in a]", False),
        ("lambda x: x", False),
        ("def f(): return x\nf()", True),
        ("def f():\n    x = 1\n    return x", False),
        ("with a as x: x", False),
        ("try:\n    x = 1\nexcept Exception: pass\nx", True),
        ("import x\nx.y", False),
        ("(x := 1) + x", False),
        ("y = x.z", True),
        ("x.z = 1", True),
        ("x[0] = 1", True),
    ],
)
def test_a_name_counts_where_it_may_be_read_before_it_is_set(text, reads):
    one, other = (describe_source(text, {"a": 1, "x": x}) for x in (1, 2))
    assert (one != other) == reads


READ_K = [
    "f = lambda h, k=k: h * k\nx = f(2)",
    "def f(h, scale=k): return h * scale\nx = f(2)",
    "x = [k for k in k]",
    "x = sum(k for k in k)",
    "def f(h):\n    g = lambda k: k\n    return h * k * g(1)\nx = f(2)",
    "class C:\n    k = k\nx = C.k",
    "class C:\n    k = 1\n    def go(self): return k\nx = C().go()",
    "import contextlib\nwith contextlib.suppress(ZeroDivisionError):\n    1 / 0\n    k = 5\nx = k",
    "def k(h, scale=k): return h * scale\nx = k(2)",
    "with quiet():\n    raise ValueError\n    k = 5.0\nx = 2 * k",
    "with quiet(), fail() as k:\n    pass\nx = 2 * k",
    "with torch.no_grad(), quiet():\n    k = 5.0\nx = 2 * k",
    "1 > 2 > (k := 5.0)\nx = 2 * k",
    "assert True, (k := 5.0)\nx = 2 * k",
    "def f():\n    global k\n    return k\nx = f()",
    "try:\n    x = 2 * k\nexcept ValueError as k:\n    pass",
    "False and (k := 2.0)\nx = k * 1",
    "def f(h, g=lambda k: k + 1): return g(h) * k\nx = f(2)",
    "match 1:\n    case 1:\n        x = 2 * k",
]


@pytest.mark.parametrize("body", READ_K, ids=range(len(READ_K)))
def test_a_body_counts_what_it_reads_before_or_outside_of_what_it_sets(body):
    value = [1, 2] if " in k" in body else 2
    other = [1, 3] if " in k" in body else 3
    names = [describe_source(body, {"k": k})["reads"] for k in (value, other)]
    assert names[0] != names[1]


def test_a_module_that_a_body_imports_counts(monkeypatch):
    module = types.ModuleType("users_steering")
    monkeypatch.setitem(sys.modules, "users_steering", module)
    for body in ("import users_steering as m\nx = m.g(1)", "from users_steering import g\nx = g(1)"):
        names = set()
        for text in ("def g(h): return h", "def g(h): return -h"):
            exec(text, module.__dict__)
            names.add(describe_source(body, {})["reads"])
        assert len(names) == 2


@pytest.mark.parametrize(
    "body",
    [
        "with torch.no_grad(), nullcontext(1) as f:\n    z = 1\ny = z",
        "z: float = 2.0\ny = z",
        "with quiet() as z:\n    pass\ny = z",
        "1 < (z := 2) < 3\ny = z",
    ],
)
def test_what_an_earlier_run_of_a_cell_left_does_not_count(body):
    before, after = ({"torch": torch}, {"torch": torch, "z": 3})
    assert describe_source(body, before)["reads"] == describe_source(body, after)["reads"]
