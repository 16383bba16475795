"""A function's name says all that it does: other globals, helpers, classes, modules give another run."""

import argparse
import cmath
import copy
import dataclasses
import functools
import importlib
import io
import json
import math
import os
import random
import subprocess
import sys
import threading
import types
import warnings
from collections import defaultdict

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from diffusers import DDIMScheduler
from PIL import Image

import dit_lens as dl
from dit_lens.errors import PlanError
from dit_lens.plan import bytecode, origin
from dit_lens.plan.content import content
from dit_lens.plan.digests import digest
from dit_lens.plan.functions import describe, kept_by, restore


def module_of(source, name="users_notebook"):
    module = types.ModuleType(name)
    module.__dict__["dl"] = dl
    exec(compile(source, f"/home/somebody/{name}.py", "exec"), module.__dict__)
    return module


def code(module, name="f"):
    return describe(getattr(module, name))["code"]


READERS = {
    "the order of a dict": (
        "A = {'a': abs, 'b': sum}\ndef f(h, at):\n    for g in A.values(): h = g(h)\n    return h\n",
        "A = {'b': sum, 'a': abs}",
    ),
    "what a missing key gives": (
        "from collections import defaultdict\nA = defaultdict(lambda: 1.0)\ndef f(h, at): return h * A[at.layer]\n",
        "A = defaultdict(lambda: 2.0)",
    ),
    "how long a queue is": (
        "from collections import deque\nA = deque(maxlen=1)\ndef f(h, at):\n    A.append(h)\n    return sum(A)\n",
        "A = deque(maxlen=4)",
    ),
    "what an object was told": (
        "class S:\n    def encode(self, w): self.v = w\n    def add(self, h): return h + self.v\n"
        "A = S()\nA.encode(1)\ndef f(h, at): return A.add(h)\n",
        "A.encode(2)",
    ),
    "a value that a class has cached": (
        "import functools\nclass S:\n    v = 1\n    @functools.cached_property\n    def w(self): return self.v\n"
        "A = S()\nA.w\ndef f(h, at): return h * A.w\n",
        "A.w = 5",
    ),
    "an attribute with a name of torch's": (
        "class S: pass\nA = S()\nA._parameters = A._buffers = {'k': 1}\ndef f(h, at): return h * A._parameters['k']\n",
        "A._parameters = A._buffers = {'k': 2}",
    ),
    "a function that numpy wraps": (
        "import numpy as np\nA = np.vectorize(lambda s: s + 1)\ndef f(h, at): return h * A(at.step)\n",
        "A = np.vectorize(lambda s: s + 2)",
    ),
    "an interpolation": (
        "from scipy.interpolate import make_interp_spline\nA = make_interp_spline([0, 1, 2, 3], [0, 1, 2, 3])\n"
        "def f(h, at): return h * A(at.step)\n",
        "A = make_interp_spline([0, 1, 2, 3], [0, 2, 4, 6])",
    ),
    "an attribute of a tensor": (
        "import torch\nA = torch.zeros(3)\nA.gain = 1\ndef f(h, at): return h * A.gain\n",
        "A.gain = 2",
    ),
    "an array of the user's": (
        "import numpy as np\nclass S(np.ndarray): pass\nA = np.zeros(3).view(S)\nA.gain = 1\n"
        "def f(h, at): return h * A.gain\n",
        "A.gain = 2",
    ),
    "an object that looks like an array": (
        "import numpy as np\nclass S:\n    dtype = np.dtype('f4')\n    shape = (1,)\n"
        "    def __array__(self): return np.zeros(1, 'f4')\nA = S()\nA.gain = 1\ndef f(h, at): return h * A.gain\n",
        "A.gain = 2",
    ),
    "what a weak mapping holds": (
        "import weakref\nclass K: pass\nkey = K()\nA = weakref.WeakKeyDictionary({key: 1})\n"
        "def f(h, at): return h * sum(A.values())\n",
        "A[key] = 2",
    ),
    "a number": ("A = 1\ndef f(h, at): return h + A\n", "A = 2"),
    "a float that was an int": ("A = 1\ndef f(h, at): return h + A\n", "A = 1.0"),
    "an array": (
        "import numpy as np\nA = np.zeros(5000)\ndef f(h, at): return h + A\n",
        "A = np.zeros(5000); A[2500] = 1",
    ),
    "a tensor written in place": (
        "import torch\nA = torch.zeros(9)\ndef f(h, at): return h + A\n",
        "A.data[4] = 1",
    ),
    "a dict": ("A = {'x': [1, 2]}\ndef f(h, at): return h * A['x'][1]\n", "A['x'][1] = 3"),
    "a helper": ("def g(h): return h\ndef f(h, at): return g(h)\n", "def g(h): return -h"),
    "a helper of a helper": (
        "def k(h): return h\ndef g(h): return k(h)\ndef f(h, at): return g(h)\n",
        "def k(h): return -h",
    ),
    "a helper in a nested function": (
        "def g(h): return h\ndef f(h, at): return [(lambda x: g(x))(r) for r in h]\n",
        "def g(h): return -h",
    ),
    "a class": (
        "class C:\n    def go(self, h): return h\ndef f(h, at): return C().go(h)\n",
        "class C:\n    def go(self, h): return -h",
    ),
    "a base class": (
        "class B:\n    k = 1\nclass C(B): pass\ndef f(h, at): return h * C.k\n",
        "B.k = 2",
    ),
    "a property": (
        "class C:\n    @property\n    def k(self): return 1\nc = C()\ndef f(h, at): return h * c.k\n",
        "C.k = property(lambda self: 2)",
    ),
    "an object's attribute": (
        "import types\nc = types.SimpleNamespace(scale=1, other=2)\ndef f(h, at): return h * c.scale\n",
        "c.scale = 3",
    ),
    "a helper that is replaced by a partial": (
        "import functools\ndef g(h, k=1): return h * k\np = functools.partial(g, k=2)\ndef f(h, at): return p(h)\n",
        "p = functools.partial(g, k=3)",
    ),
    "a torch module": (
        "import torch\nsae = torch.nn.Linear(4, 4)\ndef f(h, at): return sae(h)\n",
        "sae.weight.data[2, 3] += 1",
    ),
    "a default of a helper": (
        "def g(h, k=[1]): return h * k[0]\ndef f(h, at): return g(h)\n",
        "g.__defaults__[0][0] = 2",
    ),
    "a name that Python itself has": ("def f(h, at): return abs(h)\n", "def abs(h): return h"),
    "a decorator's function": (
        "import torch\ndef g(h): return h\n@torch.no_grad()\ndef f(h, at): return g(h)\n",
        "def g(h): return -h",
    ),
    "a cached helper": (
        "import functools\n@functools.lru_cache\ndef g(k): return k\ndef f(h, at): return h * g(1)\n",
        "@functools.lru_cache\ndef g(k): return 2 * k",
    ),
    "a set": ("A = {'a', 'b', 'c'}\ndef f(h, at): return h if at in A else -h\n", "A.add('d')"),
    "an attribute of the function": ("def f(h, at): return h * f.k\nf.k = 1\n", "f.k = 2"),
    "a generator's state": (
        "import torch\nG = torch.Generator().manual_seed(0)\ndef f(h, at): return h + torch.randn(3, generator=G)\n",
        "G.manual_seed(1)",
    ),
}


