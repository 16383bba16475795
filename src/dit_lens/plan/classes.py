"""Classes by what they do: the code of their methods and their attributes; a library's by name and version.

A method that the user puts into a library's class, in place of the library's own, is not seen; one on an object is.
"""

from __future__ import annotations

import functools
import types
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from dit_lens.plan import bytecode, origin

if TYPE_CHECKING:
    from dit_lens.plan.content import Walk

UNTOLD = frozenset(
    (
        *("__dict__", "__weakref__", "__doc__", "__module__", "__qualname__", "__annotations__", "__slots__"),
        *("__firstlineno__", "__static_attributes__", "__abstractmethods__", "_abc_impl", "__parameters__"),
        *("__dataclass_fields__", "__dataclass_params__", "__match_args__", "__orig_bases__", "__annotate__"),
        *(
            "__annotations_cache__",
            "__annotate_func__",
            "_member_map_",
            "_value2member_map_",
            "_hashable_values_",
        ),
        *("_unhashable_values_", "_unhashable_values_map_", "__new__", "__hash__"),
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

MAKING = frozenset({"__init__", "__new__", "register_modules", "register_to_config", "to", "from_pretrained"})
"""Methods that make or change an object: what they set is what it is."""

_SLOT = (types.MemberDescriptorType, types.GetSetDescriptorType, types.WrapperDescriptorType)


def is_library(kind: type) -> bool:
    """Say whether a class is a library's."""
    module = kind.__module__
    # Cython's metaclasses hold a descriptor under that name.
    return not isinstance(module, str) or origin.is_library_module(module)


def is_of_models(kind: type) -> bool:
    """Say whether a class is of a library that pipelines are made of."""
    return isinstance(kind.__module__, str) and kind.__module__.partition(".")[0] in origin.OF_MODELS


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


def _members(walk: Walk, kind: type) -> list[Any]:
    with walk.reading(exact=True, in_order=True):
        kinds = [describe(walk, base) for base in kind.__bases__ if base is not object]
        meta = [] if is_library(type(kind)) else [describe(walk, type(kind))]
        members = [
            [name, _member(walk, name, member)]
            for name, member in sorted(vars(kind).items())
            if not (name in UNTOLD or _is_machinery(name))
            or (name == "__new__" and _plain(member) is not None)
        ]
        slots = sorted(map(str, _slots(kind)))
        fields = vars(kind).get("__dataclass_fields__", {})
        told = [[name, walk.visit(dict(field.metadata))] for name, field in fields.items() if field.metadata]
        return ["class", kinds, meta, members, slots, told]


def _is_machinery(name: str) -> bool:
    """Say whether a class has an attribute because of what pydantic compiles of its fields."""
    return name.startswith("__pydantic_") and name != "__pydantic_fields__"


def _member(walk: Walk, name: str, member: Any) -> Any:
    if isinstance(member, _SLOT):
        return "slot"
    if isinstance(member, property | functools.cached_property):
        parts = [getattr(member, part, None) for part in ("fget", "fset", "fdel", "func")]
        return [type(member).__name__, *(walk.visit(part, name) for part in parts)]
    if isinstance(member, staticmethod | classmethod):
        return [type(member).__name__, walk.visit(member.__func__, name)]
    return walk.visit(member, name)


def _slots(kind: type) -> tuple[str, ...]:
    slots = vars(kind).get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _plain(member: Any) -> types.FunctionType | None:
    """Return the Python function that a member of a class is made of; None where it is none."""
    inner = getattr(member, "__func__", None) or getattr(member, "fget", None) or member
    return inner if isinstance(inner, types.FunctionType) else None


def written_by_runs(walk: Walk, kind: type) -> frozenset[str]:
    """Return the attributes that are state of a run, not of the object: a run sets them itself before it reads them.

    The libraries of models are trusted to set what their methods set (`timesteps`, caches of a decoder), also where the
    user's class is built on theirs. What methods of the user's set may carry something from run to run.
    """
    known = walk.written.get(kind)
    if known is None:
        trusted = next((base for base in kind.__mro__ if is_of_models(base)), object)
        known = walk.written[kind] = _reached(_codes_of_library(trusted))
    return known


@lru_cache(maxsize=4096)
def _codes_of_library(kind: type) -> tuple[tuple[str, types.CodeType], ...]:
    """Return the methods of a class by name, as code; what torch's `Module` itself does is left out."""
    codes: dict[str, types.CodeType] = {}
    for base in kind.__mro__:
        if base.__module__ == "torch.nn.modules.module" or base is object:
            continue
        for name, member in vars(base).items():
            while hasattr(member, "__wrapped__"):  # decorated: no_grad, caches, deprecations
                member = member.__wrapped__
            if (function := _plain(member)) is not None:
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
