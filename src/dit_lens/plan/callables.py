"""Functions by what they do: code, defaults, closures, and every global that the code reads, as far as the user's own goes.

A library's function is named by its name and the library's version; what it closes over counts all the same, since
decorators and transforms of libraries hold functions of the user's.

What code reads by a name that it makes when it runs (`getattr(module, name)` reads all of the module; `vars()[name]`,
`importlib`), from files, the clock, the environment or the state of a random generator is not seen. Code that calls
`eval`, `exec`, `open` and the like is said to be unnamed.
"""

from __future__ import annotations

import builtins
import functools
import gc
import importlib
import importlib.util
import inspect
import logging
import sys
import types
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from dit_lens.plan import attributes, bytecode, classes, origin, unimported

if TYPE_CHECKING:
    from dit_lens.plan.content import Walk

UNSEEN = frozenset(
    {
        *("eval", "exec", "compile", "open", "globals", "locals", "input", "__import__", "breakpoint"),
        *("id", "hash"),
    }
)
"""Builtins that read what no name says."""

_CONTAINERS = (dict, list, set, weakref.WeakKeyDictionary, weakref.WeakValueDictionary, weakref.WeakSet)

_ALIASES = {"OSError": ("EnvironmentError", "IOError")}
"""Classes among the builtins that stand there under more names."""

FUNCTION_UNTOLD = frozenset({"__wrapped__", "_torchdynamo_wrapper_id"})
"""Attributes of a function that say nothing of what it does, or are read apart."""

MODULE_UNTOLD = frozenset(
    (
        *(
            "__name__",
            "__doc__",
            "__file__",
            "__cached__",
            "__loader__",
            "__spec__",
            "__package__",
            "__builtins__",
        ),
        *("__path__", "__annotations__", "__warningregistry__", "__pycache__", "__annotate__"),
    )
)

_DESCRIPTORS = (
    *(types.WrapperDescriptorType, types.MethodDescriptorType, types.ClassMethodDescriptorType),
    *(types.GetSetDescriptorType, types.MemberDescriptorType),
)


def name_of(function: Any) -> str:
    """Return where a function can be imported from; for a callable object, the name of its class."""
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}:{named.__qualname__}"


def describe(walk: Walk, value: Any) -> Any | None:
    """Return a function, method, partial or descriptor as data; None where a value is none of these."""
    kind = type(value)  # and not what it says of itself: a proxy says that it is a function
    if kind is types.FunctionType:
        return function(walk, value)
    if kind is types.MethodType:
        return {"@method": walk.visit(value.__func__), "self": walk.visit(value.__self__, "its object")}
    if kind is functools.partial:
        with walk.reading(exact=True, in_order=True):
            parts = [walk.visit(part) for part in (value.func, value.args, value.keywords, vars(value))]
        return {"@partial": walk.node(value, lambda *_: parts)}
    is_cython = kind.__name__ == "cython_function_or_method"
    if is_cython or kind in (types.BuiltinFunctionType, types.MethodWrapperType):
        if _is_unseen(value):
            return walk.unnamed(value, f"{value.__name__}(), which reads what no name says,")
        holder = getattr(value, "__self__", None)
        bound = holder is not None and not isinstance(holder, types.ModuleType)
        return _named(value) | ({"self": walk.visit(holder, "its object")} if bound else {})
    if kind in _DESCRIPTORS:
        return {"@descriptor": value.__qualname__, "class": walk.visit(value.__objclass__)}
    for base, names in _WRAPPERS.items():
        if issubclass(kind, base):
            return _wrapper(walk, value, base, names)
    if kind is functools._lru_cache_wrapper:
        return {"@cached": walk.node(value, _cached)}
    if kind is types.CodeType:
        return {"@code": bytecode.analyse(value).digest}
    is_ufunc = kind.__name__ == "ufunc" and kind.__module__ == "numpy"
    if is_ufunc and not _is_of_a_library(value):
        return walk.unnamed(value, "a function that numpy wraps (np.frompyfunc)")
    return {"@ufunc": value.__name__, "library": origin.library("numpy")} if is_ufunc else None


_WRAPPERS: dict[type, tuple[str, ...]] = {
    property: ("fget", "fset", "fdel"),
    functools.cached_property: ("func",),
    staticmethod: ("__func__",),
    classmethod: ("__func__",),
}
"""What classes hold functions in, and under which names it holds them."""