@pytest.mark.parametrize("what", READERS)
def test_what_a_function_reads_changes_its_name(what):
    source, change = READERS[what]
    module, same = module_of(source), module_of(source)
    if "torch module" not in what:
        assert code(module) == code(same)
    before = code(module)
    assert code(module) == before
    exec(change, module.__dict__)
    assert code(module) != before


@pytest.mark.parametrize("change", ["config.SCALE = 3", "def helper(h): return -h\nconfig.helper = helper"])
def test_what_is_read_off_a_module_of_the_users_own_counts(change, monkeypatch):
    config = module_of("SCALE = 2\nOTHER = 5\ndef helper(h): return h\n", "users_config")
    monkeypatch.setitem(sys.modules, "users_config", config)
    module = module_of(
        "import users_config as config\ndef f(h, at):\n    from users_config import helper\n"
        "    import users_config as again\n    return config.helper(h) * config.SCALE + helper(h) * again.SCALE\n"
    )
    before = code(module)
    config.OTHER = 6  # not read
    assert code(module) == before
    exec(change, module.__dict__)
    assert code(module) != before


def test_a_module_that_is_handed_on_counts_whole(monkeypatch):
    config = module_of("SCALE = 2\n", "users_config")
    module = module_of("def f(h, at): return h * getattr(config, 'SCALE')\n")
    module.config = config
    before = code(module)
    config.SCALE = 3
    assert code(module) != before


@pytest.mark.parametrize(
    "same",
    [
        "\n\n\n# a comment\nA = 1\ndef f(h, at):\n    '''A docstring.'''\n    return h + A\n",
        "A = 1\ndef f(h, at): return (  # laid out\n    h\n    + A)\nB = 5\n",
    ],
)
def test_comments_docstrings_places_and_other_globals_do_not_count(same):
    assert code(module_of(same)) == code(module_of("A = 1\ndef f(h, at): return h + A\n"))


def test_closures_made_in_a_loop_at_module_level_are_told_apart():
    module = module_of(
        "edits, codes = [], []\nfor a in (0, 2, 8):\n    def push(h, at): return h + a\n    codes.append(name(push))\n".replace(
            "name(push)", "describe(push)['code']"
        ).replace("edits,", "from dit_lens.plan.functions import describe\nedits,")
    )
    assert len(set(module.codes)) == 3


