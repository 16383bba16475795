"""Whether what a model holds changes from call to call: a run that is resumed without that would be another.

A user's module, hook or function in place of a method may count, or hold the step before; it does so in an object of its own, in
an attribute of a library's module, in a buffer. So all of the DiTs is looked at, but for what a library's own methods write
anew in every run. A look is cheap: a tensor is the same where it is the same object, written as often.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dit_lens.families.fingerprint import tensor_data
from dit_lens.families.identity import held_by, hooks_of_all_modules, modes
from dit_lens.plan import attributes, classes, modules
from dit_lens.plan.content import Walk
from dit_lens.plan.digests import digest

PLAIN = frozenset({type(None), bool, int, float, str, torch.dtype, torch.device, torch.Size})
"""Types of values that never change."""


OFFLOADING = frozenset({"_hf_hook", "_old_forward", "_diffusers_hook"})
"""What accelerate and diffusers put into a module to move its weights about."""


class Holdings:
    """What the DiTs of a pipeline, its scheduler and the user's parts of it hold; see `look`.

    Args:
        pipe: the pipeline.
        dits: its DiTs, before anything is put around them.
    """

    def __init__(self, pipe: Any, dits: Iterable[nn.Module]) -> None:
        self._parts: list[Any] = [part for dit in dits for part in dit.modules()]
        held = [value for value in held_by(pipe).values() if not isinstance(value, nn.Module)]
        self._users = [value for value in held if attributes.is_users(value)]
        networks = [*self._parts]
        self._parts += [pipe.scheduler] if hasattr(pipe, "scheduler") else []
        self._names: dict[
            int, tuple[int, tuple[str, ...]]
        ] = {}  # of each part: how many attributes, and which count
        self._weights: dict[int, Tensor] = {}
        # What moves weights about puts others in their place in every call.
        self._moves = any(OFFLOADING & part.__dict__.keys() for part in networks)
        self._kinds = [kind for kind in {type(part) for part in networks} if not classes.is_no_users(kind)]

    def look(self) -> list[Any]:
        """Return what is held now: another value than before where something has changed."""
        walk = Walk([], checksum=tensor_data, repeatable=True, watching=True)
        known: list[Any] = []
        deep: list[Any] = []
        for part in self._parts:
            held = getattr(part, "__dict__", None)
            if held is None:
                continue
            for name in self._counted(walk, part, held):
                value = held[name]
                if type(value) in PLAIN or (type(value) is tuple and PLAIN.issuperset(map(type, value))):
                    known.append(value)
                elif isinstance(value, Tensor):
                    known.append(_Version(value))
                elif not isinstance(value, nn.Module):
                    with walk.reading_pipeline(classes.is_no_users(type(part))):
                        deep.append(walk.visit(value, name))
            if isinstance(part, nn.Module):
                if not self._moves or type(part) in self._kinds:
                    for tensor in (*held["_parameters"].values(), *held["_buffers"].values()):
                        known.append(self._written(tensor))
                known += map(id, held["_modules"].values())
                if modules.has_hooks(held):
                    deep.append(modules.hooks(walk, held))
        deep += [walk.visit(value) for value in (*self._users, *self._kinds)]
        deep.append(walk.whole([hooks_of_all_modules(), modes()]))
        return [known, digest(deep)]

    def _written(self, tensor: Tensor | None) -> tuple[int, int] | None:
        """Return which tensor of a model it is, and how often it was written; it is held, so that no other has its id."""
        if tensor is None:
            return None
        self._weights[id(tensor)] = tensor
        return id(tensor), -1 if tensor.is_inference() else tensor._version

    def _counted(self, walk: Walk, part: Any, held: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the attributes of a part that are its own: neither torch's, nor what a run writes or what watches it."""
        count, names = self._names.get(id(part), (-1, ()))
        if count != len(held):
            with walk.reading_pipeline(classes.is_no_users(type(part))):
                names = tuple(
                    name
                    for name in attributes.counted(walk, type(part), held)
                    if not (attributes.watches(name, held[name]) or _is_ours(held[name]))
                    and not (name in (*OFFLOADING, "forward") and OFFLOADING & held.keys())
                )
            self._names[id(part)] = len(held), names
        return names


def _is_ours(value: Any) -> bool:
    """Say whether a value is a function that a running trace has put in place of one of the model's."""
    return callable(value) and attributes.is_guest(value)


class _Version:
    """A tensor as it is written now: equal to another look at the same object, written as often."""

    __slots__ = ("tensor", "times")

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = weakref.ref(tensor)
        self.times = None if tensor.is_inference() else tensor._version

    def __eq__(self, other: object) -> bool:
        same = isinstance(other, _Version) and self.tensor() is not None and self.tensor() is other.tensor()
        return same and self.times == other.times  # type: ignore[attr-defined]

    __hash__ = None  # type: ignore[assignment]


__all__ = ["Holdings"]
