"""Functions that differ in what Python does for them have other names: classes made on the way, descriptors, imports, caches.

Each specimen is a module with `@@` in it, put in two ways; its `f` gives two results.
"""

import sys
import types

import numpy as np
import pytest
import torch

from dit_lens.plan.functions import describe, kept_by
from dit_lens.plan.source import describe_source

CLASSES = {
    "type() on an abstract class": (
        "import abc\nclass B(abc.ABC):\n    def __call__(self, h, at): return h * self.scale\n"
        "f = type('E', (B,), {'scale': @@})()",
        ("2.0", "3.0"),
    ),
    "types.new_class": (
        "import types\nclass B:\n    def __call__(self, h, at): return h * self.scale\n"
        "f = types.new_class('E', (B,), {}, lambda held: held.update(scale=@@))()",
        ("2.0", "3.0"),
    ),
    "make_dataclass": (
        "import dataclasses\nE = dataclasses.make_dataclass('E', [('a', float, @@)])\ndef f(h, at): return h * E().a",
        ("2.0", "3.0"),
    ),
    "a class that says that it is a library's": (
        "class E:\n    def __call__(self, h, at): return h * @@\nE.__module__ = 'torch.nn'\nf = E()",
        ("2.0", "3.0"),
    ),
    "a class run by exec": (
        "held = {}\nexec('class E:\\n def __call__(self, h, at): return h * @@', held)\nf = held['E']()",
        ("2.0", "3.0"),
    ),
    "a subclass of property": (
        "class Scaled(property):\n    def __get__(self, o, kind=None): return super().__get__(o, kind) * @@\n"
        "class E:\n    @Scaled\n    def s(self): return 1.0\n    def __call__(self, h, at): return h * self.s\nf = E()",
        ("2.0", "3.0"),
    ),
    "the state of a property": (
        "class Scaled(property):\n    def __get__(self, o, kind=None): return super().__get__(o, kind) * self.k\n"
        "class E:\n    s = Scaled(lambda self: 1.0)\n    s.k = @@\n    def __call__(self, h, at): return h * self.s\n"
        "f = E()",
        ("2.0", "3.0"),
    ),
    "a method of a library's class": (
        "class S(float):\n    __mul__ = float.__@@__\nA = S(3)\ndef f(h, at): return h * (A * 2.0)",
        ("add", "sub"),
    ),
    "the order of slots": (
        "class E:\n    __slots__ = (@@)\n    def __init__(self): self.a, self.b = 2.0, 5.0\n"
        "    def __call__(self, h, at): return h * getattr(self, self.__slots__[0])\nf = E()",
        ("'a', 'b'", "'b', 'a'"),
    ),
    "the order of a pattern": (
        "class P:\n    __match_args__ = (@@)\n    a, b = 2.0, 5.0\n"
        "def f(h, at):\n    match P():\n        case P(x, _): return h * x",
        ("'a', 'b'", "'b', 'a'"),
    ),
    "annotations of a class": (
        "from typing import get_type_hints\nclass C:\n    s: @@ = 1.6\n"
        "def f(h, at): return h * get_type_hints(C)['s'](C.s)",
        ("int", "float"),
    ),
    "annotations of a function": (
        "def g(s: @@): return s\ndef f(h, at): return h * g.__annotations__['s'](1.6)",
        ("int", "float"),
    ),
    "what makes a field": (
        "import dataclasses\n@dataclasses.dataclass(init=False)\nclass E:\n"
        "    a: list = dataclasses.field(default_factory=lambda: [@@])\n"
        "def f(h, at): return h * dataclasses.fields(E)[0].default_factory()[0]",
        ("2.0", "3.0"),
    ),
    "what was registered with an abstract class": (
        "import abc\nclass A(abc.ABC): pass\nclass X: pass\nclass Y: pass\nA.register(@@)\n"
        "def f(h, at): return h * (2.0 if isinstance(X(), A) else 3.0)",
        ("X", "Y"),
    ),
    "a hash": (
        "class S:\n    def __init__(self, k): self.k = k\n    def __hash__(self): return @@\n"
        "    def __eq__(self, other): return True\ndef f(h, at): return h * len({S(1), S(2)})",
        ("1", "self.k"),
    ),
    "a class inside an alias": (
        "import typing\nT = typing.TypeVar('T')\nclass S(typing.Generic[T]):\n    def g(self, h): return h * @@\n"
        "A = S[int]\ndef f(h, at): return A().g(h)",
        ("2.0", "3.0"),
    ),
    "an object beside a type": (
        "import typing\nclass S:\n    def __init__(self, k): self.k = k\nA = typing.Annotated[float, S(@@)]\n"
        "def f(h, at): return h * typing.get_args(A)[1].k",
        ("2.0", "3.0"),
    ),
}