def test_functions_that_call_each_other_have_an_end():
    source = "def f(h, at): return g(h, at)\ndef g(h, at): return f(h, at) if len(h) else k(h)\ndef k(h): return h\n"
    one, other = module_of(source), module_of(source)
    assert code(one) == code(other)
    exec("def k(h): return -h", other.__dict__)
    assert code(one) != code(other)


def test_a_library_is_named_by_its_version_and_not_entered():
    unnamed = []
    module = module_of(
        "import torch, numpy as np\ndef f(h, at): return torch.relu(h) + np.pi * torch.nn.functional.gelu(h)\n"
    )
    describe(module.f, unnamed)
    assert unnamed == []


UNNAMED = {
    "an open file": "lines = open(__import__('os').devnull)\ndef f(h, at): return h + len(lines.read())\n",
    "a generator": "scales = (k for k in [1, 2])\ndef f(h, at): return h * next(scales)\n",
    "an iterator": "scales = iter([1, 2])\ndef f(h, at): return h * next(scales)\n",
    "a lock": "import threading\nlock = threading.Lock()\ndef f(h, at):\n    with lock: return h\n",
    "eval": "def f(h, at): return eval('h + 1')\n",
    "a bare object": "import threading\nlocal = threading.local()\ndef f(h, at): return h * local.k\n",
    "globals": "A = 1\ndef f(h, at): return h + globals()['A']\n",
    "open": "def f(h, at): return h * len(open('scale.txt').read())\n",
}


@pytest.mark.parametrize("what", UNNAMED)
def test_what_cannot_be_named_is_said_and_equal_to_nothing(what):
    module, unnamed = module_of(UNNAMED[what]), []
    assert describe(module.f, unnamed) != describe(module.f)
    assert len(unnamed) == 1 and "function f" in unnamed[0]


@pytest.mark.parametrize(
    "name", ["builtins:eval", "os:system", "os:popen", "subprocess:run", "torch:load", "sys:exit"]
)
def test_a_plan_that_is_read_restores_records_and_edits_alone(name):
    with pytest.raises(PlanError, match=name):
        restore({"function": name, "code": "0"})


