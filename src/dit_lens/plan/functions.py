"""Functions as data: how a plan names, prints, hashes and reads back the functions in it. No torch here."""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import json
import types
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, is_dataclass
from typing import Any

from dit_lens.errors import PlanError

SAMPLED = 1 << 16
"""Of a torch module's tensors, about this many values are hashed."""

_above: ContextVar[frozenset[int]] = ContextVar("_above", default=frozenset())
"""The objects inside which `_plain` is: what refers back to one of them is not entered again."""


@dataclass(frozen=True, eq=False)
class Configured:
    """A function with its options: still a function, and data. What `keeps` declared of it holds on."""

    function: Callable[..., Any]
    options: Mapping[str, Any]

    def __call__(self, *args: Any) -> Any:
        """Call the function with its options."""
        return self.function(*args, **self.options)

    def __getattr__(self, name: str) -> Any:
        if name in ("dims", "site", "units", "long_name", "over_seeds"):  # what is declared of the function
            return getattr(self.function, name)
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def __repr__(self) -> str:
        shown = ", ".join(f"{k}={_short(v)}" for k, v in self.options.items())
        return f"{self.function.__name__}({shown})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Configured) and describe(self) == describe(other)

    def __hash__(self) -> int:
        return hash(json.dumps(describe(self), sort_keys=True))


def options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Turn `f(h, at, *, option)` into a maker: `f(option=1)` gives the function with that option.

    Records take options likewise: `@options` stands above `@keeps(...)`. The function itself stays reachable
    as `f.function`.

    Raises:
        PlanError: (the maker) an option that the function does not have, one that is missing, or one that the function's
            attribute `check_options`, where it has one, refuses.
    """
    signature = inspect.signature(function)
    named = [p for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY]

    @functools.wraps(function)
    def make(*args: Any, **given: Any) -> Configured:
        # patch(source) reads better than patch(source=source): positional options go in order.
        given = {**dict(zip([p.name for p in named], args, strict=False)), **given}
        unknown = set(given) - {p.name for p in named}
        missing = {p.name for p in named if p.default is p.empty} - set(given)
        if unknown or missing or len(args) > len(named):
            raise PlanError(
                f"{function.__name__}() takes the options {[p.name for p in named]}; "
                f"unknown: {sorted(unknown)}, missing: {sorted(missing)}."
            )
        chosen = {p.name: given.get(p.name, p.default) for p in named}
        if check := getattr(function, "check_options", None):
            check(**chosen)
        return Configured(function, chosen)

    make.function = function  # type: ignore[attr-defined]
    make.is_maker = True  # type: ignore[attr-defined]
    return make


def describe(function: Callable[..., Any]) -> dict[str, Any]:
    """Return plain data that identifies a function: its name, code and options (arrays by their content).

    What a function closes over, its defaults, and the state of a callable object count as its code. What it
    looks up in its module when it runs (another function, a global) does not. Of a torch module, large
    tensors are sampled and hooks left out: a function may well close over the model that it is placed on.
    """
    inner, given = _unwrap(function)
    out: dict[str, Any] = {"function": _name(inner), "code": _code_hash(inner)}
    return out if given is None else {**out, "options": _plain(given)}


def restore(data: Mapping[str, Any]) -> Callable[..., Any]:
    """Return the function that `describe` described.

    Raises:
        PlanError: it cannot be imported by name, has changed since, or had an option that is not plain data.
    """
    module, _, name = str(data["function"]).partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError):
        raise PlanError(
            f"The plan's function {data['function']} cannot be imported: put it in a module."
        ) from None
    inner = getattr(found, "function", found)
    if _code_hash(inner) != data["code"]:
        raise PlanError(
            f"{data['function']} is not what it was when the plan was written: its code, its object's state "
            "or Python's version has changed. Make the plan anew."
        )
    if "options" not in data:
        return inner
    what = f"of {data['function']}"
    return Configured(inner, {k: _revive(v, f"{k} {what}") for k, v in data["options"].items()})


def _unwrap(function: Callable[..., Any]) -> tuple[Callable[..., Any], Mapping[str, Any] | None]:
    """Return a function and its options; None where it has none."""
    if isinstance(function, Configured):
        return function.function, function.options
    if isinstance(function, functools.partial) and not function.args:
        return function.func, function.keywords
    return function, None


def _name(function: Callable[..., Any]) -> str:
    """Return where a function can be imported from; for a callable object, the name of its class."""
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}:{named.__qualname__}"


def _code_hash(function: Callable[..., Any]) -> str:
    """Hash what a function does: code, constants, defaults, what it closes over or is bound to."""
    plain = getattr(function, "__func__", function)  # a method is its function and its object
    parts = [] if plain is function else [_plain(function.__self__)]  # type: ignore[attr-defined]
    if isinstance(plain, types.FunctionType):
        parts += [_code(plain.__code__), _plain(plain.__defaults__), _plain(plain.__kwdefaults__)]
        parts += [_plain(cell.cell_contents) for cell in plain.__closure__ or ()]
    elif isinstance(plain, functools.partial):
        parts += [describe(plain.func), _plain(plain.args), _plain(plain.keywords)]
    elif hasattr(plain, "named_modules"):
        parts += [_module(plain)]
    elif hasattr(plain, "__dict__") and not isinstance(plain, type):  # a callable object
        parts += [_class(type(plain)), _plain(vars(plain))]
    return _digest(json.dumps(parts, sort_keys=True))


def _class(kind: type) -> str:
    """Hash the code of a class, with what it inherits."""
    members = {name: f for base in reversed(kind.__mro__) for name, f in vars(base).items()}
    return _digest(
        repr([(n, _code(f.__code__)) for n, f in sorted(members.items()) if hasattr(f, "__code__")])
    )


def _module(module: Any) -> list[Any]:
    """Return a torch module as data: the classes, the settings and some of the values of all its parts."""
    parts: dict[str, Any] = dict(module.named_modules())
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    tensors |= {f"{n}.{k}": v for n, p in parts.items() for k, v in vars(p).items() if hasattr(v, "detach")}
    settings = {
        name: {k: v for k, v in vars(part).items() if isinstance(v, bool | int | float | str)}
        for name, part in parts.items()
    }
    sampled = {k: _plain(v.flatten()[:: v.numel() // SAMPLED + 1]) for k, v in tensors.items()}
    kinds = sorted((kind.__qualname__, _class(kind)) for kind in {type(part) for part in parts.values()})
    names = {name: type(part).__qualname__ for name, part in parts.items()}
    return [kinds, names, settings, {k: list(v.shape) for k, v in tensors.items()}, sampled]


def _code(code: types.CodeType) -> list[Any]:
    return [code.co_code.hex(), list(code.co_names), [_constant(c) for c in code.co_consts]]


def _constant(value: Any) -> Any:
    if isinstance(value, types.CodeType):
        return _code(value)
    if isinstance(value, tuple):
        return [_constant(v) for v in value]
    # A set has another order in every process.
    return sorted(map(repr, value)) if isinstance(value, frozenset) else repr(value)


def _plain(value: Any) -> Any:
    """Return JSON-able data for a value; what JSON does not hold becomes a dict that `_revive` knows."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    above = _above.get()
    if id(value) in above:  # it holds itself
        return {"python": type(value).__qualname__}
    token = _above.set(above | {id(value)})
    try:
        return _parts(value)
    finally:
        _above.reset(token)


