"""Classes by what they do: the code of their methods and their attributes; a library's by name and version.

A method that the user puts into a library's class, in place of the library's own, is not seen; one on an object is.
"""

from __future__ import annotations

import _abc
import dataclasses
import functools
import types
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from dit_lens.plan import bytecode, origin

if TYPE_CHECKING:
    from dit_lens.plan.content import Walk

UNTOLD = frozenset(
    (
        *("__dict__", "__weakref__", "__doc__", "__module__", "__qualname__", "__slots__", "__slotnames__"),
        *("__firstlineno__", "__static_attributes__", "__abstractmethods__", "_abc_impl", "__parameters__"),
        *("__dataclass_fields__", "__dataclass_params__", "__annotate__"),
        *(
            "__annotations_cache__",
            "__annotate_func__",
            "_member_map_",
            "_value2member_map_",
            "_hashable_values_",
        ),
        *("_unhashable_values_", "_unhashable_values_map_"),
    )
)
"""What a class holds beside what it does: documentation, bookkeeping, and what follows from the rest."""

STARTS = (
    *("forward", "__call__", "encode", "decode", "step", "set_timesteps", "scale_model_input", "model_fn"),
    *(
        "pre_forward",
        "post_forward",
        "detach_hook",
        "onload",
        "offload",
        "keep",
        "preparing",
        "load_from_disk",
    ),
)
"""Methods that a run calls, whatever the class."""

_TEXT = frozenset({"__repr__", "__str__", "__format__", "extra_repr"})
_SHOWING = frozenset({"str", "repr", "format", "ascii", "format_map"})
"""Names of code that calls these."""
_ASIDE = (
    "save",
    "load",
    "dump",
    "export",
    "plot",
    "from_file",
    "from_disk",
    "from_pretrained",
    "to_file",
    "to_disk",
)
"""How methods begin that files and pictures are made with. They are called by their names; of all other methods it is taken
that any code may call them."""

ANY_NAME = frozenset(
    {"getattr", "vars", "dir", "__dict__", "__getattribute__", "methodcaller", "attrgetter", "getmembers"}
)
"""Names in code that may call a method whatever its name."""

MAKING = frozenset({"__init__", "__new__", "register_modules", "register_to_config", "to", "from_pretrained"})
"""Methods that make or change an object: what they set is what it is."""

_SLOT = (types.MemberDescriptorType, types.GetSetDescriptorType)

_HEAP = 1 << 9
"""Flag of a class that was made while Python ran."""


def is_library(kind: type) -> bool:
    """Say whether a class is a library's: it stands in a library's module under its own name."""
    module = kind.__module__
    if not isinstance(module, str):  # Cython's metaclasses hold a descriptor under that name
        return True
    return origin.is_library_module(module) and _stands_in(kind, module)


def is_made_by_python(kind: type) -> bool:
    """Say whether a class was made while Python ran, and not by the compiler of C."""
    return bool(kind.__flags__ & _HEAP)


def _stands_in(kind: type, module: str) -> bool:
    """Say whether a class stands where it says: one that `type(...)` or a library makes of the user's says otherwise."""
    if not is_made_by_python(kind):
        return True
    return origin.held_at(module, kind.__qualname__) is kind


def is_of_models(kind: type) -> bool:
    """Say whether a class is of a library that pipelines are made of."""
    module = kind.__module__
    return (
        isinstance(module, str) and module.partition(".")[0] in origin.OF_MODELS and _stands_in(kind, module)
    )


def is_built_on_models(kind: type) -> bool:
    """Say whether a class or one that it inherits from is of a library that pipelines are made of."""
    return any(map(is_of_models, kind.__mro__))


def describe(walk: Walk, kind: type) -> Any:
    """Return a class as data."""
    if (known := walk.classes.get(kind)) is not None:
        return known
    name = f"{kind.__module__}.{kind.__qualname__}"
    if is_library(kind):
        walk.classes[kind] = {"@class": name, "library": origin.library(kind.__module__)}
        return walk.classes[kind]
    if walk.counts_whole(kind.__module__):
        return {"@class": name}
    with walk.at(f"class {kind.__qualname__}"):
        return {"@class": kind.__qualname__, "code": walk.node(kind, _members)}


def _may_be_called(walk: Walk, kind: type, name: str, member: Any) -> bool:
    """Say whether code that has the walk's names can call a member of a class; what is no method is always read."""
    is_aside = name in _TEXT or name.startswith(_ASIDE)
    if walk.called is None or not is_aside or not isinstance(member, _METHODS):
        return True
    if not walk.called.isdisjoint({name, *ANY_NAME, *(_SHOWING if name in _TEXT else ())}):
        return True
    in_library = any(name in vars(base) for base in kind.__mro__[:-1] if is_library(base))  # which calls it
    return in_library and name not in _TEXT


_METHODS = (
    *(types.FunctionType, property, functools.cached_property, staticmethod, classmethod),
    functools._lru_cache_wrapper,
)


def _members(walk: Walk, kind: type) -> list[Any]:
    with walk.reading(exact=True, in_order=True):
        kinds = [describe(walk, base) for base in kind.__bases__ if base is not object]
        meta = [] if is_library(type(kind)) else [describe(walk, type(kind))]
        members = [
            [name, _member(walk, kind, name, member)]
            for name, member in vars(kind).items()  # in their order, in which code may go through them
            if not (name in UNTOLD or _is_machinery(name)) and _may_be_called(walk, kind, name, member)
        ]
        told = [
            [name, *_field(walk, field)] for name, field in vars(kind).get("__dataclass_fields__", {}).items()
        ]
        return ["class", kinds, meta, members, declared_slots(kind), told, _registered(walk, kind)]


