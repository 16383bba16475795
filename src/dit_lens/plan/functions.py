"""Functions as data: how a plan names, prints, hashes and reads back the functions in it. No torch here."""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
import types
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dit_lens.errors import PlanError
from dit_lens.plan import callables
from dit_lens.plan.content import Walk, unnamed_by
from dit_lens.plan.digests import digest
from dit_lens.plan.origin import FRAMEWORKS, is_own_code

DECLARED = ("over_seeds", "reads_x0", "reads_attention")
"""What an edit may declare of itself by an attribute that is true: that it sees the values of all seeds of a sample together
(h is [seed, frame, y, x, channel]), or that it takes x0 of the step before as a third argument. A record, that it reads the
queries and keys of an attention, not a value.

An edit that is made of another one names the option that holds it, by its attribute `like`, and declares what that one does."""


@dataclass(frozen=True, eq=False)
class Configured:
    """A function with its options: still a function, and data. What `keeps` declared of it holds on."""

    function: Callable[..., Any]
    options: Mapping[str, Any]

    def __call__(self, *args: Any) -> Any:
        """Call the function with its options."""
        return self.function(*args, **self.options)

    def __getattr__(self, name: str) -> Any:
        if name in ("site", *DECLARED) and (like := getattr(self.function, "like", None)):
            edit = self.options[like]
            return declares(edit, name) if name in DECLARED else getattr(edit, name)
        if name in (
            "dims",
            "site",
            "units",
            "long_name",
            "looks_at",
            *DECLARED,
        ):  # what is declared of the function
            return getattr(self.function, name)
        if name == "per_head":  # of a record of attention: whether it returns every head on its own
            return self.options.get("heads") == "all"
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def __repr__(self) -> str:
        shown = ", ".join(f"{k}={_short(v)}" for k, v in self.options.items())
        return f"{self.function.__name__}({shown})"

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Configured) and describe(self) == describe(other))

    def __hash__(self) -> int:
        return hash((callables.name_of(self.function), tuple(self.options)))

    def __content__(self, walk: Walk) -> dict[str, Any]:
        """Return what names it: its function, and its options by content."""
        described = walk.visit(self.function)
        # Options of this package's functions are arguments, of which 1 and 1.0 are equal; the user's code may tell them apart.
        users = not is_packages_own(self.function)
        with walk.reading(exact=users, in_order=users):
            return {**described, "options": walk.visit(dict(self.options))}