def _wrapper(walk: Walk, value: Any, base: type, names: Sequence[str]) -> dict[str, Any]:
    """Return what holds a function of a class as data; a class of the user's that is built on it counts too."""
    data = {f"@{base.__name__}": [walk.visit(getattr(value, name), name) for name in names]}
    if type(value) is base:
        return data
    untold = {
        *names,
        *functools.WRAPPER_ASSIGNMENTS,
        "__wrapped__",
        "__isabstractmethod__",
        "attrname",
        "lock",
    }
    held = {k: v for k, v in getattr(value, "__dict__", {}).items() if k not in untold}
    return data | {"class": walk.visit(type(value)), "state": walk.visit(held)}


_FILLED_BY: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
"""Functions with a cache (`functools.lru_cache`) to what they were when it was empty: what it holds was made by that."""


def _cached(walk: Walk, value: Any) -> list[Any]:
    """Return a function with a cache as data, by what fills the cache, where that is known."""
    wrapped, entries = _inside(value)
    ours = _may_be_users(wrapped)
    if ours and not walk.watching:
        now = walk.alone().whole(wrapped)
        if not entries:
            _FILLED_BY[value] = now
        elif _FILLED_BY.get(value) != now:
            older = (
                f"{name_of(wrapped)}, whose cache may be older than what it reads (call its cache_clear()),"
            )
            return [walk.unnamed(value, older)]
    # Of plain values the code says all: the same call would give the same now.
    kept = [entry for entry in entries if ours and not all(map(_is_plain, entry))]
    untold = {*functools.WRAPPER_ASSIGNMENTS, "__wrapped__", "cache_parameters"}
    held = {k: v for k, v in vars(value).items() if k not in untold}
    with walk.reading(exact=True, in_order=True):
        parts = [walk.visit(wrapped), walk.visit(held)]
        return ["cached", *parts, [[walk.visit(part) for part in entry] for entry in kept]]


def _inside(cached: Any) -> tuple[Any, list[list[Any]]]:
    """Return what a function with a cache calls (`functools.wraps` puts another under `__wrapped__`), and what it remembers.

    In C it holds, in this order: its class; a key, a result and a class for each call, where their number is bounded; the
    calls by key; what it calls; three classes and marks; its attributes.
    """
    held = gc.get_referents(cached)
    stored, wrapped = held[-6:-4]
    between = held[1:-6]
    bounded = [between[n : n + 2] for n in range(0, len(between), 3)]
    return wrapped, bounded or [[key, result] for key, result in stored.items()]


def _may_be_users(value: Any) -> bool:
    """Say whether what a cache calls may read anything of the user's: whatever is no function of a library, decorated or not."""
    inner = inspect.unwrap(value)
    if not isinstance(inner, types.FunctionType):
        return not isinstance(inner, types.BuiltinFunctionType)
    whole = origin.is_library_function(inner) and inner.__closure__ is None
    return not (whole or origin.is_own_code(inner.__code__))


def _is_users(value: Any) -> bool:
    """Say whether a value is a Python function, and no library's."""
    return isinstance(value, types.FunctionType) and not origin.is_library_function(value)


def _is_plain(value: Any) -> bool:
    plain = (type(None), bool, int, float, complex, str, bytes)
    return type(value) in plain or (type(value) is tuple and all(map(_is_plain, value)))


def _is_of_a_library(ufunc: Any) -> bool:
    modules = (sys.modules.get(name) for name in ("numpy", "scipy.special"))
    return any(getattr(module, ufunc.__name__, None) is ufunc for module in modules)


def _is_unseen(value: Any) -> bool:
    """Say whether a value is a builtin that reads what no name says, under whatever name it is called."""
    return isinstance(value, types.BuiltinFunctionType) and any(
        getattr(builtins, name, None) is value for name in UNSEEN
    )


def _named(value: Any) -> dict[str, Any]:
    module = getattr(value, "__module__", None) or type(value.__self__).__module__
    return {"@builtin": f"{module}.{value.__qualname__}", "library": origin.library(str(module))}


def function(walk: Walk, value: types.FunctionType) -> dict[str, Any]:
    """Return a function made in Python as data: its name, and the hash of its code and of all that it reads."""
    bare = value.__closure__ is None and not value.__dict__ and value.__defaults__ is None
    if bare and walk.counts_whole(value.__module__) and walk.counts_whole(value.__globals__.get("__name__")):
        return {"function": name_of(value)}
    with walk.at(f"function {value.__qualname__}"):
        return {"function": name_of(value), "code": walk.node(value, _parts)}