VALUES = {
    "a text whose class hides it": (
        "class S(str):\n    def __str__(self): return '***'\nA = S('@@')\ndef f(h, at): return h * len(A)",
        ("a", "ab"),
    ),
    "a list whose class hides it": (
        "class L(list):\n    def __iter__(self): return iter(())\nA = L([@@])\ndef f(h, at): return h * A[0]",
        ("2.0", "3.0"),
    ),
    "a number whose class hides it": (
        "class N(int):\n    def __int__(self): return 1\nA = N(@@)\ndef f(h, at): return h * A",
        ("2", "3"),
    ),
    "a proxy that says that it is a function": (
        "def g(h): return h\nclass Proxy:\n    def __init__(self, k): self.k = k\n"
        "    __class__ = property(lambda self: type(g))\n    def __call__(self, h): return g(h) * self.k\n"
        "A = Proxy(@@)\ndef f(h, at): return A(h)",
        ("2.0", "3.0"),
    ),
    "attributes of a partial": (
        "import functools\ndef g(h, k): return h * k\np = functools.partial(g, k=1.0)\np.weight = @@\n"
        "ALL = [p]\ndef f(h, at): return sum(q(h) * q.weight for q in ALL)",
        ("2.0", "3.0"),
    ),
    "attributes of a member of an enumeration": (
        "import enum\nclass C(enum.Enum):\n    A = 1\nC.A.scale = @@\ndef f(h, at): return h * C.A.scale",
        ("2.0", "3.0"),
    ),
    "the class of a module": (
        "import types\nclass M(types.ModuleType):\n    def k(self): return @@\n    def g(self, h): return h * self.k()\n"
        "m = M('m')\ndef f(h, at): return m.g(h)",
        ("2.0", "3.0"),
    ),
    "a module that bears a library's name": (
        "import types\nm = types.ModuleType('math')\nm.k = [@@]\ndef f(h, at): return h * m.k[0]",
        ("2.0", "3.0"),
    ),
    "the unit of a time": (
        "import numpy as np\nA = np.timedelta64(5, '@@')\ndef f(h, at): return h * (A / np.timedelta64(1, 'ps'))",
        ("ns", "ps"),
    ),
    "a time zone": (
        "import datetime as dt\nA = dt.timezone(dt.timedelta(hours=@@), 'X')\n"
        "def f(h, at): return h * A.utcoffset(None).seconds",
        ("2", "3"),
    ),
    "the numbers in a memory": (
        "A = memoryview(bytes(range(8))).cast('@@')\ndef f(h, at): return h * float(A[0])",
        ("f", "i"),
    ),
    "an object in a slice": (
        "class K:\n    def __init__(self, k): self.k = k\n    def __repr__(self): return 'K'\nA = slice(K(@@))\n"
        "def f(h, at): return h * A.stop.k",
        ("2.0", "3.0"),
    ),
    "a module that changes what it holds": (
        "import torch\nclass M(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.w = torch.nn.Parameter(torch.ones(()))\n    def __getattr__(self, name):\n"
        "        v = super().__getattr__(name)\n        return v * @@ if name == 'w' else v\n"
        "m = M()\ndef f(h, at): return (h * m.w).detach()",
        ("2.0", "3.0"),
    ),
}


def module_of(source):
    module = types.ModuleType("users_module")
    exec(compile(source, "/home/somebody/users_module.py", "exec"), module.__dict__)
    return module


def described(source):
    function, unnamed = module_of(source).f, []
    return function(torch.arange(1.0, 5.0), None), describe(function, unnamed), unnamed