def options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Turn `f(h, at, *, option)` into a maker: `f(option=1)` gives the function with that option.

    Records take options too: `@options` stands above `@keeps(...)`. The function itself stays reachable
    as `f.function`.

    Raises:
        PlanError: (the maker) an option that the function does not have, one that is missing, or one that the function's
            attribute `check_options`, where it has one, refuses.
    """
    signature = inspect.signature(function)
    named = [p for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY]

    @functools.wraps(function)
    def make(*args: Any, **values: Any) -> Configured:
        # patch(source) reads better than patch(source=source): positional options go in order.
        values = {**dict(zip([p.name for p in named], args, strict=False)), **values}
        unknown = set(values) - {p.name for p in named}
        missing = {p.name for p in named if p.default is p.empty} - set(values)
        if unknown or missing or len(args) > len(named):
            raise PlanError(
                f"{function.__name__}() takes the options {[p.name for p in named]}; "
                f"unknown: {sorted(unknown)}, missing: {sorted(missing)}."
            )
        chosen = {p.name: values.get(p.name, p.default) for p in named}
        if check := getattr(function, "check_options", None):
            check(**chosen)
        for name in DECLARED:
            if declares(make, name):
                setattr(function, name, True)  # it was declared of the maker
        return Configured(function, chosen)

    make.function = function  # type: ignore[attr-defined]
    make.is_maker = True  # type: ignore[attr-defined]
    return make


def describe(
    function: Callable[..., Any],
    unnamed: list[str] | None = None,
    repeatable: bool = False,
    importing: bool = True,
) -> dict[str, Any]:
    """Return plain data that identifies a function: its name, a hash of what it does, and its options.

    What it does: its code, and all that the code reads, through functions, classes, constants and modules of the
    user's own (see `callables`, where it also stands what is not seen). Options are named by content. Comments,
    docstrings, line numbers and file names do not count.

    Args:
        function: a function, or any callable object.
        unnamed: gets a sentence for each value that has no content to be named by; the data is then equal to no
            other.
        repeatable: whether such a value is left out, so that two looks at one function are equal.
        importing: whether modules of the user's that the code imports when it runs are imported to be read.
    """
    if type(function) is functools.partial and not function.args:
        function = Configured(function.func, function.keywords)
    sentences: list[str] = []
    walk = Walk(sentences, importing=importing, repeatable=True, watching=repeatable)
    data = walk.whole(function)
    data = (
        dict(data) if "function" in data else {"function": callables.name_of(function), "code": digest(data)}
    )
    if sentences and not repeatable:
        sentences = unnamed_by(lambda walk: walk.whole(function), sentences)
        if sentences:
            data["code"] = uuid.uuid4().hex
    if unnamed is not None:
        unnamed += sentences
    return data


def declares(function: Any, name: str) -> bool:
    """Say whether a function declares one of `DECLARED`: itself, or what it calls.

    That is looked for in what partials, options, decorators, methods and callable objects are made of.
    """
    while not getattr(function, name, False):
        inner = getattr(function, "__wrapped__", None)
        if isinstance(function, functools.partial):
            inner = function.func
        elif isinstance(function, Configured):
            inner = function.function
        elif isinstance(function, types.MethodType):
            inner = function.__func__
        elif inner is None and not isinstance(function, types.FunctionType):
            inner = inspect.getattr_static(type(function), "__call__", None)
        if inner is None or inner is function:
            return False
        function = inner
    return True


def is_packages_own(function: Callable[..., Any]) -> bool:
    """Say whether a function is a plain one of this package, with or without options: those keep nothing from call to call."""
    function = function.function if type(function) is Configured else function
    plain = type(function) is types.FunctionType and function.__closure__ is None
    return plain and is_own_code(function.__code__)


KEEPS = (
    "A record or an edit keeps something from call to call (a counter, a list, a first value), and the rows of a "
    "batch or a sweep go through it together, so what it kept of one row came into another: use lens.run for each "
    "row, with a function of its own. What every row may use (a mask that is made once) is made before: in __init__, or by a "
    "call of the function beforehand."
)
"""What is said where several rows go through a function that keeps something."""


def kept_by(function: Callable[..., Any]) -> str:
    """Return a hash that changes when a function keeps something.

    Tensors count by where they are and by how often they were written, as torch counts it: none is read.
    """

    def writes(tensor: Any) -> list[Any]:
        return [tensor.data_ptr(), None if tensor.is_inference() else tensor._version, *tensor.shape]

    return digest(Walk([], checksum=writes, repeatable=True, watching=True).whole(function))


def restore(data: Mapping[str, Any], allow: Iterable[str] = ()) -> Callable[..., Any]:
    """Return the function that `describe` described.

    Only modules of this package, and modules that are imported already, are looked into: reading a plan runs no code
    of others.

    Args:
        data: of a function.
        allow: names of further modules that may be imported.

    Raises:
        PlanError: its module may not be imported, it is no function that could be a record or an edit, it has changed
            since, or it had an option that is not plain data.
    """
    function = _find(str(data["function"]), tuple(allow))
    inner = getattr(function, "function", function)
    if describe(inner, importing=False)["code"] != data["code"]:
        raise PlanError(
            f"{data['function']} is not what it was when the plan was written: its code, its object's state, what it "
            "reads or Python's version has changed, or a module that it imports when it runs is not imported yet. Import that "
            "module first, or make the plan anew."
        )
    if isinstance(inner, type) or not callable(inner):
        raise PlanError(f"{data['function']} is no function that reads or edits a value.")
    if "options" not in data:
        return inner
    what = f"of {data['function']}"
    return Configured(inner, {k: _revive(v, f"{k} {what}", allow) for k, v in data["options"].items()})


def _find(name: str, allow: tuple[str, ...]) -> Any:
    """Return what stands under a name such as "module:Class.method"."""
    module, _, path = name.partition(":")
    top = module.partition(".")[0]
    if module not in allow and top in {*sys.stdlib_module_names, *FRAMEWORKS} - {"__main__"}:
        raise PlanError(
            f"The plan's function {name} is of a library, and no record or edit: it is not restored. Where it is meant, "
            f"pass allow=[{module!r}]."
        )
    if module not in allow and top != "dit_lens" and module and module not in sys.modules:
        raise PlanError(
            f"The plan's function {name} cannot be imported: put it in a module, import that module first, or pass "
            f"allow=[{module!r}] where you trust it. A plan that is read imports nothing by itself."
        )
    try:
        function: Any = importlib.import_module(module)
        for part in path.split("."):
            function = getattr(function, part)
    except (ImportError, AttributeError, ValueError):
        raise PlanError(f"The plan's function {name} cannot be imported: put it in a module.") from None
    plain = isinstance(function, types.FunctionType | type | Configured)
    if not plain and (not callable(function) or isinstance(function, types.BuiltinFunctionType)):
        raise PlanError(
            f"The plan's function {name} is no record or edit: those are functions made in Python."
        )
    return function


def _revive(value: Any, what: str, allow: Iterable[str]) -> Any:
    """Turn the data of an option back into the option.

    Raises:
        PlanError: JSON does not hold it.
    """
    if isinstance(value, list):
        return [_revive(v, what, allow) for v in value]
    if not isinstance(value, dict):
        return value
    if "function" in value and "code" in value:
        return restore(value, allow)
    if "@tuple" in value:
        return tuple(_revive(v, what, allow) for v in value["@tuple"])
    if "@float" in value:
        return float(value["@float"])
    if mark := next((key for key in value if key.startswith("@")), None):
        kinds = {"@array": "an array", "@image": "a picture", "@set": "a set"}
        kind = kinds.get(mark) or value.get("text") or f"{mark[1:]} {value[mark]}"
        raise PlanError(f"The option {what} is {kind}, which JSON does not hold: pass it anew.")
    return {k: _revive(v, what, allow) for k, v in value.items()}


def _short(value: Any) -> str:
    return f"<array {tuple(value.shape)}>" if hasattr(value, "shape") else repr(value)