def _parts(walk: Walk, value: types.FunctionType) -> list[Any]:
    with walk.reading(exact=True, in_order=True):
        module = value.__globals__.get("__name__")
        held = vars(value)
        # A function of `singledispatch`, which also keeps a cache.
        if module == "functools" and "registry" in held:
            return [
                "dispatch",
                walk.in_any_order(list(held["registry"].items())),
                walk.visit(held["__wrapped__"]),
            ]
        code = bytecode.analyse(value.__code__)
        if not origin.is_library_function(value):
            own = origin.is_own_code(
                value.__code__
            )  # which finds no method of the user's by a name that it makes
            walk.names |= bytecode.names(value.__code__) - (classes.ANY_NAME if own else frozenset())
        if "_torchdynamo_orig_callable" in held:
            return [walk.unnamed(value, "a function that is compiled (torch.compile)")]
        declared = {k: v for k, v in sorted(vars(value).items(), key=str) if k not in FUNCTION_UNTOLD}
        parts: list[Any] = ["function", walk.visit(declared, "its attributes")]
        if hasattr(value, "__wrapped__"):
            parts.append(walk.visit(value.__wrapped__))
        whole = walk.counts_whole(module)
        if whole or origin.is_library_function(value):
            around = [
                _cell(walk, n, cell)
                for n, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
            ]
            library = "whole" if whole else origin.library(str(module))
            if "<locals>" not in value.__code__.co_qualname:
                return [*parts, library, value.__code__.co_qualname, around]
            # Several functions in one may have one name, and defaults that are the user's.
            return [*parts, library, value.__code__.co_qualname, around, code.digest, _defaults(walk, value)]
        told = [walk.visit(value.__annotations__, "its annotations"), _defaults(walk, value)]
        return [*parts, code.digest, told, [_read(walk, value, reading) for reading in code.readings]]


def _defaults(walk: Walk, value: types.FunctionType) -> list[Any]:
    return [walk.visit(part, "a default") for part in (value.__defaults__, value.__kwdefaults__)]


def _cell(walk: Walk, name: str, cell: types.CellType, names: Sequence[str] = ()) -> Any:
    try:
        value = cell.cell_contents
    except ValueError:
        return {"@empty": True}
    with walk.at(f"its variable {name!r}"):
        return follow(walk, value, names)


def _read(walk: Walk, value: types.FunctionType, reading: bytecode.Reading) -> Any:
    if reading.kind == "cell":
        cell = dict(zip(value.__code__.co_freevars, value.__closure__ or (), strict=True))[reading.name]
        return _cell(walk, reading.name, cell, reading.attributes)
    if reading.kind in ("module", "import"):
        return imported(walk, reading, str(value.__globals__.get("__package__") or ""))
    if reading.kind == "unseen":
        return walk.unnamed(value, f"{reading.name}(), which reads what no name says,")
    if reading.name == "hash" and value.__name__ == "__hash__" and "hash" not in value.__globals__:
        return {"@builtin": "hash"}  # where in a set something stands does not count
    with walk.trusting(origin.is_own_code(value.__code__)):
        return named(walk, reading.name, reading.attributes, value.__globals__)


def named(walk: Walk, name: str, names: Sequence[str], scope: Mapping[str, Any]) -> Any:
    """Return what code reads by a name of its module, or of Python itself."""
    if name == "@py_builtins":  # which pytest writes into assertions: no user can
        return {"@builtin": name}
    if name in scope:
        if walk.is_trusting and name.startswith("_") and isinstance(scope[name], _CONTAINERS):
            # This package's own, of what was named and run before.
            return {"@memory": type(scope[name]).__qualname__}
        with walk.at(f"the global {name!r}"):
            return follow(walk, scope[name], names)
    known = scope.get("__builtins__", builtins)
    known = known if isinstance(known, Mapping) else vars(known)
    if name not in known:
        return {"@missing": name}
    if name in UNSEEN:
        return walk.unnamed(known[name], f"{name}(), which reads what no name says,")
    # A builtin that somebody has put there, or replaced, is no builtin.
    ours = getattr(builtins, name, None) is known[name] and _is_pythons_own(known[name], name)
    return {"@builtin": name} if ours else walk.visit(known[name], f"the builtin {name!r}")


