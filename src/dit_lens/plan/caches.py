"""Caches of the user's (`functools.lru_cache`, `cached_property`) that hold what their functions give again.

Such a cache changes nothing, whether it is filled or not: it is left out of a name, and no row of a batch is kept in it. To
know that, a function is called once more for each content that its cache holds; what differs (drawn numbers, a value that was
written into, one older than what it was made of) counts.
"""

from __future__ import annotations

import functools
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from dit_lens.plan import classes
from dit_lens.plan.digests import digest

if TYPE_CHECKING:
    from dit_lens.plan.content import Walk

_COMES_AGAIN: dict[str, bool] = {}
"""By the content of what a value was made of and of the value: whether it comes again."""


def cached_names(kind: type, names: Mapping[str, Any]) -> list[str]:
    """Return which attributes of an object of a user's class were filled by a `cached_property`."""
    if classes.is_library(kind):
        return []
    return [name for name in names if _property(kind, name) is not None]


def _property(kind: type, name: str) -> functools.cached_property[Any] | None:
    member = next((vars(base)[name] for base in kind.__mro__ if name in vars(base)), None)
    return member if type(member) is functools.cached_property else None


def property_comes_again(walk: Walk, value: Any, name: str) -> bool:
    """Say whether what a `cached_property` of an object holds would come of the object as it is now.

    The property is read off a twin of the object without what caches hold, so that the object stays as it is.
    """
    kind, held = type(value), vars(value)
    member = _property(kind, name)
    if member is None:
        return False
    filled = cached_names(kind, held)
    try:
        twin = object.__new__(kind)
    except TypeError:  # a class built on one in C
        return False
    vars(twin).update({n: item for n, item in held.items() if n not in filled})
    return _comes_again(walk, (id(value), name), [twin, name], held[name], lambda: member.func(twin))


def call_comes_again(walk: Walk, cached: Any, function: Any, key: Any, result: Any) -> bool:
    """Say whether what a cached function remembers of a call would come of the same call now.

    Args:
        walk: the way through values.
        cached: the function with its cache.
        function: what it calls.
        key: the arguments; those by keyword stand behind a mark.
        result: of the call.
    """
    arguments: Sequence[Any] = key if isinstance(key, tuple) else (key,)
    if any(type(argument) is object for argument in arguments):
        return False
    return _comes_again(walk, (id(cached), ""), [function, *arguments], result, lambda: function(*arguments))


def _comes_again(
    walk: Walk, place: tuple[int, str], made_of: Any, value: Any, make: Callable[[], Any]
) -> bool:
    if place in walk.comparing:  # what it is made of, or gives, leads back to it
        return False
    unnamed: list[str] = []
    apart = walk.alone(unnamed, place)
    now = apart.whole(value)
    key = digest([apart.whole(made_of), now])
    if unnamed:
        return False
    if key not in _COMES_AGAIN:
        try:
            with _apart():
                again = walk.alone(unnamed, place).whole(make())
        except Exception:  # whatever a function of the user's raises
            return False
        _COMES_AGAIN[key] = again == now and not unnamed
    return _COMES_AGAIN[key]


@contextmanager
def _apart() -> Iterator[None]:
    """Call a function of the user's without gradients, and leave the global generators as they were."""
    torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
    drawn, of_numpy = random.getstate(), numpy.random.get_state() if numpy is not None else None
    try:
        if torch is None:
            yield
        else:
            devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
            with torch.no_grad(), torch.random.fork_rng([*devices]):
                yield
    finally:
        random.setstate(drawn)
        if numpy is not None:
            numpy.random.set_state(of_numpy)
