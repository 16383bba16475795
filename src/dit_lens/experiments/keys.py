"""Keys: what names a cached result, so that whatever changes the result changes its name.

A key holds the settings, the model (`lens.identity()`), the samples by their content, the versions of libraries, and the code
that the measurement can reach. Code is followed by name: from a function through the globals and the attributes of modules that
it names, its defaults and what it closes over, into the user's own code and this library, wherever it lies. It ends at other
libraries, which count by their version.

What is reached through an object (`batch.step`) names no function. So the parts of the library whose objects a measurement is
handed (the engine, families, models, stores) count whole, by their compiled code. Neither comments, docstrings nor line numbers
ever matter.
"""

from __future__ import annotations

import copyreg
import functools
import hashlib
import importlib.util
import inspect
import logging
import sys
import threading
import types
import uuid
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import fields, is_dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import xarray as xr
from PIL import Image

from dit_lens.experiments import bytecode
from dit_lens.experiments.options import Options
from dit_lens.store import versions
from dit_lens.tasks.sample import Sample

LIBRARY = Path(__file__).parents[1]
WHOLE = ("engine", "families", "models", "plan", "store", "edits.py", "lens.py", "records.py")
"""Parts of the library that count whole: their objects are handed to measurements."""

INERT = (
    *(logging.Logger, ContextVar, weakref.WeakSet, weakref.WeakKeyDictionary, weakref.WeakValueDictionary),
    *(type(threading.Lock()), type(threading.RLock()), threading.local),
)
"""Kinds of objects that carry no setting: they count by their kind."""

SKIPPED = ("_abc_impl",)
"""What `abc` adds to a class."""

GENERATED = (
    *("__init__", "__repr__", "__eq__", "__hash__", "__lt__", "__le__", "__gt__", "__ge__", "__replace__"),
    *("__setattr__", "__delattr__", "__getstate__", "__setstate__"),
)
"""What `dataclass` writes from the fields of a class."""


def maker(
    name: str,
    options: Options,
    lens: Any,
    function: Callable[..., Any],
    using: xr.Dataset | None = None,
) -> str:
    """Hash all that makes results, the samples aside.

    Args:
        name: of what is made.
        options: their settings count.
        lens: the model.
        function: makes the results.
        using: what it is made with; its attribute `key` counts.
    """
    fitted = "" if using is None else using.attrs["key"]
    return content([name, options.settings, lens.identity(), reachable(function), fitted, versions()])


def key(made_by: str, samples: Iterable[Sample]) -> str:
    """Return the key of a result: of what makes it (see `maker`), and of the samples, by content."""
    return content([made_by, list(samples)])


def reachable(function: Callable[..., Any]) -> str:
    """Hash a function with the code and the constants that it can reach.

    What cannot be named (an open file, a generator) gives another hash every time, with a warning.
    """
    return content([function, library_code()])


def content(value: Any) -> str:
    """Hash a value by its content: plain data, arrays, pictures, samples, functions, classes, objects."""
    walk = _Walk()
    walk.value(value)
    if walk.unnamed:
        warnings.warn(
            f"Nothing names {', '.join(sorted(set(walk.unnamed)))}, so that results made with it are not used again: "
            "make it inside the function that needs it.",
            stacklevel=3,
        )
    return walk.digest.hexdigest()


@functools.cache
def library_code() -> str:
    """Hash the parts of the library that count whole."""
    files = [f for part in WHOLE for f in _sources(LIBRARY / part)]
    plain = [(str(f.relative_to(LIBRARY)), bytecode.plain(_compiled(f))) for f in files]
    return hashlib.sha256(repr(plain).encode()).hexdigest()


