"""Objects by class and state: attributes, slots; objects in C by what they tell for pickling."""

from __future__ import annotations

import copyreg
import io
import logging
import re
import types
import weakref
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dit_lens.plan import attributes, callables, classes, origin

if TYPE_CHECKING:
    from dit_lens.plan.content import Walk

_BUILT_ON = (dict, list, tuple, set, frozenset, str, bytes, int, float, complex, BaseException, deque)


def describe(walk: Walk, value: Any) -> Any:
    """Return any object as data."""
    kind = type(value)
    data = callables.describe(walk, value)
    if data is not None:
        return data
    if hasattr(kind, "__content__"):
        return value.__content__(walk)
    special = SPECIAL.get(f"{kind.__module__.partition('.')[0]}.{kind.__name__}")
    if special is not None:
        return special(walk, value)
    if isinstance(value, io.IOBase):
        return walk.unnamed(value, f"an open file ({kind.__name__})", moves=True)
    if issubclass(kind, weakref.ReferenceType):
        return {"@weakref": walk.visit(value()), **beyond(walk, value, weakref.ReferenceType)}
    if issubclass(kind, logging.Logger):
        return {"@logger": value.name, **beyond(walk, value, logging.Logger, _OF_LOGGERS)}
    if kind is types.MappingProxyType:
        return walk.visit(dict(value))
    if kind in _ALIASES or kind.__module__ == "typing":
        return _typing(walk, value)
    if hasattr(kind, "__next__") and not _in_python(kind):
        return walk.unnamed(
            value, f"an iterator ({kind.__name__}), which is used up as it is read,", moves=True
        )
    return {"@object": kind.__qualname__, "code": walk.node(value, _parts)}


_ALIASES = (types.GenericAlias, types.UnionType)


def _typing(walk: Walk, value: Any) -> Any:
    """Return what annotations are made of as data: code may look at the classes in it, and make objects of them."""
    parts = [getattr(value, name, None) for name in ("__origin__", "__args__", "__metadata__")]
    text = str(type(value)) if any(parts) else re.sub(r" at 0x[0-9a-f]+", "", repr(value))
    return {"@typing": text, "parts": [walk.visit(part) for part in parts]}


_OF_LOGGERS = frozenset((*vars(logging.Logger("")), "manager"))  # which holds all loggers of the process


def beyond(walk: Walk, value: Any, base: type, own: Collection[str] = ()) -> dict[str, Any]:
    """Return as data what an object holds beyond what its class is known to hold: more attributes, and a class built on it.

    Args:
        walk: the way through values.
        value: the object.
        base: the class that is known.
        own: attributes of that class.
    """
    kind = type(value)
    held = {k: v for k, v in getattr(value, "__dict__", {}).items() if k not in own}
    data = {"state": walk.visit(held)} if held else {}
    return (
        data if kind is base or classes.is_library(kind) else {"class": classes.describe(walk, kind), **data}
    )


@dataclass(frozen=True, slots=True)
class ObjectRecipe:
    """How objects of a library's class that have attributes of the same names, and nothing else, are read.

    Attributes:
        names: attributes that count, in order.
        described: the class as data.
    """

    names: tuple[str, ...]
    described: Any


_OF_LIBRARIES: dict[tuple[type, tuple[str, ...], bool], ObjectRecipe] = {}
"""Kept from run to run: a library's class does not change."""


def recipe_of(walk: Walk, value: Any, kind: type) -> ObjectRecipe | None:
    """Return how an object is read, where an object of the same class and attributes has been read before."""
    return _OF_LIBRARIES.get((kind, tuple(value.__dict__), walk.of_pipeline)) if kind.__dictoffset__ else None


def describe_by(recipe: ObjectRecipe, walk: Walk, value: Any) -> Any:
    """Return an object as data, as `describe` does."""

    def parts(walk: Walk, value: Any) -> list[Any]:
        with walk.reading(walk.exact, _order_counts(walk, type(value))):
            return ["object", recipe.described, _named(walk, type(value), vars(value), recipe.names)]

    return {"@object": type(value).__qualname__, "code": walk.node(value, parts)}


def _keep_recipe(walk: Walk, value: Any, kind: type, described: Any) -> None:
    """Keep how an object is read, if that follows from its class and the names of its attributes alone."""
    if not kind.__dictoffset__:
        return
    present = tuple(value.__dict__)
    by_class = classes.is_library(kind) and not attributes.slots(kind) and not hasattr(kind, "__getattr__")
    if not by_class or "__array__" in present or "tobytes" in present or _is_configuration(kind):
        return
    if not any(map(attributes.depends, present)):
        if len(_OF_LIBRARIES) >= attributes.MOST_RECIPES:
            _OF_LIBRARIES.clear()
        names = tuple(sorted(attributes.counted(walk, kind, present), key=str))
        _OF_LIBRARIES[kind, present, walk.of_pipeline] = ObjectRecipe(names, described)