def _field(walk: Walk, field: dataclasses.Field[Any]) -> list[Any]:
    made = [] if field.default_factory is dataclasses.MISSING else [walk.visit(field.default_factory)]
    flags = [field.init, field.repr, field.hash, field.compare, bool(field.kw_only)]
    return [walk.visit(dict(field.metadata)), flags, made]


def _registered(walk: Walk, kind: type) -> list[Any]:
    """Return the classes that were registered with an abstract one, as data: `isinstance` looks at them."""
    if "_abc_impl" not in vars(kind):
        return []
    registered = [reference() for reference in _abc._get_dump(kind)[0]]
    return walk.in_any_order([other for other in registered if other is not None])


def _is_machinery(name: str) -> bool:
    """Say whether a class has an attribute because of what pydantic compiles of its fields."""
    return name.startswith("__pydantic_") and name != "__pydantic_fields__"


def _member(walk: Walk, kind: type, name: str, member: Any) -> Any:
    if isinstance(member, _SLOT) and member.__objclass__ is kind:
        return "slot"
    return walk.visit(member, name)


def declared_slots(kind: type) -> list[str]:
    """Return the slots that a class itself declares, in order."""
    slots = vars(kind).get("__slots__", ())
    if isinstance(slots, str):
        return [slots]
    names = [str(name) for name in slots]
    return sorted(names) if isinstance(slots, set | frozenset) else names


def _plain(member: Any) -> types.FunctionType | None:
    """Return the Python function that a member of a class is made of; None where it is none."""
    inner = getattr(member, "__func__", None) or getattr(member, "fget", None) or member
    return inner if isinstance(inner, types.FunctionType) else None


def _undecorated(member: Any) -> types.FunctionType | None:
    """Return the function under what decorates a member: no_grad, caches, deprecations."""
    while hasattr(member, "__wrapped__"):
        member = member.__wrapped__
    return _plain(member)


def written_by_runs(walk: Walk, kind: type, replaced: frozenset[str] = frozenset()) -> frozenset[str]:
    """Return the attributes that are state of a run, not of the object: a run sets them itself before it reads them.

    The libraries of models are trusted to set what their methods set (`timesteps`, caches of a decoder), also where the
    user's class is built on theirs, as far as their methods run there. What methods of the user's set may carry
    something from run to run.

    Args:
        walk: the way through values.
        kind: a class.
        replaced: methods that an object holds in place of its class's.
    """
    known = walk.written.get((kind, replaced))
    if known is None:
        trusted = next((base for base in kind.__mro__ if is_of_models(base)), object)
        above = kind.__mro__[: kind.__mro__.index(trusted)]
        users = {
            name for base in above for name, member in vars(base).items() if not _calls_super(name, member)
        }
        codes = tuple(item for item in _codes_of_library(trusted) if item[0] not in users | replaced)
        known = walk.written[kind, replaced] = _reached(codes)
    return known


def is_no_users(kind: type) -> bool:
    """Say whether a class is a library's or this package's."""
    return is_library(kind) or f"{kind.__module__}.".startswith("dit_lens.")


@lru_cache(maxsize=4096)
def own_attributes(kind: type) -> frozenset[str]:
    """Return the attributes that a library gives to the objects of a class: those that its methods set, or that it declares."""
    names = set[str]()
    for base in filter(is_no_users, kind.__mro__):
        names |= {*vars(base).get("__annotations__", {})}
        for name, member in vars(base).items():
            if (function := _undecorated(member)) is not None:
                names |= bytecode.stored_and_loaded(function.__code__)[0]
            elif isinstance(member, functools.cached_property):
                names.add(name)
    return frozenset(names)


PUT = frozenset({"_hf_hook", "_old_forward", "_diffusers_hook"})
"""Private attributes that libraries of models put on objects of others."""


def is_given(kind: type, name: str) -> bool:
    """Say whether an attribute of an object is one that the user has given it.

    Private names on a library's object are other libraries'; on an object of a user's class they are the user's.
    """
    private = name in PUT or (name.startswith("_") and is_no_users(kind))
    return not private and name not in own_attributes(kind)


def _calls_super(name: str, member: Any) -> bool:
    """Say whether a method calls the one that it takes the place of."""
    function = _plain(member)
    return (
        function is not None
        and "__class__" in function.__code__.co_freevars
        and name in function.__code__.co_names
    )


@lru_cache(maxsize=4096)
def _codes_of_library(kind: type) -> tuple[tuple[str, types.CodeType], ...]:
    """Return the methods of a class by name, as code; what torch's `Module` itself does is left out."""
    codes: dict[str, types.CodeType] = {}
    for base in kind.__mro__:
        if base.__module__ == "torch.nn.modules.module" or base is object:
            continue
        for name, member in vars(base).items():
            if (function := _undecorated(member)) is not None:
                codes.setdefault(name, function.__code__)
    return tuple(codes.items())


@lru_cache(maxsize=4096)
def _reached(codes: tuple[tuple[str, types.CodeType], ...]) -> frozenset[str]:
    """Return what the methods that a run calls set; they call each other by name."""
    methods = dict(codes)
    left, seen = [name for name in STARTS if name in methods], set[str]()
    sets: frozenset[str] = frozenset()
    while left:
        name = left.pop()
        if name in seen:
            continue
        seen.add(name)
        stored, loaded = bytecode.stored_and_loaded(methods[name])
        sets |= stored
        left += [other for other in loaded if other in methods and other not in MAKING]
    return sets
