"""Torch modules as data: class, plain attributes, parameters, buffers, parts, and hooks of the user's own.

A model has hundreds of modules, and all of them are read anew for every run. Most hold numbers, flags and words beside
their tensors, and have no parts and no hooks. Such a module (a *leaf*) of a library's class stands in the data of the
module around it as a short list; every other one has a hash of its own. Which of the two a module is, and what stands in
the data, follows from what it holds alone. From run to run is kept only which attributes count in a library's class.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from dit_lens.plan import arrays, attributes, classes, digests, objects

if TYPE_CHECKING:
    from dit_lens.plan.content import Walk

HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_hooks_of = itemgetter(*HOOKS)

PLAIN = frozenset({type(None), bool, int, float, str})
"""Types whose text says all that a value is, its type and the sign of a zero among it."""

_INSIDE = (*HOOKS, "_modules", "_parameters", "_buffers")


@dataclass(frozen=True, slots=True)
class ModuleRecipe:
    """How modules of one class that have attributes of the same names are read.

    Attributes:
        names: attributes that count, in order.
        read: gives their values, and what stands under the names of `_INSIDE`, out of a module's `__dict__`.
        head: hash of the class and of `names`.
        library: whether the class is a library's.
    """

    names: tuple[str, ...]
    read: Callable[[Mapping[str, Any]], tuple[Any, ...]]
    head: str
    library: bool


def is_module(kind: type) -> bool:
    """Say whether objects of a class are torch modules, and are read as such."""
    module = hasattr(kind, "named_modules") and hasattr(kind, "register_forward_hook")
    return module and not hasattr(kind, "__content__")


def describe(walk: Walk, value: Any) -> Any:
    """Return a torch module as data."""
    leaf = _leaf(walk, _recipe(walk, value, value.__dict__), value.__dict__)
    code = digests.digest(leaf) if leaf is not None else walk.node(value, _parts)
    return {"@object": type(value).__qualname__, "code": code}


def _leaf(walk: Walk, recipe: ModuleRecipe, held: Mapping[str, Any]) -> list[Any] | None:
    """Return the data of a module of a library that holds nothing but plain values and tensors; None for others."""
    if not recipe.library or held["_modules"]:
        return None
    items = recipe.read(held)
    values = items[: len(recipe.names)]
    if not PLAIN.issuperset(map(type, values)) and not all(map(_is_plain, values)):
        return None
    before, after, back_before, back_after, _, parameters, buffers = items[-len(_INSIDE) :]
    if (before or after or back_before or back_after) and has_hooks(held):
        return None
    if held.get("_compiled_call_impl") is not None:
        return None
    if not parameters and not buffers:
        return [recipe.head, *values]
    tensors = _tensors(walk, parameters, buffers)
    return None if tensors is None else [recipe.head, *values, *tensors]


def _is_plain(value: Any) -> bool:
    return type(value) in PLAIN or (type(value) is tuple and PLAIN.issuperset(map(type, value)))


def _tensors(walk: Walk, parameters: Mapping[str, Any], buffers: Mapping[str, Any]) -> list[Any] | None:
    """Gather the tensors of a module, and return their names and the position of the first; None where that cannot be."""
    if not parameters and not buffers:
        return []
    if walk.gathering is None:
        return None
    tensors = [*parameters.values(), *buffers.values()]
    if any([t is not None and t.__dict__ and arrays.attributes_of(t) for t in tensors]):
        return None
    position = walk.gathering.take(tensors)
    return None if position is None else [position, *parameters, None, *buffers]


def _parts(walk: Walk, value: Any) -> list[Any]:
    """Return what a torch module holds, its class first."""
    held = value.__dict__
    recipe = _recipe(walk, value, held)
    with walk.reading(exact=True, in_order=not recipe.library):  # a forward computes with its attributes
        *values, before, after, back_before, back_after, parts, parameters, buffers = recipe.read(held)
        attribute_data = [
            item if type(item) in PLAIN else objects.attribute(walk, type(value), name, item)
            for name, item in zip(recipe.names, values, strict=True)
        ]
        head = recipe.head if recipe.library else [classes.describe(walk, type(value)), recipe.names]
        tensors = _tensors(walk, parameters, buffers)
        if tensors is None:
            tensors = [[[n, walk.visit(t, n)] for n, t in part.items()] for part in (parameters, buffers)]
        inner = [[name, None if part is None else _part(walk, part, name)] for name, part in parts.items()]
        hooked = hooks(walk, held) if before or after or back_before or back_after else []
        if held.get("_compiled_call_impl") is not None or "_orig_mod" in parts:
            hooked.append(walk.unnamed(value, "a module that is compiled"))
        return ["module", head, attribute_data, tensors, inner, hooked]


def _part(walk: Walk, part: Any, name: str) -> Any:
    held = part.__dict__
    recipe = walk.recipes.get((walk.of_pipeline, type(part), *held))
    if recipe is None:
        if not walk.is_module(part):
            return walk.visit(part, name)
        recipe = _recipe(walk, part, held)
    leaf = _leaf(walk, recipe, held)
    return leaf if leaf is not None else walk.node(part, _parts, name)


def _recipe(walk: Walk, value: Any, held: Mapping[str, Any]) -> ModuleRecipe:
    """Return how a module is read."""
    kind = type(value)
    recipe = walk.recipes.get((walk.of_pipeline, kind, *held))
    if recipe is not None:
        return recipe
    present = tuple(held)
    if attributes.slots(kind) or any(map(attributes.depends, present)) or not held.keys() >= set(_INSIDE):
        return _recipe_for_one(walk, value, held)
    recipe = (
        _recipe_of_library(walk, kind, present) if classes.is_library(kind) else _make(walk, kind, present)
    )
    walk.recipes[walk.of_pipeline, kind, *present] = recipe
    return recipe


def _recipe_of_library(walk: Walk, kind: type, present: tuple[str, ...]) -> ModuleRecipe:
    key = kind, present, walk.of_pipeline
    recipe = _OF_LIBRARIES.get(key)
    if recipe is None:
        if len(_OF_LIBRARIES) >= attributes.MOST_RECIPES:
            _OF_LIBRARIES.clear()
        recipe = _OF_LIBRARIES[key] = _make(walk, kind, present)
    return recipe


_OF_LIBRARIES: dict[tuple[type, tuple[str, ...], bool], ModuleRecipe] = {}
"""Kept from run to run: a library's class does not change."""


