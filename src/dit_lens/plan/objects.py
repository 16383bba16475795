"""Objects by class and state: attributes, slots, what a torch module holds; objects in C by what they tell for pickling."""

from __future__ import annotations

import copyreg
import functools
import io
import logging
import re
import types
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from dit_lens.plan import callables, classes, origin

if TYPE_CHECKING:
    from dit_lens.plan.content import Walk

UNTOLD = frozenset(
    (
        *("name_or_path", "_name_or_path", "_commit_hash", "_diffusers_version", "transformers_version"),
        *("_class_name", "_use_default_values", "vocab_file", "tokenizer_file", "merges_file", "init_kwargs"),
        *(
            "_progress_bar_config",
            "deprecation_warnings",
            "_in_target_context_manager",
            "verbose",
            "_cpp_class",
        ),
    )
)
"""Attributes of libraries' objects that say where something is from, or how it talks; never what it computes."""

MACHINERY = frozenset(
    (
        *("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "_is_full_backward_hook"),
        *("_backward_hooks", "_backward_pre_hooks", "_forward_hooks", "_forward_pre_hooks"),
        *("_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs"),
        *("_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks"),
        *("_load_state_dict_post_hooks", "_compiled_call_impl", "_is_hf_initialized"),
    )
)
"""What torch keeps in a module beside its plain attributes; what of it counts is read by itself."""

REPLACED = ("forward", "__call__", "model_fn", "step")
"""Methods that whoever watches a model puts in place of its own."""

HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_GUESTS = ("dit_lens.", "nnsight.", "transformers.utils.output_capturing.")
"""Where hooks come from that watch a model, and do not make it another one."""

STATE = frozenset({"timestep_list", "_output_capturing_hooks_installed"})
"""Attributes of libraries' objects that a run changes in place."""

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
        return walk.unnamed(value, f"an open file ({kind.__name__})")
    if isinstance(value, weakref.ReferenceType):
        return {"@weakref": walk.visit(value())}
    if isinstance(value, logging.Logger):
        return {"@logger": value.name}
    if isinstance(value, types.MappingProxyType):
        return walk.visit(dict(value))
    if origin.library(kind.__module__).startswith("python") and kind.__module__ == "typing":
        return {"@value": re.sub(r" at 0x[0-9a-f]+", "", repr(value))}
    if hasattr(kind, "__next__") and not _in_python(kind):
        return walk.unnamed(value, f"an iterator ({kind.__name__}), which is used up as it is read,")
    return {"@object": kind.__qualname__, "code": walk.node(value, lambda: _parts(walk, value, kind))}


def describe_module(walk: Walk, value: Any) -> Any:
    """Return a torch module as data."""
    kind = type(value)
    parts = lambda: ["module", classes.describe(walk, kind), *_module(walk, value, kind)]  # noqa: E731
    return {"@object": kind.__qualname__, "code": walk.node(value, parts)}


def _in_python(kind: type) -> bool:
    """Say whether a class is made in Python."""
    return bool(kind.__flags__ & (1 << 9)) and hasattr(kind, "__module__") and "__dict__" in dir(kind)


def _parts(walk: Walk, value: Any, kind: type) -> list[Any]:
    described = classes.describe(walk, kind)
    if isinstance(value, _BUILT_ON):
        return ["object", described, _items(walk, value), _state(walk, value, kind)]
    if hasattr(value, "named_modules") and hasattr(value, "_forward_hooks"):
        return ["module", described, *_module(walk, value, kind)]
    base = next((b for b in kind.__mro__ if not b.__flags__ & (1 << 9)), object)
    if base is object and (hasattr(value, "__dict__") or _slots(kind)):
        return ["object", described, _state(walk, value, kind)]
    if base is object and kind.__flags__ & (1 << 9) and origin.is_library_module(kind.__module__) is False:
        return ["object", described, {}]
    return ["object", described, _reduced(walk, value, kind)]


def _items(walk: Walk, value: Any) -> Any:
    """Return what an object holds as the builtin that its class is built on."""
    if isinstance(value, dict):
        # An object of a library that a dict backs, such as a configuration, says as little by some keys.
        untold = UNTOLD if classes.is_library(type(value)) else frozenset()
        return walk.visit({k: v for k, v in dict.items(value) if k not in untold})
    if isinstance(value, set | frozenset):
        return walk.visit(set(value))
    if isinstance(value, list | tuple | deque):
        return walk.visit(list(value))
    builtin: Any
    for builtin in (str, bytes, int, float, complex):
        if isinstance(value, builtin):
            return walk.visit(builtin.__new__(builtin, value))
    return walk.visit(value.args)


def _slots(kind: type) -> list[str]:
    """Return the slots of a class, and of those that it inherits from, by the names under which they stand."""
    names = []
    for base in kind.__mro__:
        slots = vars(base).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else tuple(slots):
            private = name.startswith("__") and not name.endswith("__")
            names.append(f"_{base.__name__.lstrip('_')}{name}" if private else name)
    return [name for name in names if name not in ("__dict__", "__weakref__")]


def _state(walk: Walk, value: Any, kind: type) -> dict[str, Any]:
    """Return the attributes of an object; what a run itself writes into a library's object is left out."""
    held = attributes(walk, value) if hasattr(value, "__dict__") else {}
    held |= {name: getattr(value, name) for name in _slots(kind) if hasattr(value, name)}
    if kind.__name__ == "FrozenDict":  # it holds its items as attributes too
        held = {}
    return {str(name): walk.visit(held[name], f"its attribute {name!r}") for name in sorted(held, key=str)}


def _left_out(walk: Walk, kind: type) -> frozenset[str]:
    known = _LEFT_OUT.get(kind)
    if known is None:
        cached = {
            n for b in kind.__mro__ for n, m in vars(b).items() if isinstance(m, functools.cached_property)
        }
        known = (
            classes.written_by_runs(walk, kind)
            | cached
            | (UNTOLD | STATE if classes.is_library(kind) else frozenset())
        )
        if classes.is_library(kind):
            _LEFT_OUT[kind] = known
    return known


_LEFT_OUT: weakref.WeakKeyDictionary[type, frozenset[str]] = weakref.WeakKeyDictionary()


def attributes(walk: Walk, value: Any) -> dict[str, Any]:
    """Return the attributes of an object that say what it is: no machinery of torch's, nothing that a run writes."""
    held, left_out = vars(value), _left_out(walk, type(value))
    if "_diffusers_hook" in held and not held["_diffusers_hook"].hooks:  # a run leaves an empty one behind
        left_out = left_out | {"_diffusers_hook"}
    return {
        name: item
        for name, item in held.items()
        if not (
            name in MACHINERY
            or name in left_out
            or "nnsight" in name
            or (name in REPLACED and _is_guest(item))
        )
    }


def _module(walk: Walk, value: Any, kind: type) -> list[Any]:
    """Return what a torch module holds: attributes, parameters, buffers, parts, and hooks of the user's own."""
    held, plain = vars(value), {}
    for name, item in sorted(attributes(walk, value).items()):
        item_kind = type(item)
        if item is None or item_kind is bool or item_kind is int or item_kind is str:
            plain[name] = item
        else:
            plain[name] = walk.visit(item, f"its attribute {name!r}")
    tensors = [
        [name, None if tensor is None else walk.visit(tensor, name)]
        for part in ("_parameters", "_buffers")
        for name, tensor in held[part].items()
    ]
    parts = [
        [name, None if part is None else walk.visit(part, name)] for name, part in held["_modules"].items()
    ]
    return [plain, tensors, parts, hooks(walk, held)]


def hooks(walk: Walk, held: Mapping[str, Any]) -> list[Any]:
    """Return the hooks of a module that are not there to watch it."""
    found = []
    for name in HOOKS:
        for key, hook in (held.get(name) or {}).items():
            if not _is_guest(hook):
                flags = [key in held.get(f"{name}_{flag}", ()) for flag in ("with_kwargs", "always_called")]
                found.append([name, walk.visit(hook, "a hook"), flags])
    return found


def _is_guest(hook: Any) -> bool:
    """Say whether a hook is this library's own, or nnsight's."""
    inner = hook
    while isinstance(inner, functools.partial):
        inner = inner.func
    inner = getattr(inner, "__func__", inner)
    module = getattr(inner, "__globals__", {}).get("__name__") or getattr(type(inner), "__module__", "")
    return f"{module}.".startswith(_GUESTS)


def _reduced(walk: Walk, value: Any, kind: type) -> Any:
    """Return what an object in C tells for pickling; nothing is told by a lock, a socket, a handle."""
    try:
        told = value.__reduce_ex__(2)
    except Exception:  # whatever a foreign class raises
        return walk.unnamed(
            value, f"an object of {kind.__module__}.{kind.__qualname__}, which does not tell its state,"
        )
    if isinstance(told, str):
        return told
    make, arguments, *more = told
    nothing = (
        make is vars(copyreg)["__newobj__"] and len(arguments) == 1 and all(part is None for part in more)
    )
    if nothing and kind is not object:
        return walk.unnamed(
            value, f"an object of {kind.__module__}.{kind.__qualname__}, which does not tell its state,"
        )
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
    # Padding and truncation stand before the rest, and every call sets them anew.
    text = value.to_str()
    return {"@tokenizer": walk.visit(text[max(0, text.find('"added_tokens"')) :].encode())}


def _sentencepiece(walk: Walk, value: Any) -> Any:
    return {"@sentencepiece": walk.visit(value.serialized_model_proto())}


def _weak_items(walk: Walk, value: Any) -> Any:
    return {"@weak": type(value).__name__}


def _thread_local(walk: Walk, value: Any) -> Any:
    return walk.unnamed(value, "a thread-local object, which holds another state in every thread,")


SPECIAL: dict[str, Callable[[Walk, Any], Any]] = {
    "torch.Generator": _generator,
    "tokenizers.Tokenizer": _tokenizer,
    "sentencepiece.SentencePieceProcessor": _sentencepiece,
    "_thread._local": _thread_local,
    "weakref.WeakSet": _weak_items,
    "_weakrefset.WeakSet": _weak_items,
    "weakref.WeakKeyDictionary": _weak_items,
}
"""How objects of these classes are read, by library and name."""