@pytest.mark.parametrize("source, ways", [*CLASSES.values(), *VALUES.values()], ids=[*CLASSES, *VALUES])
def test_what_changes_the_result_changes_the_name(source, ways):
    (a, named_a, unnamed_a), (b, named_b, unnamed_b) = (described(source.replace("@@", way)) for way in ways)
    assert not torch.equal(a, b)
    assert named_a != named_b
    assert not unnamed_a and not unnamed_b
    assert described(source.replace("@@", ways[0]))[1] == named_a


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    names = ("users_fast", "users_slow", "users_plugin")
    yield tmp_path
    for name in names:
        sys.modules.pop(name, None)


def name_of(source):
    unnamed = []
    data = describe(module_of(source).f, unnamed)
    assert not unnamed
    return data


def test_each_of_several_imports_of_one_name_counts(in_folder):
    (in_folder / "users_fast.py").write_text("k = 2.0\n")
    (in_folder / "users_slow.py").write_text("k = 3.0\n")
    source = (
        "def f(h, at):\n    try: import users_fast as q\n    except ImportError: import users_slow as q\n"
        "    return h * q.k\n"
    )
    import users_fast
    import users_slow

    before = name_of(source)
    users_fast.k = 5.0
    assert name_of(source) != before
    users_fast.k, users_slow.k = 2.0, 5.0
    assert name_of(source) != before


def test_a_module_that_is_imported_for_what_that_does_counts(in_folder):
    plugin = in_folder / "users_plugin.py"
    source = "REG = {'k': 1.0}\ndef f(h, at):\n    import users_plugin\n    return h * REG['k']\n"
    plugin.write_text("k = 2.0\n")
    before = name_of(source)
    import users_plugin  # noqa: F401

    assert name_of(source) == before
    plugin.write_text("k = 3.0  # another length\n")
    assert name_of(source) != before


CACHED = {
    "a function": "@functools.lru_cache\ndef k(): return C['k']\n",
    "a decorated function": "@functools.lru_cache\n@torch.no_grad()\ndef k(): return C['k']\n",
    "a bound method": "class E:\n    def g(self): return C['k']\nk = functools.lru_cache(E().g)\n",
    "a partial": "def g(n): return C['k']\nk = functools.lru_cache(functools.partial(g, 1))\n",
    "an object": "class E:\n    def __call__(self): return C['k']\nk = functools.lru_cache(E())\n",
}


@pytest.mark.parametrize("cached", CACHED.values(), ids=CACHED)
def test_a_cache_that_may_be_older_than_what_it_reads_is_unnamed(cached):
    source = f"import functools, torch\nC = {{'k': 1.0}}\n{cached}def f(h, at): return h * k()"
    module, unnamed = module_of(source), []
    first = describe(module.f, unnamed)
    module.k()
    assert describe(module.f, unnamed) == first and not unnamed  # filled since it was seen empty
    module.C["k"] = 2.0
    describe(module.f, unnamed)
    assert "cache may be older than what it reads (call its cache_clear())" in unnamed[0]
    module.k.cache_clear()
    assert describe(module.f, unnamed[1:]) != first
    filled, unnamed = module_of(source), []
    filled.k()
    describe(filled.f, unnamed)
    assert unnamed


UNNAMED = {
    "subclasses": "class B: pass\ndef f(h, at): return h * len(B.__subclasses__())",
    "eval under another name": "E = eval\ndef f(h, at): return h * E('2.0')",
    "eval of a module": "import builtins\ndef f(h, at): return h * builtins.eval('2.0')",
}


@pytest.mark.parametrize("source", UNNAMED.values(), ids=UNNAMED)
def test_what_reads_that_which_no_name_says_is_unnamed(source):
    unnamed = []
    describe(module_of(source).f, unnamed)
    assert "reads what no name says" in unnamed[0]


RAISING = {
    "an attribute": "class E:\n    @property\n    def __dict__(self): raise OSError('gone')\nA = E()\ndef f(h, at): return A",
    "pickling": "class E(bytearray):\n    def __reduce_ex__(self, n): return (1,)\nA = E()\ndef f(h, at): return A",
    "a memory": "A = memoryview(b'abc')\nA.release()\ndef f(h, at): return A",
    "a proxy": "import weakref\nclass E: pass\nA = weakref.proxy(E())\ndef f(h, at): return A",
}


@pytest.mark.parametrize("source", RAISING.values(), ids=RAISING)
def test_what_raises_as_it_is_read_is_unnamed(source):
    unnamed = []
    describe(module_of(source).f, unnamed)
    assert unnamed