def test_reading_a_plan_imports_no_module_of_others(tmp_path, monkeypatch):
    (tmp_path / "somebodys_edits.py").write_text("raise SystemExit('run')\ndef f(h, at): return h\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PlanError, match=r"allow=\['somebodys_edits'\]"):
        restore({"function": "somebodys_edits:f", "code": "0"})
    (tmp_path / "somebodys_edits.py").write_text("def f(h, at): return h\n")
    import somebodys_edits

    data = describe(somebodys_edits.f)
    monkeypatch.delitem(sys.modules, "somebodys_edits")
    assert restore(data, allow=["somebodys_edits"])(3, None) == 3


# ---- values by content


@pytest.mark.parametrize(
    "one, other",
    [
        (1, 1.0),
        (1, np.int64(1)),
        (0.5, np.float32(0.5)),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ({3, 1, 2}, {2, 3, 1}),
        (torch.ones(3), torch.ones(3).clone()),
        (np.ones((4, 4)).T, np.ones((4, 4))),
        (float("inf"), np.inf),
    ],
)
def test_equal_values_have_equal_content(one, other):
    unnamed = []
    assert content(one, unnamed) == content(other, unnamed) and unnamed == []


def middle(value):
    return {
        "a": torch.zeros(4000),
        "b": torch.cat([torch.zeros(2000), torch.tensor([value]), torch.zeros(2000)]),
    }


@pytest.mark.parametrize(
    "one, other",
    [
        (1, True),
        (1, "1"),
        (0.0, -0.0),
        (float("inf"), "inf"),
        (float("inf"), float("-inf")),
        ([1, 2], (1, 2)),
        ({"@float": "inf"}, float("inf")),
        (middle(0.0), middle(1.0)),
        (np.zeros(3, np.float32), np.zeros(3, np.float64)),
        (np.zeros(3), torch.zeros(3).double()),
        (torch.zeros(2, dtype=torch.bfloat16), torch.zeros(2, dtype=torch.float16)),
        (np.array(["a", "b"], object), np.array(["a", "c"], object)),
        (np.array(["2020-01-01"], "M8[D]"), np.array(["2020-01-02"], "M8[D]")),
        ("\udc80", "\udc81"),
        (range(3), range(4)),
        (torch.float32, torch.float16),
        (functools.partial(int, base=2), functools.partial(int, base=3)),
    ],
)
def test_other_values_have_other_content(one, other):
    unnamed = []
    one, other = (
        json.dumps(content(value, unnamed)) for value in (one, other)
    )  # Python takes 1 and True as equal
    assert one != other and unnamed == []


def test_deep_and_circular_values_have_an_end():
    one, other = [1], [2]
    one.append(one)
    other.append(other)
    assert content(one, []) == content(one, []) != content(other, [])
    deep = []
    for _ in range(100_000):
        deep = [deep]
    unnamed = []
    content(deep, unnamed)
    assert len(unnamed) == 1 and "nested" in unnamed[0]


# ---- end to end


def test_a_run_with_something_unnamed_warns_and_is_never_reused(lens, sample, tmp_path):
    lock = threading.Lock()

    def guarded(h, at):
        with lock:
            return h

    names = []
    for _ in range(2):
        with pytest.warns(UserWarning, match=r"guarded.*cannot be named"):
            names.append(lens.run(sample, steps=1, edit=[guarded], store=tmp_path).path.name)
    assert len(set(names)) == 2


def test_runs_with_other_globals_are_other_runs_and_equal_ones_are_found(lens, sample, tmp_path):
    module = module_of("a = 0\ndef push(h, at): return h + a\n")
    runs = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for a in (0, 2, 2, 8):
            module.a = a
            runs.append(lens.run(sample, steps=1, record=[dl.x0], edit=[module.push], store=tmp_path))
    assert runs[1].path == runs[2].path and len({r.path for r in runs}) == 3
    assert not np.array_equal(runs[0]["x0"].values, runs[3]["x0"].values)


def test_arguments_and_seeds_of_other_number_types_are_the_same_run(lens, sample, tmp_path):
    names = {
        lens.run(sample, seed=seed, steps=steps, cfg_scale=cfg, store=tmp_path).path.name
        for seed, steps, cfg in ((1, 2, 1), (np.int64(1), np.int64(2), 1.0))
    }
    assert len(names) == 1


def test_what_a_late_import_reaches_counts_through_the_files_that_it_imports(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "late_inner.py").write_text("K = 1\n")
    late = tmp_path / "late_outer.py"

    def name_of(outer="import late_inner\n", inner="K = 1\n"):
        late.write_text(outer)
        (tmp_path / "late_inner.py").write_text(inner)
        importlib.invalidate_caches()
        module = module_of("def f(h, at):\n    import late_outer\n    return h * late_outer.late_inner.K\n")
        return describe(module.f, importing=False)["code"]

    first = name_of()
    assert name_of(inner="K = 22\n") != first
    assert name_of(outer='"""Says more."""\nimport late_inner  # and this\n') == first
    assert not {"late_outer", "late_inner"} & set(sys.modules)


@pytest.fixture
def late(tmp_path, monkeypatch):
    """A module of the user's that nothing has imported yet."""
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / f"late_{tmp_path.name}.py"
    yield file
    sys.modules.pop(file.stem, None)


def test_a_late_import_has_one_name_before_the_code_runs_and_after(late):
    late.write_text("K = 2.0\ndef gain(h): return h * K\n")
    module = module_of(f"def f(h, at):\n    from {late.stem} import gain\n    return gain(h)\n")
    before, kept = code(module), kept_by(module.f)
    assert module.f(1.0, None) == 2.0
    assert code(module) == before and kept_by(module.f) == kept
    sys.modules[late.stem].K = 3.0  # what a module holds now counts, whatever its file says
    assert code(module) != before and kept_by(module.f) != kept


def test_a_late_import_that_fails_breaks_no_name(late):
    for text in ("raise SystemExit(2)\n", "1 / 0\n"):
        late.write_text(text)
        importlib.invalidate_caches()
        code(module_of(f"def f(h, at):\n    import {late.stem}\n    return h\n"))


def test_a_library_has_one_name_before_it_is_imported_and_after(tmp_path, monkeypatch):
    folder = tmp_path / "site-packages"
    folder.mkdir()
    (folder / "late_library.py").write_text("__version__ = '1'\nK = 1\n")
    monkeypatch.syspath_prepend(folder)
    module = module_of("def f(h, at):\n    import late_library\n    return h * late_library.K\n")
    before = code(module)
    importlib.import_module("late_library")
    try:
        assert code(module) == before
    finally:
        del sys.modules["late_library"]


BRANCHES = """
if A:
    class C:
        for i in range(3):
            try:
                x = i
            except ValueError:
                x = 0
"""


def test_docstrings_of_classes_in_branches_and_loops_change_no_code():
    def digest(text):
        return bytecode.analyse(compile(text, "m.py", "exec")).digest

    said = BRANCHES.replace("class C:\n", 'class C:\n        """Say."""\n')
    assert digest(BRANCHES) == digest(said) == digest('"""Of a module."""\n' + said)
    assert digest(BRANCHES) != digest(BRANCHES.replace("range(3)", "range(4)"))


def test_a_random_generator_of_numpy_is_named_by_its_state():
    def name_of(seed, drawn=0):
        generator = np.random.default_rng(seed)
        generator.random(drawn)
        unnamed = []
        data = content(generator, unnamed)
        assert not unnamed
        return json.dumps(data)

    assert name_of(0) == name_of(0) and len({name_of(0), name_of(1), name_of(0, drawn=3)}) == 3


def test_labels_of_a_table_count_with_their_units_in_any_order():
    labels = {"x": ("n", [1, 2], {"units": "m"}), "y": ("n", [3, 4])}
    one = xr.DataArray([1.0, 2.0], labels, ("n",))
    other = xr.DataArray([1.0, 2.0], dict(reversed(labels.items())), ("n",))
    assert repr(content(one, [])) == repr(content(other, []))
    assert content(one, []) != content(one.assign_coords(x=("n", [1, 2], {"units": "km"})), [])


def test_a_module_that_a_function_imports_counts_in_its_inner_functions(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    helper = types.ModuleType("users_helper")
    monkeypatch.setitem(sys.modules, "users_helper", helper)
    source = """
def listed(h, at):
    import users_helper as m
    return [m.g(row) for row in h]
def inner(h, at):
    def go(row): return m.g(row)
    import users_helper as m
    return go(h)
"""
    names = {}
    for text in ("def g(h): return h", "def g(h): return -h"):
        exec(text, helper.__dict__)
        names[text] = [code(module_of(source), name) for name in ("listed", "inner")]
    assert not set.intersection(*map(set, names.values()))


def test_a_file_with_a_name_of_pythons_is_the_users_own(tmp_path):
    script = "import sys; sys.path.insert(0, sys.argv[1])\nfrom dit_lens.plan.content import content\nimport profile\n"
    script += "print(content(profile.Push, []))"
    names = set()
    for factor in (1, 2):
        (tmp_path / "profile.py").write_text(
            f"class Push:\n    def __call__(self, h, at): return h * {factor}\n"
        )
        out = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True
        )
        names.add(out.stdout)
    assert len(names) == 2


def test_a_record_counts_by_the_name_of_what_it_writes(sample, lens, tmp_path):
    def first(h):
        return h.float().norm(dim=-1)

    record = dl.keeps("frame", "y", "x")(first)
    one = lens.run(sample, steps=1, record=[record], store=tmp_path)
    record.__name__ = "second"
    two = lens.run(sample, steps=1, record=[record], store=tmp_path)
    assert one.path != two.path and "second" in two.names


def test_what_refers_to_itself_in_many_ways_comes_to_an_end():
    nested = []
    for _ in range(40):
        nested = [nested, nested, {}]
    unnamed = []
    content(nested, unnamed)
    assert "too many ways" in unnamed[0]


@pytest.mark.parametrize("get", [dict.get, dict.__getitem__], ids=["None for all", "KeyError for the rest"])
def test_an_object_whose_items_are_attributes_is_read_by_what_it_holds(get):
    config = type("Config", (dict,), {"__getattr__": get})
    assert content(config(a=1), []) == content(config(a=1), []) != content(config(a=2), [])


def test_a_function_that_numpy_wraps_has_no_name():
    unnamed = []
    content(np.frompyfunc(lambda x: x, 1, 1), unnamed)
    assert "np.frompyfunc" in unnamed[0] and content(np.sin, []) == content(np.sin, [])


def test_a_place_is_data_in_whatever_words():
    assert len({dl.at(step=s) for s in ([0, 1, 2], "0-2", slice(0, 3), range(3), "0,1-2", np.arange(3))}) == 1


def test_a_run_that_a_function_reads_counts_by_what_it_holds(sample, lens):
    runs = [lens.run(sample, seed, steps=1, record=[dl.energy]) for seed in (0, 0, 1)]
    names = [content(run, []) for run in runs]
    runs[0].dataset  # noqa: B018  (reading it changes no name)
    assert names[0] == names[1] == content(runs[0], []) != names[2]


def seq(h, at, ops=None, k=1):
    for f in (ops or {}).values():
        h = f(h)
    return h * k


def test_what_a_users_function_is_given_counts_by_type_and_order():
    one, other = {"a": abs, "b": sum}, {"b": sum, "a": abs}
    with_options = dl.options(lambda h, at, *, ops: seq(h, at, ops))
    for first, second in (
        (functools.partial(seq, ops=one), functools.partial(seq, ops=other)),
        (functools.partial(seq, 0, 0, one), functools.partial(seq, 0, 0, other)),
        (with_options(ops=one), with_options(ops=other)),
        (functools.partial(seq, k=1), functools.partial(seq, k=1.0)),
    ):
        assert digest(describe(first)) != digest(describe(second))
    assert digest(describe(dl.scale(factor=1))) == digest(describe(dl.scale(factor=1.0)))


class FrozenDict:
    """As many projects have it; diffusers has one too, which holds its items as attributes."""

    def __init__(self, **items):
        self.items = items


class Dice(random.Random):
    pass


def with_grad(value):
    weight = torch.zeros(2, requires_grad=True)
    weight.grad = torch.full((2,), value)
    return weight


def tree(value):
    return xr.DataTree.from_dict({"/sae": xr.Dataset({"w": ("x", [value])})})


def levels(*names):
    return pd.Series([1, 2], index=pd.MultiIndex.from_tuples([(0, 0), (1, 1)], names=names))


class Wrapped:
    """Holds an edit under a name that whoever watches a model uses."""

    def __init__(self, step):
        self.step = step

    def __call__(self, h, at):
        return self.step(h, at)


def straight_through(factor):
    class Straight(torch.autograd.Function):
        @staticmethod
        def forward(ctx, h):
            return h * factor

    return Straight.apply


def with_metadata(scale):
    @dataclasses.dataclass
    class Settings:
        x: float = dataclasses.field(default=1.0, metadata={"scale": scale})

    return Settings


def made(text):
    """Code made of text, with a library's names: as sympy's lambdify, or an expression of a configuration, makes it."""
    return eval(text, {**vars(torch)})


def timed(steps):
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(steps)
    return scheduler


class Study(dl.Lens):
    """A lens of the user's own, whose method is an edit."""

    def __init__(self, gain):
        self.gain = gain

    specimen = "a specimen"


PAIRS = {
    "code that is made of text": (made("lambda h, at: h * 2"), made("lambda h, at: tanh(h)")),
    "a library's object that is no part of a pipeline": (timed(10), timed(50)),
    "a lens of the user's own": (Study(1.0), Study(2.0)),
    "an edit of this package": (Wrapped(dl.scale(factor=2.0)), Wrapped(dl.scale(factor=3.0))),
    "a function with a gradient of its own": (straight_through(2.0), straight_through(3.0)),
    "a function in C": (math.sqrt, cmath.sqrt),
    "metadata of a field": (with_metadata(1), with_metadata(2)),
    "a generator's state": (random.Random(0), random.Random(1)),
    "the state below a class of the user's": (Dice(0), Dice(1)),
    "a gradient": (with_grad(1.0), with_grad(2.0)),
    "a node of a tree": (tree(1.0), tree(2.0)),
    "the names of levels": (levels("step", "layer"), levels("layer", "step")),
    "a class with a name of diffusers'": (FrozenDict(s=1), FrozenDict(s=2)),
    "words of the libraries of models": (argparse.Namespace(verbose=1), argparse.Namespace(verbose=2)),
    "items of such names": (defaultdict(float, verbose=1), defaultdict(float, verbose=2)),
    "a matrix": (np.array([[1.0]]), np.asmatrix([[1.0]])),
    "the order of categories": (pd.Categorical(["a"], ["a", "b"]), pd.Categorical(["a"], ["b", "a"])),
    "an extension array": (pd.array([1, 2]), pd.array([1, 3])),
}


def test_how_far_apart_the_times_of_an_index_are_counts_where_code_reads_them():
    def factor(times):
        return lambda h, at: h * float(times.freq.n)

    days, hours = (factor(pd.date_range("2020-01-01", periods=2, freq=freq)) for freq in ("2D", "48h"))
    assert describe(days) != describe(hours)


@pytest.mark.parametrize("name", PAIRS)
def test_other_content_is_other_data(name):
    first, second = PAIRS[name]
    assert content(first, []) == content(first, []) != content(second, [])


def test_an_object_is_named_without_a_look_at_the_scripts_folder(tmp_path):
    script = "import sys\nfrom dit_lens.plan.functions import describe\nclass Edit:\n    def __call__(self, h, at): return h\n"
    (tmp_path / "script.py").write_text(script + "describe(Edit())\nprint('named')\n")
    (tmp_path / "results.py").mkdir()
    (tmp_path / ".#script.py").symlink_to(tmp_path / "nothing")
    out = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert out.stdout == "named\n", out.stderr


def test_a_dispatcher_that_has_run_has_its_name():
    @functools.singledispatch
    def act(h):
        return h

    before = content(act, [])
    act(1.0)
    assert content(act, []) == before


def test_what_a_picture_says_of_itself_counts_where_code_reads_it():
    def reading(gain):
        picture = Image.new("RGB", (2, 2))
        picture.info["gain"] = gain
        return lambda h, at: h * float(picture.info["gain"])

    first, second = describe(reading("1")), describe(reading("2"))
    assert digest(first) == digest(describe(reading("1"))) != digest(second)


def test_a_users_attribute_of_a_lens_counts_and_a_lens_without_one_has_one_name(lens):
    def name():
        return digest(content(lens, []))

    before = name()
    assert digest(content(dl.Lens.of(lens.specimen), [])) == before
    lens.direction = torch.zeros(2)
    try:
        with_zeros = name()
        lens.direction = torch.ones(2)
        assert len({before, with_zeros, name()}) == 3
    finally:
        del lens.direction
    assert name() == before


def test_state_of_a_run_counts_outside_of_a_pipeline_alone(lens, pipe):
    """The scheduler of a pipeline under a lens is set anew by every run; another one of its class is a tool of the user's."""
    pipe.scheduler.set_timesteps(5)
    before = lens.identity(), content(pipe.scheduler, [])
    pipe.scheduler.set_timesteps(7)
    assert (lens.identity(), content(pipe.scheduler, [])) == before
    other = copy.deepcopy(pipe.scheduler)
    named = content(other, [])
    other.set_timesteps(9)
    assert content(other, []) != named


class Holder:
    """What a user may put on a model: it does its work by a tool."""

    def __init__(self, tool):
        self.tool = tool

    def __call__(self, *_):
        self.tool.sigmas.sum()


class Gate(torch.nn.Module):
    """A module of the user's that holds its tool under a private name."""

    def __init__(self, inner, tool):
        super().__init__()
        self.inner, self._tool = inner, tool

    def forward(self, x):
        return self.inner(x) * self._tool.sigmas[1]


def _forward(tool, *args, **kwargs):
    tool.sigmas.sum()


def _closure(tool):
    def act(*_):
        tool.sigmas.sum()

    return act


def _hook(put):
    return lambda block, tool: block.register_forward_hook(put(tool))


TOOLS_ON_A_MODEL = {
    "a hook that closes over it": _hook(_closure),
    "a hook that is an object": _hook(Holder),
    "a hook that is given it": _hook(lambda tool: functools.partial(_forward, tool)),
    "a hook that is its own method": _hook(lambda tool: tool.step),
    "an attribute": lambda block, tool: setattr(block, "processor", Holder(tool)),
    "a module's private attribute": lambda block, tool: setattr(block, "ffn", Gate(block.ffn, tool)),
    "another forward": lambda block, tool: setattr(block, "forward", functools.partial(_forward, tool)),
}


@pytest.mark.parametrize("put", TOOLS_ON_A_MODEL.values(), ids=TOOLS_ON_A_MODEL)
def test_a_tool_of_the_users_on_a_model_counts_with_all_that_is_in_it(tiny_pipe, put):
    lens = dl.Lens(pipe := tiny_pipe())
    tool = copy.deepcopy(pipe.scheduler)
    tool.set_timesteps(5)
    put(pipe.dit.blocks[0], tool)
    before = lens.identity()
    assert lens.identity() == before
    tool.set_timesteps(7)
    assert lens.identity() != before


def test_sources_that_changed_while_they_were_imported_have_a_name_of_their_own(tmp_path):
    file = tmp_path / "module.py"
    file.write_text("A = 1\n")
    os.utime(file, (1e9, 1e9))
    assert origin._sources(str(tmp_path)) == origin._sources(str(tmp_path))
    file.write_text("A = 2\n")
    assert origin._sources(str(tmp_path)) != origin._sources(str(tmp_path))


# ---- what looks like Python's own, pictures, flags, order, other pipelines


def test_what_a_user_puts_among_the_builtins_counts(monkeypatch):
    import builtins

    monkeypatch.setattr(builtins, "GAIN", 1.0, raising=False)
    monkeypatch.setattr(builtins, "abs", functools.partial(max, 0.0))

    def edit(h, at):
        return abs(h) * GAIN  # noqa: F821

    before = describe(edit)
    monkeypatch.setattr(builtins, "GAIN", 2.0, raising=False)
    changed = describe(edit)
    monkeypatch.setattr(builtins, "abs", functools.partial(max, 1.0))
    assert len({digest(data) for data in (before, changed, describe(edit))}) == 3


class Mask(Image.Image):
    gain = 1.0

    def on(self, h):
        return h * self.gain


def moving(shade):
    """A moving picture whose second frame has a shade."""
    frames = [Image.new("L", (4, 4), shade * n) for n in range(2)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    return Image.open(buffer)


def test_a_picture_that_code_reads_counts_with_all_that_it_holds(monkeypatch):
    def named(picture):
        def edit(h, at):
            return picture, h

        return digest(describe(edit))

    plain = Image.new("L", (4, 4), 3)
    before = named(plain)
    assert named(plain.copy()) == before
    plain.weight = 2.0
    assert named(plain) != before
    mask = Mask()
    mask.im, mask._mode, mask._size = plain.im, "L", plain.size
    as_mask = named(mask)
    monkeypatch.setattr(Mask, "on", lambda self, h: 3 * h)
    assert named(mask) != as_mask
    picture = moving(7)
    at_first = named(picture)
    assert picture.tell() == 0 and named(picture) == at_first
    assert named(moving(9)) != at_first


def test_whether_a_parameter_is_trained_counts_where_code_reads_it():
    net = torch.nn.Linear(2, 2)

    def edit(h, at):
        return h * sum(p.requires_grad for p in net.parameters())

    before = describe(edit)
    net.requires_grad_(False)
    assert describe(edit) != before


def test_the_order_of_members_and_attributes_counts():
    def made(first, second):
        kind = type("Steps", (), {first: 1.0, second: 2.0})
        held = kind()
        setattr(held, f"own_{first}", 1.0)
        setattr(held, f"own_{second}", 1.0)

        def edit(h, at):
            return kind, h

        def other(h, at):
            return held, h

        return digest(describe(edit)), digest(describe(other))

    ones, others = made("a", "b"), made("b", "a")
    assert made("a", "b") == ones
    assert all(one != other for one, other in zip(ones, others, strict=True))


def test_only_the_pipeline_that_runs_sets_its_scheduler_anew(tiny_pipe, sample, tmp_path):
    pipe, other = tiny_pipe(), dl.Lens(tiny_pipe(seed=1))
    lens = dl.Lens(pipe)
    lens.run(sample, steps=1)
    was, pipe.scheduler = pipe.scheduler, copy.deepcopy(pipe.scheduler)
    was.set_timesteps(5)
    other.pipe.scheduler.set_timesteps(5)

    def level(scheduler):
        return float(scheduler.sigmas[1])

    def by_own(h, at):
        return h * level(pipe.scheduler)

    def by_former(h, at):
        return h * level(was)

    def by_other(h, at):
        return h * level(other.pipe.scheduler)

    def by_levels(h, at):
        return h * float(pipe.scheduler.sigmas[at.step])

    def names():
        edits = [[(edit, dl.at(layer=0))] for edit in (by_own, by_levels, by_former, by_other)]
        return [lens.run(sample, steps=2, edit=edit, store=tmp_path).path.name for edit in edits]

    before = names()
    assert names() == before
    for scheduler in (was, other.pipe.scheduler):
        scheduler.set_timesteps(3)
    lens.run(sample, steps=3)
    after = names()
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, True, False, False]


AROUND = {
    "locals()": ("def f(h, at):\n    gain = 2.0\n    return h * locals()['gain']\n", True),
    "vars()": ("def f(h, at):\n    gain = 2.0\n    return h * vars()['gain']\n", True),
    "dir()": ("def f(h, at): return h * len(dir())\n", True),
    "vars of an object": ("class A: gain = 2.0\ndef f(h, at): return h * vars(A)['gain']\n", False),
    "a query of a variable": (
        "import pandas as pd\nT = pd.DataFrame({'layer': [0, 1]})\nFIRST = 1\n"
        "def f(h, at): return h * len(T.query('layer >= @FIRST'))\n",
        True,
    ),
    "an evaluation of a variable": (
        "import pandas as pd\nT = pd.DataFrame({'x': [0.0, 1]})\nA = 1\n"
        "def f(h, at): return h * float(T.eval('x * @A').sum())\n",
        True,
    ),
    "pandas' own evaluation": (
        "import pandas as pd\nT = pd.DataFrame({'x': [0.0, 1]})\nA = 1\n"
        "def f(h, at): return h * float(pd.eval('T.x * A').sum())\n",
        True,
    ),
    "a text made at run time": (
        "import pandas as pd\nT = pd.DataFrame({'x': [0.0, 1]})\nA = 1\n"
        "def f(h, at): return h * float(T.eval(chr(64) + 'A * x').sum())\n",
        True,
    ),
    "a frame": ("import sys\nA = 1\ndef f(h, at): return h * sys._getframe().f_globals['A']\n", True),
    "the current frame": (
        "import inspect\nA = 1\ndef f(h, at): return h * inspect.currentframe().f_globals['A']\n",
        True,
    ),
    "a query of numbers": (
        "import pandas as pd\nT = pd.DataFrame({'layer': [0, 1]})\n"
        "def f(h, at): return h * len(T.query('layer >= 1'))\n",
        False,
    ),
    "a module's eval": ("import torch\nM = torch.nn.Linear(2, 2)\ndef f(h, at): return M.eval()(h)\n", False),
}


@pytest.mark.parametrize("kind", AROUND)
def test_what_reads_the_variables_around_it_has_no_name(kind):
    source, is_unseen = AROUND[kind]
    unnamed = []
    content(module_of(source).f, unnamed)
    assert bool(unnamed) == is_unseen, unnamed


def test_the_order_of_a_dataset_counts_unless_files_gave_it(tmp_path):
    one = xr.Dataset({"a": ("x", [2.0]), "b": ("x", [3.0])}, {"x": [0]})
    other = one[["b", "a"]]
    assert digest(content(one, [])) != digest(content(other, []))
    assert digest(content(one, [])) == digest(content(one.copy(), []))
    for n, dataset in enumerate((one, other)):
        dataset.to_zarr(tmp_path / f"{n}.zarr")
    opened = [xr.open_zarr(tmp_path / f"{n}.zarr") for n in range(2)]
    assert digest(content(opened[0], [])) == digest(content(opened[1], []))