def _in_python(kind: type) -> bool:
    """Say whether a class is made in Python."""
    return classes.is_made_by_python(kind) and hasattr(kind, "__module__") and "__dict__" in dir(kind)


def _order_counts(walk: Walk, kind: type) -> bool:
    """Say whether the order of dicts in an object counts: the code of a user's class goes through them."""
    if classes.is_of_models(kind):
        return False  # configurations, whose order a set may have made
    return walk.in_order or not classes.is_library(kind)


def _parts(walk: Walk, value: Any) -> list[Any]:
    kind = type(value)
    with walk.reading(walk.exact or not classes.is_library(kind), _order_counts(walk, kind)):
        return _of_object(walk, value)


def _holds_more(kind: type) -> bool:
    """Say whether objects of a class that can be extended hold more than attributes and slots: it is made in C."""
    base, own = kind.__base__ or object, len(classes.declared_slots(kind))
    return classes.is_made_by_python(kind) and kind.__basicsize__ - base.__basicsize__ > 16 + 8 * own


def _of_object(walk: Walk, value: Any) -> list[Any]:
    kind = type(value)
    described = classes.describe(walk, kind)
    if isinstance(value, _BUILT_ON):
        return ["object", described, _items(walk, value), _state(walk, value, kind)]
    if any(map(_holds_more, kind.__mro__[:-1])):
        return ["object", described, _reduced(walk, value, kind), _state(walk, value, kind)]
    base = next((b for b in kind.__mro__ if not classes.is_made_by_python(b)), object)
    if base is object and (hasattr(value, "__dict__") or attributes.slots(kind)):
        _keep_recipe(walk, value, kind, described)
        return ["object", described, _state(walk, value, kind)]
    if (
        base is object
        and classes.is_made_by_python(kind)
        and origin.is_library_module(kind.__module__) is False
    ):
        return ["object", described, {}]
    return ["object", described, _reduced(walk, value, kind)]


def _items(walk: Walk, value: Any) -> Any:
    """Return what an object holds as the builtin that its class is built on."""
    if isinstance(value, dict):
        # An object of a library that a dict backs, such as a configuration, says as little by some keys.
        untold = attributes.UNTOLD if classes.is_of_models(type(value)) else frozenset()
        items = walk.visit({k: v for k, v in dict.items(value) if k not in untold})
        return [items, walk.visit(value.default_factory)] if isinstance(value, defaultdict) else items
    if isinstance(value, deque):
        return [walk.visit([*deque.__iter__(value)]), value.maxlen]
    for builtin, read in _PLAIN.items():
        if isinstance(value, builtin):
            return walk.visit(read(value))
    return walk.visit(value.args)


_PLAIN: dict[type, Callable[[Any], Any]] = {
    set: lambda value: {*set.__iter__(value)},
    frozenset: lambda value: {*frozenset.__iter__(value)},
    list: lambda value: [*list.__iter__(value)],
    tuple: lambda value: [*tuple.__iter__(value)],
    str: str.__str__,
    bytes: lambda value: bytes.__getitem__(value, slice(None)),
    int: int.__pos__,
    float: float.__pos__,
    complex: complex.__pos__,
}
"""How the plain value in an object is read whose class is built on it, whatever methods that class has put over it."""


def _is_configuration(kind: type) -> bool:
    return kind.__name__ == "FrozenDict" and classes.is_of_models(kind)


def _state(walk: Walk, value: Any, kind: type) -> dict[str, Any]:
    """Return the attributes of an object; what a run itself writes into a library's object is left out."""
    held = attributes.plain(walk, value)
    if _is_configuration(kind):  # it holds its items as attributes too, and code reads these
        mark = f"_{kind.__name__}__frozen"
        held = {
            n: v
            for n, v in held.items()
            if n != mark and not (n in value and dict.__getitem__(value, n) is v)
        }
    return _named(walk, kind, held, sorted(held, key=str)) | (
        {} if classes.is_library(kind) else {"@order": [*map(str, held)]}
    )