def _sources(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(path.rglob("*.py"))


def _compiled(path: Path) -> types.CodeType:
    """Compile a module, without importing it."""
    code = SourceFileLoader(path.stem, str(path)).get_code(path.stem)
    assert code is not None
    return code


class _Walk:
    """Feeds values into a hash, each object once.

    Attributes:
        digest: the hash so far.
        unnamed: kinds of the values that nothing names.
    """

    def __init__(self) -> None:
        self.digest = hashlib.sha256()
        self.unnamed: list[str] = []
        # An object is held as well as its number, so that its id is not given to another.
        self._seen: dict[int, tuple[int, Any]] = {}

    def put(self, *parts: Any) -> None:
        """Feed plain parts."""
        self.digest.update(repr(parts).encode("utf-8", "surrogatepass"))

    def value(self, value: Any) -> None:
        """Feed any value."""
        if value is None or isinstance(value, bool | int | float | complex | str | bytes | np.generic):
            return self.put(type(value).__name__, repr(value))
        if type(value) is not tuple:  # Python shares some of equal tuples, and not always the same ones
            if id(value) in self._seen:
                return self.put("seen", self._seen[id(value)][0])
            self._seen[id(value)] = len(self._seen), value
        if isinstance(value, types.ModuleType):
            self._module(value)
        elif isinstance(value, type):
            self._class(value)
        elif isinstance(value, types.FunctionType):
            self._function(value)
        elif isinstance(value, types.MethodType):
            self.values("method", [value.__self__, value.__func__])
        elif isinstance(value, functools.partial):
            self.values("partial", [value.func, value.args, value.keywords])
        elif isinstance(value, INERT):
            self.put("inert", type(value).__name__)
        else:
            self._data(value)

    def values(self, kind: str, values: Iterable[Any]) -> None:
        """Feed several values, under a word that says what they are."""
        listed = list(values)
        self.put(kind, len(listed))
        for value in listed:
            self.value(value)

    # ---- code

    def _function(self, function: types.FunctionType) -> None:
        if not _is_ours(function.__module__ or "", function.__code__.co_filename):
            return self._other(function)
        self.put("function", bytecode.plain(function.__code__))
        self.values("defaults", [function.__defaults__, function.__kwdefaults__])
        self.values("closure", [_cell(cell) for cell in function.__closure__ or ()])
        self.values("names", bytecode.references(function.__code__, function.__globals__, _is_ours))

    def _class(self, kind: type) -> None:
        if not _is_ours(kind.__module__):
            return self._other(kind)
        self.put("class", kind.__qualname__)
        self.values("bases", kind.__bases__)
        generated = GENERATED if "__dataclass_fields__" in vars(kind) else ()
        for name, member in sorted(vars(kind).items()):
            self._member(name, member, generated)
        for f in vars(kind).get("__dataclass_fields__", {}).values():
            self.values(f.name, [f.default, f.default_factory])

    def _member(self, name: str, member: Any, generated: Sequence[str]) -> None:
        """Feed what a class defines; not what Python and `dataclass` add to it."""
        if isinstance(member, staticmethod | classmethod):
            member = member.__func__
        if isinstance(member, types.FunctionType):
            if name not in generated or inspect.unwrap(member).__code__.co_filename != "<string>":
                self.values(name, [member])
        elif isinstance(member, property):
            self.values(name, [member.fget, member.fset, member.fdel])
        elif isinstance(member, functools.cached_property):
            self.values(name, [member.func])
        elif isinstance(member, types.MemberDescriptorType | types.GetSetDescriptorType):
            pass
        elif name not in SKIPPED and not (name.startswith("__") and name.endswith("__")):
            self.values(name, [member])

    def _module(self, module: types.ModuleType) -> None:
        file = getattr(module, "__file__", None)
        if file is None or not file.endswith(".py") or not _is_ours(module.__name__):
            return self._other(module)
        self.put("module", bytecode.plain(_compiled(Path(file))))

    def _other(self, value: Any) -> None:
        """Feed what belongs to another library: its name and the library's version."""
        module = getattr(value, "__module__", None) or ""
        name = getattr(value, "__qualname__", getattr(value, "__name__", type(value).__qualname__))
        top = sys.modules.get((module or name).partition(".")[0])
        self.put("other", module, name, str(getattr(top, "__version__", "")))

    # ---- data

    def _data(self, value: Any) -> None:
        if isinstance(value, tuple | list) and type(value).__reduce__ is object.__reduce__:
            self.values(type(value).__name__, value)
        elif isinstance(value, Mapping) and type(value) in (dict, types.MappingProxyType):
            self.values("mapping", [part for item in value.items() for part in item])
        elif isinstance(value, set | frozenset):
            self.put("set", sorted(_alone(item) for item in value))
        elif isinstance(value, PurePath):
            self.put("path", str(value))
        elif isinstance(value, Image.Image):
            palette = value.getpalette() if value.mode in ("P", "PA") else None
            shown = value.info.get("transparency")
            self.put("image", value.mode, value.size, palette, repr(shown), value.tobytes())
        elif not self._array(value):
            self._object(value)

    def _array(self, value: Any) -> bool:
        """Feed an array by its content; say whether it is one."""
        if isinstance(value, np.ndarray):
            self.put("array", str(value.dtype), value.shape)
            if value.dtype.kind in "OT":
                self.values("items", value.ravel().tolist())
            else:
                self.digest.update(np.ascontiguousarray(value).tobytes())
        elif isinstance(value, xr.Dataset | xr.DataArray):
            variables = (
                value.variables if isinstance(value, xr.Dataset) else {"": value.variable, **value.coords}
            )
            # A store lists its variables in any order.
            for name, variable in sorted(variables.items(), key=lambda item: str(item[0])):
                self.values(str(name), [variable.dims, variable.values, dict(variable.attrs)])
            self.value(dict(value.attrs))
        elif (torch := sys.modules.get("torch")) is not None and isinstance(value, torch.Tensor):
            if value.is_meta:
                self._unnamed(value)
                return True
            self.put("tensor", str(value.dtype), tuple(value.shape))
            raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            self.digest.update(raw.numpy().tobytes())
        else:
            return False
        return True

    def _object(self, value: Any) -> None:
        lens = sys.modules.get("dit_lens.lens")
        if lens is not None and isinstance(value, lens.Lens):
            self.values("lens", [value.identity()])
        elif isinstance(value, Options):
            self.values("options", [type(value), value.settings])
        elif isinstance(value, Sample):
            # Where a benchmark lies changes nothing.
            parts = [getattr(value, f.name) for f in fields(value) if f.name != "folder"]
            self.values("sample", [type(value), *parts])
        elif callable(wrapped := getattr(value, "__wrapped__", None)):
            self.values("wrapped", [wrapped])
        elif is_dataclass(value) and _is_ours(type(value).__module__):
            self.values("dataclass", [type(value), *(getattr(value, f.name) for f in fields(value))])
        else:
            self._reduced(value)

    def _reduced(self, value: Any) -> None:
        """Feed an object by what `pickle` makes of it: how it is made anew, and its state."""
        try:
            registered = copyreg.dispatch_table.get(type(value))
            reduced = value.__reduce_ex__(4) if registered is None else registered(value)
        except Exception:  # what a class raises here is its own affair
            return self._unnamed(value)
        if isinstance(reduced, str):
            return self._other(value)
        make, arguments, *rest = reduced
        state, *items = [*rest, None, None, None][:3]
        self.values("object", [make, arguments, state])
        for part in items:
            self.values("items", part or ())

    def _unnamed(self, value: Any) -> None:
        self.unnamed.append(f"a {type(value).__module__}.{type(value).__qualname__}")
        self.put("unnamed", uuid.uuid4().hex)


def _alone(value: Any) -> str:
    """Hash a value by itself: a set has another order in every process."""
    walk = _Walk()
    walk.value(value)
    return walk.digest.hexdigest()


def _cell(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return "not set yet"


@functools.cache
def _is_ours(module: str, file: str | None = None) -> bool:
    """Say whether code is this library's or the user's own: neither Python's nor what is installed from elsewhere.

    Args:
        module: its name.
        file: where its code comes from, where that is known.
    """
    top = module.partition(".")[0]
    if top in ("dit_lens", "__main__"):
        return True
    if top in sys.stdlib_module_names or top in sys.builtin_module_names:
        return False
    loaded = [getattr(sys.modules.get(name), "__file__", None) for name in (top, module)]
    place = loaded[0] or loaded[1] or file or _found(top)
    return place is not None and not {"site-packages", "dist-packages"} & set(Path(place).parts)


def _found(top: str) -> str | None:
    try:
        spec = importlib.util.find_spec(top) if top else None
    except (ImportError, ValueError):
        return None
    return None if spec is None else spec.origin


__all__: Sequence[str] = ["content", "key", "library_code", "maker", "reachable"]