def _make(walk: Walk, kind: type, present: tuple[str, ...]) -> ModuleRecipe:
    names = tuple(sorted(attributes.counted(walk, kind, present)))
    return ModuleRecipe(names, itemgetter(*names, *_INSIDE), *_head(walk, kind, names))


def _recipe_for_one(walk: Walk, value: Any, held: Mapping[str, Any]) -> ModuleRecipe:
    """Return how a module is read in which what an attribute holds decides whether it counts, or that has slots."""
    plain_attributes = attributes.plain(walk, value)
    names = tuple(sorted(plain_attributes))
    values = (*(plain_attributes[name] for name in names), *(held.get(name) or {} for name in _INSIDE))
    return ModuleRecipe(names, lambda _: values, *_head(walk, type(value), names))


def _head(walk: Walk, kind: type, names: tuple[str, ...]) -> tuple[str, bool]:
    if not classes.is_library(kind):
        return "", False
    return digests.digest([classes.describe(walk, kind), names])[:32], True


def hooks(walk: Walk, held: Mapping[str, Any]) -> list[Any]:
    """Return the hooks of a module that are not there to watch it."""
    data = []
    for name in HOOKS:
        for key, hook in (held.get(name) or {}).items():
            if not attributes.is_guest(hook):
                flags = [key in held.get(f"{name}_{flag}", ()) for flag in ("with_kwargs", "always_called")]
                with walk.reading_pipeline(False):
                    data.append([name, walk.visit(hook, "a hook"), flags])
    return data


def has_hooks(held: Mapping[str, Any]) -> bool:
    """Say whether a module has a hook that is not there to watch it."""
    hooks = _hooks_of(held)
    return any(hooks) and any(not attributes.is_guest(hook) for each in hooks for hook in each.values())
