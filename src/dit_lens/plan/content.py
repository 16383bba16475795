"""Any value as plain data, by its content: equal values give equal data in every process, other values other data.

    content(value, unnamed)

`unnamed` collects a sentence for each part that has no content to be named by: an open file, a lock, a generator, an
object in C that does not tell its state. Such a part gives data that is never equal to any other, so that what was
made with it is not taken for something else.

| value | data |
|---|---|
| None, bool, str, numbers | themselves; 1, 1.0 and np.int64(1) are equal; inf and nan are `{"@float": "inf"}` |
| list, tuple, set, dict | by their items; sets by content, dicts in order where code reads them |
| arrays, tensors, tables, images | type, shape, number type and a hash of the exact bytes (`arrays`) |
| functions, classes | code and all that it reads (`functions`, `classes`); a library's by name and version |
| objects, torch modules | class and state (`objects`, `modules`) |

Limits: what an object keeps outside of Python's sight (files that it reads later, the state of a device) is not seen. Nor is
whether two places hold one object or two equal ones, how an array lies in memory, and what is set in `decimal`'s context.
An object may say itself what it is: by a method `__content__(walk)` that returns data, mostly of `walk.visit(part)`.
"""

from __future__ import annotations

import datetime
import decimal
import enum
import fractions
import hashlib
import json
import math
import numbers
import pathlib
import re
import types
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from typing import Any, Protocol

from dit_lens.errors import DitLensError
from dit_lens.plan import arrays, attributes, callables, classes, modules, objects
from dit_lens.plan.digests import digest

WRITTEN_OUT = (
    *(datetime.date, datetime.time, datetime.timedelta, datetime.tzinfo, decimal.Decimal, fractions.Fraction),
    *(pathlib.PurePath, range, uuid.UUID),
)
"""Types whose text says all that they hold."""

ENUM_UNTOLD = frozenset({"_value_", "_name_", "__objclass__", "_sort_order_", "_inverted_", "_hashable_"})
"""What Python keeps in a member of an enumeration, which follows from the class."""

THEMSELVES = frozenset({type(None), bool, int, str})
"""Types whose values are their own data."""

MOST_CONTAINERS = 300_000
"""Lists, sets and dicts with others inside that are gone through: where each holds the next twice, there is no end."""

TORCH_TEXT = ("dtype", "device", "layout", "memory_format", "qscheme", "finfo", "iinfo")


class Gatherer(Protocol):
    """What takes tensors to hash them together."""

    def take(self, tensors: Iterable[Any]) -> int | None:
        """Take tensors, and return the position of the first; None where it takes none of them."""


def content(value: Any, unnamed: list[str], what: str = "") -> Any:
    """Return plain data (JSON) that says what a value holds.

    Args:
        value: anything.
        unnamed: gets a sentence for each part that cannot be named.
        what: what the value is, for those sentences, such as "argument callback".
    """
    return Walk(unnamed, what).whole(value)


def unnamed_by(
    look: Callable[[Walk], Any], seen: Iterable[str], names: frozenset[str] = frozenset()
) -> list[str]:
    """Return a sentence for each part that cannot be named, of what code can call: a method that nothing calls does no harm.

    Code calls a method by its name. What libraries call of an object by names of their own, without a class of theirs below
    it, is not seen.

    Args:
        look: goes through what is named; no tensor is read.
        seen: sentences of a look that read the tensors. One that does not come again without them stays.
        names: that the code itself has.
    """
    again: list[str] = []
    look(Walk(again, checksum=lambda tensor: None, repeatable=True))
    unread = [sentence for sentence in seen if sentence not in again]
    return [*dict.fromkeys(unread + _unnamed_of_called(look, names))]


def _unnamed_of_called(look: Callable[[Walk], Any], names: frozenset[str]) -> list[str]:
    while True:
        unnamed: list[str] = []
        walk = Walk(unnamed, checksum=lambda tensor: None, repeatable=True, called=names)
        look(walk)
        if walk.names <= names:
            return unnamed
        names |= walk.names