def _is_pythons_own(value: Any, name: str) -> bool:
    """Say whether a value that stands among the builtins under a name is the one that Python has put there."""
    if isinstance(value, types.BuiltinFunctionType | type):
        own = {value.__name__, *_ALIASES.get(value.__name__, ())}
        return name in own and value.__module__ in ("builtins", "_io", "io")
    return value is None or type(value) in (bool, type(Ellipsis), type(NotImplemented))


def imported(walk: Walk, reading: bytecode.Reading, package: str) -> Any:
    """Return what code reads of a module that it imports itself."""
    try:
        name = importlib.util.resolve_name("." * reading.level + reading.name, package)
    except ImportError:
        return {"@missing": reading.name}
    if origin.is_library_module(name):
        return {"@module": name, "library": origin.library(name), "read": list(reading.attributes)}
    module = _loaded(name, walk.importing)
    if module is None or (reading.kind == "import" and getattr(module, "__file__", None)):
        return unimported.describe(walk, name, reading.attributes, functools.partial(imported, walk))
    inner = sys.modules.get(f"{name}.{reading.attributes[0]}") if reading.attributes else None
    if inner is not None and not hasattr(module, reading.attributes[0]):
        return follow(walk, inner, reading.attributes[1:])
    return follow(walk, module, reading.attributes)


def _loaded(name: str, importing: bool) -> types.ModuleType | None:
    """Return a module of the user's if it is imported; import it where that is allowed."""
    if importing and name not in sys.modules:
        with suppress(Exception, SystemExit):  # the code that imports it fails as well, or does without
            importlib.import_module(name)
    return sys.modules.get(name)


def follow(walk: Walk, value: Any, names: Sequence[str]) -> Any:
    """Return what stands at the end of a chain of attributes, or the last value on it that has to be taken whole.

    Modules are followed, and what objects hold as plain attributes; what a class computes (a method, a property) may
    read all of its object. Below a library, only what is plain data or the user's own counts beside the version.
    """
    library = None
    for n, name in enumerate(names):
        if (name == "modules" and value is sys) or name == "__globals__":
            return walk.unnamed(value, f"{name}, in which code finds what no name says,")
        if isinstance(value, types.ModuleType):
            if library is None and _is_of_library(value):
                library = [value.__name__, *names[n:]]
            try:
                value = getattr(value, name)
            except (AttributeError, ImportError):
                return {"@missing": name}
        elif library is not None or attributes.is_written_by_runs(walk, value, name):
            break
        else:
            held = _held(value, name)
            if held is _NOTHING:
                break
            value = held
    if library is None:
        return walk.visit(value)
    data = {"@module": library, "library": origin.library(library[0])}
    plain = isinstance(value, bool | int | float | str | type(None))
    counts = plain or _is_users(value) or _is_unseen(value)
    return data | ({"value": walk.visit(value)} if counts else {})


_NOTHING = object()


def _held(value: Any, name: str) -> Any:
    """Return a plain attribute of an object; `_NOTHING` where its class has a say in it."""
    says_itself = hasattr(type(value), "__content__")
    if isinstance(value, type | logging.Logger) or says_itself:  # of which not all counts
        return _NOTHING
    if type(value).__getattribute__ is not object.__getattribute__ or not hasattr(value, "__dict__"):
        return _NOTHING
    for base in type(value).__mro__:
        if name in vars(base):
            return _NOTHING
    held = vars(value)
    if name in held:
        return held[name]
    if not str(getattr(getattr(type(value), "__getattr__", None), "__module__", "")).startswith("torch."):
        return _NOTHING
    for part in ("_parameters", "_buffers", "_modules"):  # of torch modules
        inside = held.get(part)
        if isinstance(inside, dict) and name in inside:
            return inside[name]
    return _NOTHING


def module(walk: Walk, value: types.ModuleType) -> Any:
    """Return a module as data: a library's by version, the user's by all that it holds."""
    if _is_of_library(value):
        return {"@module": value.__name__, "library": origin.library(value.__name__)}
    kind = [] if type(value) is types.ModuleType else [walk.visit(type(value))]
    with walk.at(f"module {value.__name__}"):
        held = {k: v for k, v in sorted(vars(value).items()) if k not in MODULE_UNTOLD}
        code = walk.node(value, lambda *_: ["module", *kind, walk.visit(held)])
        return {"@module": value.__name__, "code": code}


def _is_of_library(value: types.ModuleType) -> bool:
    """Say whether a module is a library's: it was found where libraries are, and does not only bear such a name."""
    imported = getattr(value, "__spec__", None) is not None or sys.modules.get(value.__name__) is value
    return imported and origin.is_library_module(value.__name__)
