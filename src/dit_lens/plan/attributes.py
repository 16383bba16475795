"""Which attributes of an object say what it is: no machinery of torch's, nothing that a run writes or that watches it."""

from __future__ import annotations

import functools
import threading
import types
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from dit_lens.plan import classes, origin

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
        *(
            "_load_state_dict_post_hooks",
            "_compiled_call_impl",
            "_is_hf_initialized",
            "_torchdynamo_wrapper_id",
        ),
    )
)
"""What torch keeps in a module beside its plain attributes; what of it counts is read by itself."""

REPLACED = ("forward", "__call__", "model_fn", "step")
"""Methods that whoever watches a model puts in place of its own."""

STATE = frozenset({"timestep_list", "_output_capturing_hooks_installed"})
"""Attributes of libraries' objects that a run changes in place."""

NNSIGHT = "__nnsight__"
"""Under which name nnsight keeps in a module what it has put something in place of."""

MOST_RECIPES = 4096
"""Classes of libraries, with the names of the attributes of their objects, of which is kept which count."""

_NNSIGHT = "nnsight."

_GUESTS = ("dit_lens.engine.", "dit_lens.families.", "nnsight.", "transformers.utils.output_capturing.")
"""Where hooks come from that watch a model, and do not make it another one."""


def plain(walk: Walk, value: Any) -> dict[str, Any]:
    """Return the attributes of an object that say what it is, with those that stand in slots."""
    kind = type(value)
    held = vars(value) if hasattr(value, "__dict__") else {}
    watched = classes.is_built_on_models(kind)
    data = {n: held[n] for n in counted(walk, kind, held) if not (watched and watches(n, held[n]))}
    if watched and NNSIGHT in held:
        data |= _below_nnsight(kind, held[NNSIGHT])
    return data | {name: getattr(value, name) for name in slots(kind) if hasattr(value, name)}


def counted(walk: Walk, kind: type, names: Iterable[str]) -> list[str]:
    """Return which names of attributes count in objects of a class."""
    names = [*names]
    replaced = frozenset(n for n in names if n in classes.STARTS and n not in REPLACED)
    left_out = _left_out(walk, kind, replaced)
    if not classes.is_built_on_models(kind):
        return [n for n in names if n not in left_out]
    return [n for n in names if not (n in MACHINERY or n in left_out or "__nnsight" in n)]


def depends(name: str) -> bool:
    """Say whether an attribute counts or not by what it holds."""
    return name in REPLACED or name == "_diffusers_hook"


def watches(name: str, item: Any) -> bool:
    """Say whether an attribute is there to watch an object, or is left behind by that."""
    if name == "_diffusers_hook":
        return not item.hooks  # a run leaves an empty one behind
    return name in REPLACED and is_guest(item)


def slots(kind: type) -> list[str]:
    """Return the slots of a class, and of those that it inherits from, by the names under which they stand."""
    names = []
    for base in kind.__mro__:
        for name in classes.declared_slots(base):
            private = name.startswith("__") and not name.endswith("__")
            names.append(f"_{base.__name__.lstrip('_')}{name}" if private else name)
    return [name for name in names if name not in ("__dict__", "__weakref__")]


def is_guest(hook: Any) -> bool:
    """Say whether a hook is this library's own, or nnsight's."""
    inner = hook
    while isinstance(inner, functools.partial):
        inner = inner.func
    inner = getattr(inner, "__func__", inner)
    module = getattr(inner, "__globals__", {}).get("__name__") or getattr(type(inner), "__module__", "")
    return f"{module}.".startswith(_GUESTS)


def _below_nnsight(kind: type, state: Any) -> dict[str, Any]:
    """Return the forward that a module had before nnsight put its own there, where that was not its class's."""
    original = getattr(state, "original", None)
    if original is None or original is getattr(kind, "forward", None):
        return {}
    return {"forward": _unwrapped(original)}


def _unwrapped(forward: Any) -> Any:
    """Return a forward of the user's that nnsight keeps in a function of its own, because it is bound to its module."""
    is_nnsights = getattr(forward, "__globals__", {}).get("__name__", "").startswith(_NNSIGHT)
    return forward.__closure__[0].cell_contents if is_nnsights else forward