class Walk:
    """One way through values that refer to each other.

    Functions, classes and objects are visited once, and stand as the hash of what they hold. A reference back to one
    that is being visited stands as its distance on the way, so that a circle has an end, and the same data everywhere.

    Args:
        unnamed: gets a sentence for each part that cannot be named.
        what: what is visited, for those sentences.
        checksum: gives a tensor's data. Default: a hash of its bytes.
        importing: whether a module of the user's that code imports when it runs is imported to be read, so that it is the
            same before the code has run and after. False: such a module counts by the code of its file, and of the files
            that it imports.
        whole: packages and modules whose code the caller counts as a whole: their functions and classes stand by name,
            as a library's do.
        gathering: takes tensors that the caller hashes together; their data is then their position there.
        exact: whether numbers of other types differ from the beginning.
        of_pipeline: whether what is visited belongs to a pipeline, and what a run writes into it is left out.
        repeatable: whether what cannot be named is left out, so that two looks at one value are equal.
        called: names of all code that may run; methods of the user's classes that it cannot call are left out. Default: none is.
        watching: whether two looks say if something was kept in between: what cannot be looked at, such as an iterator, differs.

    Attributes:
        of_pipeline: as above; it is also so for parts of a pipeline that code reads (`attributes.mark_parts`).
        exact: whether numbers of other types differ, as they do where code computes with them.
        holder: class of the object whose attributes are visited.
        in_order: whether the order of a dict's items counts, as it does where code goes through them.
        written: attributes that are state of a run, by class; see `classes.written_by_runs`.
        classes: data of libraries' classes that were visited.
        names: in all code that was visited, but a library's.
        recipes: how modules are read, by class and names of attributes; see `modules`.
    """

    def __init__(
        self,
        unnamed: list[str],
        what: str = "",
        checksum: Callable[[Any], Any] | None = None,
        importing: bool = True,
        whole: tuple[str, ...] = (),
        gathering: Gatherer | None = None,
        exact: bool = False,
        of_pipeline: bool = False,
        repeatable: bool = False,
        watching: bool = False,
        called: frozenset[str] | None = None,
    ) -> None:
        self.watching, self.called = watching, called
        self.names: set[str] = set()
        self._sentences, self._path = unnamed, [what] if what else []
        self.checksum, self.importing, self.gathering, self.exact = checksum, importing, gathering, exact
        self.of_pipeline = of_pipeline
        self.in_order, self.repeatable = False, repeatable
        self.holder: type | None = None
        self._whole = tuple(f"{name}." for name in whole)
        self._modules: dict[type, bool] = {}
        self.recipes: dict[Any, modules.ModuleRecipe] = {}
        self.written: dict[tuple[type, frozenset[str]], frozenset[str]] = {}
        self.classes: dict[type, Any] = {}
        self._done: dict[tuple[int, bool, bool, bool], Any] = {}  # by the value, and how it was read
        self._open: dict[int, int] = {}
        self._trusting = False
        self._lowest = math.inf  # of the references back since the innermost open value began
        self._alive: list[Any] = []  # so that no id is used twice
        self._containers = count()  # that were gone through

    def whole(self, value: Any) -> Any:
        """Return the data of a value that stands alone: nothing is around it."""
        try:
            return self.visit(value)
        except RecursionError:
            del self._path[1:]
            return self.unnamed(value, "a value that is nested too deeply")

    def alone(self) -> Walk:
        """Return a walk of its own, which reads values by their content alone, whatever is around them."""
        return Walk([], importing=self.importing, repeatable=True, exact=True, watching=True)

    def visit(self, value: Any, label: str = "") -> Any:
        """Return the data of a value; `label` says where it stands in the value around it."""
        kind = type(value)
        if kind in THEMSELVES:
            return value
        if label:
            self._path.append(label)
        try:
            return self._dispatch(value, kind)
        except (DitLensError, RecursionError, MemoryError):
            raise
        except Exception as error:  # whatever a class of the user's raises
            return self.unnamed(
                value, f"an object that raises {type(error).__name__} as it is read ({error})"
            )
        finally:
            if label:
                self._path.pop()

    @contextmanager
    def at(self, label: str) -> Iterator[None]:
        """Say where the next values stand."""
        self._path.append(label)
        try:
            yield
        finally:
            self._path.pop()

    @contextmanager
    def reading(self, exact: bool, in_order: bool) -> Iterator[None]:
        """Say how the next values are read: whether types of numbers and the order of dicts count."""
        before = self.exact, self.in_order
        self.exact, self.in_order = exact, in_order
        try:
            yield
        finally:
            self.exact, self.in_order = before

    @contextmanager
    def reading_pipeline(self, belongs: bool = True) -> Iterator[None]:
        """Leave out of the next values what a run writes into the parts of a pipeline: it sets that anew.

        Args:
            belongs: False for what is the user's on a part of a pipeline, such as a hook: nothing of that is left out.
        """
        before, self.of_pipeline = self.of_pipeline, belongs
        try:
            yield
        finally:
            self.of_pipeline = before

    @contextmanager
    def trusting(self, trusted: bool) -> Iterator[None]:
        """Take what this package's own modules hold (locks, registries) as a part of its code."""
        before, self._trusting = self._trusting, trusted
        try:
            yield
        finally:
            self._trusting = before

    @contextmanager
    def counting_whole(self, *packages: str) -> Iterator[None]:
        """Count the code of packages as a whole for the next values, whose functions and classes then stand by name."""
        before, self._whole = self._whole, tuple(f"{name}." for name in packages)
        try:
            yield
        finally:
            self._whole = before

    @contextmanager
    def held_by(self, kind: type) -> Iterator[None]:
        """Say of which class the object is that holds the next values."""
        before, self.holder = self.holder, kind
        try:
            yield
        finally:
            self.holder = before

    def is_below(self, attribute: str) -> bool:
        """Say whether what is visited is an attribute of this name."""
        return bool(self._path) and self._path[-1] == f"its attribute {attribute!r}"

    @property
    def is_trusting(self) -> bool:
        """Whether what is visited is held by a module of this package."""
        return self._trusting

    def counts_whole(self, module: Any) -> bool:
        """Say whether the code of a module, by its name, counts as a whole."""
        return isinstance(module, str) and f"{module}.".startswith(self._whole)

    def unnamed(self, value: Any, what: str, moves: bool = False) -> Any:
        """Say that a value cannot be named; return data that is equal to no other.

        Args:
            value: it.
            what: it is.
            moves: whether using it changes it, as an iterator's place.
        """
        if self._trusting:
            return {"@type": type(value).__qualname__}
        inner = [*reversed(self._path[-3:])] or [type(value).__name__]
        place = ", ".join([*inner, *self._path[:1]] if len(self._path) > 3 else inner)
        self._sentences.append(f"{place}: {what} cannot be named by its content")
        if self.repeatable and not (moves and self.watching):
            return {"@unnamed": type(value).__qualname__}
        return {"@unnamed": uuid.uuid4().hex}

    def _apart(self, value: Any) -> Any:
        """Return the data of one of several values that have no order: none of them knows of the others."""
        # It gathers nothing: that has an order.
        walk = Walk(self._sentences, checksum=self.checksum, importing=self.importing, exact=self.exact)
        walk._whole, walk._path, walk._trusting = self._whole, self._path, self._trusting
        walk.in_order, walk.repeatable, walk.of_pipeline = self.in_order, self.repeatable, self.of_pipeline
        walk.watching = self.watching
        walk.called, walk.names = self.called, self.names
        walk._modules, walk.written = self._modules, self.written
        walk.classes, walk.recipes = self.classes, self.recipes
        walk._done, walk._open, walk._alive = dict(self._done), dict(self._open), self._alive
        walk._containers = self._containers
        data = walk.visit(value)
        self._lowest = min(self._lowest, walk._lowest)
        return data

    def node(self, value: Any, parts: Callable[[Walk, Any], Any], label: str = "") -> Any:
        """Return the hash of a value that may refer to itself, from what it holds; it is made once."""
        key, read = id(value), (id(value), self.exact, self.in_order, self.of_pipeline)
        if read in self._done:
            return self._done[read]
        if key in self._open:
            self._lowest = min(self._lowest, self._open[key])
            return {"@back": len(self._open) - self._open[key]}
        depth, around = len(self._open), self._lowest
        self._open[key], self._lowest = depth, math.inf
        if label:
            self._path.append(label)
        try:
            data = digest(parts(self, value))
        finally:
            if label:
                self._path.pop()
            del self._open[key]
            inner, self._lowest = self._lowest, min(around, self._lowest)
        if inner >= depth:  # closed in itself: the same data wherever it stands
            self._lowest = around
        self._alive.append(value)
        self._done[read] = data if inner >= depth else f"{data}@{len(self._done)}"
        return data

    # ---- by kind

    def _dispatch(self, value: Any, kind: type) -> Any:
        if kind is float:
            return self._number(value)
        if not self.of_pipeline and attributes.is_part(value):
            with self.reading_pipeline():
                return self._dispatch(value, kind)
        if self.is_module(value):
            return modules.describe(self, value)
        if kind in (list, tuple, dict, set, frozenset, OrderedDict):
            return self._container(value, kind)
        return self._other(value, kind)

    def is_module(self, value: Any) -> bool:
        """Say whether a value is a torch module."""
        kind = type(value)
        known = self._modules.get(kind)
        if known is None:
            known = self._modules[kind] = modules.is_module(kind)
        return known and "_forward_hooks" in value.__dict__ and "_modules" in value.__dict__

    def _container(self, value: Any, kind: type) -> Any:
        if (kind is list or kind is tuple) and THEMSELVES.issuperset(map(type, value)):
            return [*value] if kind is list else {"@tuple": [*value]}
        key = id(value)
        if key in self._open:
            self._lowest = min(self._lowest, self._open[key])
            return {"@back": len(self._open) - self._open[key]}
        if next(self._containers) > MOST_CONTAINERS:
            return self.unnamed(value, "a value whose parts refer to each other in too many ways")
        self._open[key] = len(self._open)
        try:
            if kind is list:
                return [self.visit(item) for item in value]
            if kind is tuple:
                return {"@tuple": [self.visit(item) for item in value]}
            if kind in (set, frozenset):
                return {f"@{kind.__name__}": self.in_any_order(value)}
            return self._mapping(value, ordered=kind is OrderedDict or (self.in_order and len(value) > 1))
        finally:
            del self._open[key]

    def in_any_order(self, values: Any) -> list[Any]:
        """Return the data of values that have no order, in an order of their content."""
        items = [value if type(value) in THEMSELVES else self._apart(value) for value in values]
        return sorted(items, key=lambda data: json.dumps(data, sort_keys=True))

    def _mapping(self, value: Mapping[Any, Any], ordered: bool = False) -> Any:
        if not ordered and all(type(key) is str and not key.startswith("@") for key in value):
            return {
                key: value[key] if type(value[key]) in THEMSELVES else self.visit(value[key], f"[{key!r}]")
                for key in sorted(value)
            }
        items = [[key if type(key) in THEMSELVES else self._apart(key), key] for key in value]
        if not ordered:
            items.sort(key=lambda item: json.dumps(item[0], sort_keys=True))
        name = "@ordered" if ordered else "@dict"
        return {name: [[data, self.visit(value[key], f"[{key!r}]")] for data, key in items]}

    def _number(self, value: Any) -> Any:
        """Return a real number: itself where JSON holds it. A negative zero is no other zero."""
        if not math.isfinite(value):
            return {"@float": str(value)}
        if self.exact or (value == 0 and math.copysign(1, value) < 0):
            return float(value)
        return int(value) if value == int(value) else float(value)

    def _numeric(self, value: Any, kind: type) -> Any:
        """Return a number of a type that is not Python's plain one."""
        if kind.__name__ in ("datetime64", "timedelta64", "void"):
            return {"@number": str(value.dtype.descr), "value": value.tobytes().hex()}
        if kind.__module__ == "numpy" and self.exact:
            return {"@number": kind.__name__, "value": repr(value.item())}
        if kind.__name__ in ("longdouble", "clongdouble"):
            return {"@number": kind.__name__, "value": str(value)}
        plain = value.item() if kind.__module__ == "numpy" else value
        if isinstance(plain, complex):
            whole = plain.imag == 0 and not self.exact
            return self._number(plain.real) if whole else {"@complex": [str(plain.real), str(plain.imag)]}
        return (
            bool(plain)
            if isinstance(plain, bool)
            else self.visit(plain)
            if kind.__module__ == "numpy"
            else plain
        )

    def _other(self, value: Any, kind: type) -> Any:
        if attributes.is_controller(kind):
            return self.visit(attributes.beneath(value))
        if (recipe := objects.recipe_of(self, value, kind)) is not None:
            return objects.describe_by(recipe, self, value)
        if isinstance(value, type):
            return classes.describe(self, value)
        if self.of_pipeline and attributes.is_users(value) and not attributes.is_part(value):
            with self.reading_pipeline(False):
                return self._other(value, kind)
        if isinstance(value, types.ModuleType):
            return callables.module(self, value)
        if kind is complex or (
            kind.__module__ == "numpy" and isinstance(value, numbers.Number | _numpy_scalar())
        ):
            return self._numeric(value, kind)
        if kind in (bytes, bytearray, memoryview):
            form = [value.format, list(value.shape or ())] if kind is memoryview else []
            plain = bytes(value)
            return {f"@{kind.__name__}": hashlib.sha256(plain).hexdigest(), "size": len(plain), "form": form}
        if issubclass(kind, enum.Enum):
            held = {k: v for k, v in vars(value).items() if k not in ENUM_UNTOLD}
            told = [self.visit(part) for part in (value.value, held)] if held else self.visit(value.value)
            return {"@enum": value.name, "class": classes.describe(self, kind), "value": told}
        if kind is slice:
            return {"@slice": [self.visit(part) for part in (value.start, value.stop, value.step)]}
        if issubclass(kind, WRITTEN_OUT) and classes.is_library(kind):
            zone = self.visit(value.tzinfo) if getattr(value, "tzinfo", None) is not None else None
            return {"@value": f"{kind.__module__}.{kind.__qualname__}", "text": repr(value), "zone": zone}
        if kind.__module__ == "torch" and kind.__name__ in TORCH_TEXT:
            return {"@value": "torch", "text": str(value)}
        if isinstance(value, re.Pattern):
            return {"@pattern": self.visit(value.pattern), "flags": value.flags}
        if value is Ellipsis or value is NotImplemented:
            return {"@value": str(value)}
        if reader := arrays.reader_of(value):
            return reader(self, value)
        return objects.describe(self, value)


def _numpy_scalar() -> type:
    import numpy as np

    return np.generic