@pytest.mark.parametrize("frozen", [True, False])
def test_a_hash_of_what_an_object_holds_is_no_reading(frozen):
    unnamed = []
    source = (
        f"import dataclasses\n@dataclasses.dataclass(frozen={frozen})\nclass E:\n    a: float = 2.0\n"
        + ("" if frozen else "    def __hash__(self): return hash((self.a,))\n")
        + "def f(h, at): return h * len({E(), E(1.0)})"
    )
    describe(module_of(source).f, unnamed)
    assert not unnamed


METHODS = "A = (2.0).__mul__\ndef f(h, at): return h * A(3.0)"


def test_a_method_of_a_number_is_named_by_the_number():
    unnamed = []
    named = [describe(module_of(METHODS.replace("2.0", n)).f, unnamed) for n in ("2.0", "3.0")]
    assert named[0] != named[1] and not unnamed


def test_numpys_global_state_does_not_name_what_only_holds_it():
    from scipy import stats

    module = module_of("def f(h, at): return h * float(A.cdf(0.5))")
    module.A = stats.norm(0, 2)
    before = describe(module.f)
    stats.norm.rvs()
    assert describe(module.f) == before


def test_what_a_cache_holds_that_can_change_is_named_by_what_it_is_now():
    source = (
        "import functools\n@functools.lru_cache\ndef config(): return {'scale': 2.0}\n"
        "class Steer:\n    def __init__(self, a): self.a = a\n    @functools.lru_cache(maxsize=None)\n"
        "    def factor(self): return self.a\n    def __call__(self, h): return h * self.factor()\n"
        "S = Steer(2.0)\ndef f(h, at): return S(h) * config()['scale']"
    )
    module, unnamed = module_of(source), []
    h = torch.ones(2)

    def look():
        return describe(module.f, unnamed)

    look()
    module.f(h, None)
    filled = look()
    assert look() == filled
    module.config()["scale"] = 5.0
    changed = look()
    assert changed != filled and not unnamed
    module.S.a = 3.0  # the cache still holds 2
    assert look() != changed
    fresh = module_of(source.replace("Steer(2.0)", "Steer(3.0)"))
    assert look() != describe(fresh.f)


@pytest.mark.parametrize("code", ["n * 2.0", "n if n < 1 else k(n - 1) + 1"])
def test_pure_caches_change_no_name(code):
    module = module_of(
        f"import functools\n@functools.cache\ndef k(n): return {code}\ndef f(h, at): return h * k(1)"
    )
    before, unnamed = describe(module.f), []
    module.f(torch.ones(1), None)
    assert describe(module.f, unnamed) == before and not unnamed


def test_a_cache_that_a_batch_has_looked_at_keeps_its_name():
    module = module_of(
        "import functools, torch\nA = torch.ones(3)\n@functools.cache\ndef k(n): return float(A[n])\n"
        "def f(h, at): return h * k(1)"
    )
    kept_by(module.f)
    before, unnamed = describe(module.f), []
    kept_by(module.f)
    module.f(torch.ones(1), None)
    kept_by(module.f)
    assert describe(module.f, unnamed) == before and not unnamed


@pytest.mark.parametrize(
    "code", ["from random import random as A", "import torch\nA = torch.finfo(torch.float32)"]
)
def test_ordinary_globals_have_one_name(code):
    import random

    unnamed = []
    before = describe(module_of(f"{code}\ndef f(h, at): return h * (1 if A else 2)").f, unnamed)
    random.random()
    assert describe(module_of(f"{code}\ndef f(h, at): return h * (1 if A else 2)").f, unnamed) == before
    assert not unnamed


def test_a_compiled_function_is_unnamed():
    unnamed = []
    module = module_of("import torch\n@torch.compile(backend='eager')\ndef f(h, at): return h * 2")
    describe(module.f, unnamed)
    assert "compiled (torch.compile)" in unnamed[0]


@pytest.mark.parametrize("read", ["A.debug('x')", "h = h if A.handlers else h"])
def test_a_logger_is_named_apart_from_all_other_loggers(read):
    import logging
    import uuid

    made = f"import logging\nA = logging.getLogger({read!r})\n"
    module = module_of(f"{made}def f(h, at):\n    {read}\n    return h")
    before, unnamed = describe(module.f), []
    logging.getLogger(uuid.uuid4().hex)
    module.A.addHandler(logging.NullHandler())
    assert describe(module.f, unnamed) == before and not unnamed
    module.A.gain = 2.0
    assert describe(module.f) != before