def _parts(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, set | frozenset):
        return {"python": "set", "state": sorted(map(repr, value))}
    if isinstance(value, type | types.ModuleType | types.BuiltinFunctionType):
        return {"python": f"{getattr(value, '__module__', '')}:{value.__name__}"}
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return _array(value)
    if hasattr(value, "tobytes"):  # an image
        return {"sha256": hashlib.sha256(value.tobytes()).hexdigest()}
    if callable(value):
        return describe(value)
    name = f"{type(value).__module__}:{type(value).__qualname__}"
    if hasattr(value, "__dict__") and (is_dataclass(value) or type(value).__repr__ is object.__repr__):
        return {"python": name, "state": _plain(vars(value))}
    return {"python": repr(value)}


def _array(value: Any) -> Any:
    """Return a scalar as a number; an array (numpy, torch, xarray) as the hash of its content."""
    if value.shape == () and not hasattr(value, "detach"):
        return _plain(value.item())
    digest = hashlib.sha256()
    # A slab at a time: a lazy array of states may be far larger than memory.
    for slab in value if len(value.shape) > 1 else [value]:
        digest.update(_bytes(slab))
    out: dict[str, Any] = {
        "sha256": digest.hexdigest(),
        "shape": list(value.shape),
        "dtype": str(value.dtype),
    }
    if hasattr(value, "coords"):
        coords = {str(name): _plain(coord.values.tolist()) for name, coord in value.coords.items()}
        out |= {"dims": list(value.dims), "coords": coords}
    return out


def _bytes(array: Any) -> bytes:
    import numpy as np

    if hasattr(array, "detach"):
        array = array.detach().cpu()
        array = array.float() if "bfloat16" in str(array.dtype) else array  # exact; numpy has no bfloat16
    array = np.asarray(array)
    return repr(array.tolist()).encode() if array.dtype == object else array.tobytes()


def _revive(value: Any, what: str) -> Any:
    """Turn what `_plain` wrote back into an option."""
    if isinstance(value, list):
        return [_revive(v, what) for v in value]
    if not isinstance(value, dict):
        return value
    if "code" in value:
        return restore(value)
    if "sha256" in value or "python" in value:
        kind = "an array" if "sha256" in value else f"{value['python']}"
        raise PlanError(f"The option {what} is {kind}, which JSON does not hold: pass it anew.")
    return {k: _revive(v, what) for k, v in value.items()}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _short(value: Any) -> str:
    return f"<array {tuple(value.shape)}>" if hasattr(value, "shape") else repr(value)