def _named(walk: Walk, kind: type, held: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return attributes of an object of a class as data, by name."""
    plain = (type(None), bool, int, str)
    with walk.held_by(kind):
        return {
            str(name): held[name] if type(held[name]) in plain else attribute(walk, kind, name, held[name])
            for name in names
        }


def attribute(walk: Walk, kind: type, name: str, value: Any) -> Any:
    """Return an attribute of an object as data. Of what the user has given to a part of a pipeline nothing is left out."""
    if walk.of_pipeline and classes.is_given(kind, name):
        with walk.reading_pipeline(False):
            return walk.visit(value, f"its attribute {name!r}")
    return walk.visit(value, f"its attribute {name!r}")


def _silent(walk: Walk, value: Any, kind: type) -> Any:
    """Say that an object in C does not tell its state; that of a lock changes nothing."""
    name = f"{kind.__module__}.{kind.__qualname__}"
    moves = kind.__name__ not in ("lock", "RLock")
    return walk.unnamed(value, f"an object of {name}, which does not tell its state,", moves)


def _reduced(walk: Walk, value: Any, kind: type) -> Any:
    """Return what an object in C tells for pickling; nothing is told by a lock, a socket, a handle."""
    try:
        told = value.__reduce_ex__(2)
    except Exception:  # whatever a foreign class raises
        return _silent(walk, value, kind)
    if isinstance(told, str):
        return told
    make, arguments, *more = told
    nothing = (
        make is vars(copyreg)["__newobj__"] and len(arguments) == 1 and all(part is None for part in more)
    )
    if nothing and kind is not object:
        return _silent(walk, value, kind)
    state, items, pairs = [*more, None, None, None][:3]
    return [
        walk.visit(make),
        walk.visit(arguments),
        walk.visit(state),
        None if items is None else walk.visit(list(items)),
        None if pairs is None else walk.visit(dict(pairs)),
    ]


# ---- objects in C that say what they are in ways of their own


def _generator(walk: Walk, value: Any) -> Any:
    return {"@generator": str(value.device), "state": walk.visit(value.get_state())}


def _tokenizer(walk: Walk, value: Any) -> Any:
    text = value.to_str()
    if walk.is_below("_tokenizer") and walk.holder is not None and classes.is_of_models(walk.holder):
        # Padding and truncation stand before the rest, and every call of transformers' own sets them anew.
        text = text[max(0, text.find('"added_tokens"')) :]
    return {"@tokenizer": walk.visit(text.encode()), "special": walk.visit(value.encode_special_tokens)}


def _handle(walk: Walk, value: Any) -> Any:
    return {"@handle": type(value).__qualname__}  # of a hook, which counts itself; its number does not


def _sentencepiece(walk: Walk, value: Any) -> Any:
    return {"@sentencepiece": walk.visit(value.serialized_model_proto())}


def _weak_items(walk: Walk, value: Any) -> Any:
    """Return what a weak set or mapping holds now."""
    items = [*value.items()] if hasattr(value, "items") else [*value]
    return {"@weak": type(value).__name__, "items": walk.in_any_order(items)}


def _thread_local(walk: Walk, value: Any) -> Any:
    return walk.unnamed(
        value, "a thread-local object, which holds another state in every thread,", moves=True
    )


def _random_state(walk: Walk, value: Any) -> Any:
    import numpy as np

    if value is np.random.mtrand._rand:  # of the process; code that draws from it reads it by itself
        return {"@value": "numpy's global random state"}
    return {"@object": "RandomState", "state": _reduced(walk, value, type(value))}


def _python_random(walk: Walk, value: Any) -> Any:
    import random

    if value is random._inst:
        return {"@value": "Python's global random state"}
    return {"@object": "Random", "state": walk.visit(value.getstate())}


def _npz(walk: Walk, value: Any) -> Any:
    return {"@npz": {name: walk.visit(value[name], f"[{name!r}]") for name in value.files}}


def _environment(walk: Walk, value: Any) -> Any:
    return {"@value": "the environment"}  # which is not seen, as files and the clock are not


SPECIAL: dict[str, Callable[[Walk, Any], Any]] = {
    "numpy.NpzFile": _npz,
    "numpy.RandomState": _random_state,
    "os._Environ": _environment,
    "random.Random": _python_random,
    "torch.Generator": _generator,
    "torch.RemovableHandle": _handle,
    "tokenizers.Tokenizer": _tokenizer,
    "sentencepiece.SentencePieceProcessor": _sentencepiece,
    "_thread._local": _thread_local,
    "weakref.WeakSet": _weak_items,
    "_weakrefset.WeakSet": _weak_items,
    "weakref.WeakKeyDictionary": _weak_items,
    "weakref.WeakValueDictionary": _weak_items,
}
"""How objects of these classes are read, by library and name."""