def is_controller(kind: type) -> bool:
    """Say whether a class is the one whose objects nnsight puts in place of a module's forward."""
    return kind.__name__ == "Controller" and str(kind.__module__).startswith(_NNSIGHT)


def beneath(controller: Any) -> Any:
    """Return the forward that one of nnsight's stands in place of: a bound method, or what the user has put there."""
    module, original = controller.module_ref(), _unwrapped(controller.state.original)
    is_own = original is controller.state.original
    return types.MethodType(original, module) if is_own else original


_PARTS: dict[int, dict[int, weakref.ReferenceType[Any]]] = {}
"""By the id of a pipeline under a lens: what it holds now, and the pipeline itself, by id."""

_ALL_PARTS: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
"""All of these, by id."""


class _Named(threading.local):
    """The pipeline of the run that this thread names."""

    pipe: int | None = None


_NAMED = _Named()


def mark_parts(pipe: Any, parts: Iterable[Any]) -> None:
    """Take note of a pipeline and of what it holds: what a run writes into these is no part of what they are.

    An object of the same class that the user's own code holds, such as a scheduler, counts with all that is in it.
    """
    for key, held in [*_PARTS.items()]:
        if held[key]() is None:  # that pipeline is gone
            _PARTS.pop(key, None)
    here: dict[int, weakref.ReferenceType[Any]] = {}
    for part in (pipe, *parts):
        if not isinstance(part, type | types.FunctionType | types.ModuleType):
            with suppress(TypeError):  # text, numbers, lists: no run keeps its state in them
                here[id(part)] = weakref.ref(part)
                _ALL_PARTS[id(part)] = part
    if id(pipe) in here:
        _PARTS[id(pipe)] = here


@contextmanager
def naming_run_of(pipe: Any) -> Iterator[None]:
    """Name a run of a pipeline: it sets what this pipeline holds anew, and leaves all other pipelines as they are."""
    before, _NAMED.pipe = _NAMED.pipe, id(pipe)
    try:
        yield
    finally:
        _NAMED.pipe = before


def is_part(value: Any) -> bool:
    """Say whether a value is a pipeline under a lens, or something that one holds; of the pipeline whose run is named, if any."""
    if value is None or _ALL_PARTS.get(id(value)) is not value:
        return False
    if _NAMED.pipe is None:
        return True
    part = _PARTS.get(_NAMED.pipe, {}).get(id(value))
    return part is not None and part() is value


def is_written_by_runs(walk: Walk, value: Any, name: str) -> bool:
    """Say whether an attribute of a part of a pipeline is written anew by every run, such as a scheduler's noise levels."""
    if not is_part(value):
        return False
    with walk.reading_pipeline():
        return not counted(walk, type(value), [name])


def is_users(value: Any) -> bool:
    """Say whether a value is a function of the user's or an object of a class of theirs."""
    while isinstance(value, types.MethodType | functools.partial):
        value = value.__func__ if isinstance(value, types.MethodType) else value.func
    if isinstance(value, types.FunctionType):
        return not (origin.is_library_function(value) or origin.is_own_code(value.__code__))
    return not classes.is_no_users(type(value))


def _left_out(walk: Walk, kind: type, replaced: frozenset[str]) -> frozenset[str]:
    by_class = _LEFT_OUT.setdefault(kind, {})
    known = None if replaced else by_class.get(walk.of_pipeline)
    if known is None:
        # A value that a class of the user's has cached may be older than what it was made of.
        cached = frozenset(
            n
            for b in kind.__mro__
            if classes.is_of_models(b)
            for n, m in vars(b).items()
            if isinstance(m, functools.cached_property)
        )
        library = classes.is_library(kind)
        known = _unless_given(kind, UNTOLD) | cached if classes.is_of_models(kind) else cached
        if walk.of_pipeline:
            known |= classes.written_by_runs(walk, kind, replaced) | _unless_given(kind, STATE)
        if library and not replaced:
            by_class[walk.of_pipeline] = known
    return known


def _unless_given(kind: type, names: frozenset[str]) -> frozenset[str]:
    return frozenset(name for name in names if name.startswith("_") or not classes.is_given(kind, name))


_LEFT_OUT: weakref.WeakKeyDictionary[type, dict[bool, frozenset[str]]] = weakref.WeakKeyDictionary()
"""Of libraries' classes, whose version says what their code is; by whether an object belongs to a pipeline."""