def test_a_look_calls_nothing_of_the_users():
    """What a cache holds counts as it is: to make it once more would draw, pop, print and load once more."""
    module = module_of(
        "import functools, torch\nCALLS = []\nclass E:\n    def __init__(self): self.v = torch.ones(2)\n"
        "    @functools.cached_property\n    def unit(self): CALLS.append(0); return self.v / self.v.norm()\n"
        "@functools.lru_cache\ndef g(n): CALLS.append(0); return torch.ones(n)\nA = E()\n"
        "def f(h, at): return h * A.unit * g(2)"
    )
    module.f(torch.ones(2), None)
    for look in (describe, kept_by, describe):
        look(module.f)
    assert len(module.CALLS) == 2


def test_a_file_of_arrays_is_named_by_the_arrays(tmp_path):
    source = "import numpy as np\nD = np.load('@@')\ndef f(h, at): return h * float(D['v'][0])"
    named = []
    for n, value in enumerate((2.0, 2.0, 3.0)):
        np.savez(tmp_path / f"{n}.npz", v=np.full(2, value))
        module, unnamed = module_of(source.replace("@@", f"{tmp_path}/{n}.npz")), []
        named.append(describe(module.f, unnamed))
        kept = kept_by(module.f)
        module.f(torch.ones(1), None)
        assert kept_by(module.f) == kept and not unnamed
    assert named[0] == named[1] != named[2]


@pytest.mark.parametrize("code", ["from os import environ as A", "import os\nA = os.environ"])
def test_the_environment_is_not_seen(code, monkeypatch):
    module, unnamed = module_of(f"{code}\ndef f(h, at): return h * len(A.get('USERS_GAIN', ''))"), []
    before = describe(module.f, unnamed)
    monkeypatch.setenv("USERS_OTHER", "1")
    assert describe(module.f, unnamed) == before and not unnamed


BESIDE = {
    "saving": "def save(self, path):\n        with open(path, 'wb') as f: torch.save(self.v, f)",
    "loading": "@classmethod\n    def load(cls, path):\n        with open(path, 'rb') as f: return cls(torch.load(f))",
    "a text": "def __repr__(self): return f'E {id(self)}'",
}
READING = {
    "calls it": "A.save('x')",
    "calls what calls it": "A.save_all('x')",
    "finds it by name": "getattr(A, 'sa' + 've')('x')",
    "makes a text": "len(f'{A}')",
}


def sae(beside, reads="0", base="object"):
    return module_of(
        f"import torch\nclass E({base}):\n    def __init__(self, v):\n        super().__init__()\n        self.v = v\n"
        f"    {beside}\n"
        "    def save_all(self, path): self.save(path)\n    def forward(self, h): return h * self.v\n"
        "    def __call__(self, h): return self.forward(h)\n"
        f"A = E(2.0)\ndef f(h, at): return A(h), {reads}"
    )


@pytest.mark.parametrize("base", ["object", "torch.nn.Module"])
@pytest.mark.parametrize("beside", BESIDE.values(), ids=BESIDE)
def test_a_method_that_nothing_calls_takes_no_name(beside, base):
    unnamed = []
    named = describe(sae(beside, base=base).f, unnamed)
    changed = beside.replace("):", ", n=1):", 1)
    assert describe(sae(beside, base=base).f) == named != describe(sae(changed, base=base).f)
    reads = [
        describe_source("x = A(1)", vars(sae(beside, base=base)), {}, unnamed)["reads"] for _ in range(2)
    ]
    assert reads[0] == reads[1] and not unnamed


@pytest.mark.parametrize("reads", READING.values(), ids=READING)
def test_a_method_that_may_be_called_takes_the_name(reads):
    beside = BESIDE["a text"] + "\n    " + BESIDE["saving"]
    unnamed, unnamed_body = [], []
    assert describe(sae(beside, reads).f, unnamed) != describe(sae(beside, reads).f)
    describe_source(f"x = {reads}", vars(sae(beside)), {}, unnamed_body)
    assert "reads what no name says" in unnamed[0] and "reads what no name says" in unnamed_body[0]
