"""Functions as data: how a plan names, prints, hashes and reads back the functions in it. No torch here."""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dit_lens.errors import PlanError


@dataclass(frozen=True, eq=False)
class Configured:
    """A function with its options: still a function, and data."""

    function: Callable[..., Any]
    options: Mapping[str, Any]

    def __call__(self, *args: Any) -> Any:
        return self.function(*args, **self.options)

    def __repr__(self) -> str:
        shown = ", ".join(f"{k}={_short(v)}" for k, v in self.options.items())
        return f"{self.function.__name__}({shown})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Configured) and describe(self) == describe(other)

    def __hash__(self) -> int:
        return hash(json.dumps(describe(self), sort_keys=True))


def options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Turn `f(h, at, *, option)` into a maker: `f(option=1)` gives the function with that option.

    The function itself stays reachable as `f.function`.

    Raises:
        PlanError: (the maker) an option that the function does not have, or one that is missing.
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
        defaults = {p.name: p.default for p in named if p.default is not p.empty}
        return Configured(function, {**defaults, **given})

    make.function = function  # type: ignore[attr-defined]
    make.is_maker = True  # type: ignore[attr-defined]
    return make


def describe(function: Callable[..., Any]) -> dict[str, Any]:
    """Return plain data that identifies a function: its name, its code, its options (arrays by their content)."""
    inner = function.function if isinstance(function, Configured) else function
    out: dict[str, Any] = {"function": _name(inner), "code": _code_hash(inner)}
    if isinstance(function, Configured):
        out["options"] = {k: _plain(v) for k, v in function.options.items()}
    return out


def restore(data: Mapping[str, Any]) -> Callable[..., Any]:
    """Return the function that `describe` described.

    Raises:
        PlanError: it cannot be imported by name, has changed since, or had an array among its options.
    """
    module, _, name = str(data["function"]).partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError):
        raise PlanError(
            f"The plan's function {data['function']} cannot be imported: put it in a module."
        ) from None
    inner = getattr(found, "function", found)
    if _code_hash(inner) != data["code"]:
        raise PlanError(
            f"{data['function']} is not what it was when the plan was written: its code has changed."
        )
    if "options" not in data:
        return inner
    for key, value in data["options"].items():
        if isinstance(value, dict) and "sha256" in value:
            raise PlanError(
                f"The option {key} of {data['function']} is an array, which JSON does not hold: pass it anew."
            )
    return Configured(inner, dict(data["options"]))


def _name(function: Callable[..., Any]) -> str:
    return f"{getattr(function, '__module__', '?')}:{getattr(function, '__qualname__', repr(function))}"


def _code_hash(function: Callable[..., Any]) -> str:
    """Hash what a function does: its code, its constants, its defaults and what it closes over."""
    code = getattr(function, "__code__", None)
    if code is None:  # a callable object: its class and its state
        return _digest(
            repr(
                (
                    type(function).__qualname__,
                    sorted(vars(function).items()) if hasattr(function, "__dict__") else "",
                )
            )
        )
    cells = [_plain(cell.cell_contents) for cell in function.__closure__ or ()]  # type: ignore[attr-defined]
    held = [_plain(v) for v in function.__defaults__ or ()]  # type: ignore[attr-defined]
    return _digest(repr((_code(code), cells, held)))


def _code(code: Any) -> tuple[Any, ...]:
    constants = tuple(_code(c) if hasattr(c, "co_code") else repr(c) for c in code.co_consts)
    return code.co_code, code.co_names, constants


def _plain(value: Any) -> Any:
    """Return JSON-able data for an option; what is an array becomes the hash of its content."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if callable(value) and hasattr(value, "__code__"):
        return describe(value)
    if hasattr(value, "dtype"):
        import numpy as np

        array = value.detach().cpu().float().numpy() if hasattr(value, "detach") else np.asarray(value)
        return {
            "sha256": hashlib.sha256(array.tobytes()).hexdigest(),
            "shape": list(array.shape),
            "dtype": str(value.dtype),
        }
    return repr(value)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _short(value: Any) -> str:
    return f"<array {tuple(value.shape)}>" if hasattr(value, "shape") else repr(value)
