"""Which transformers are being traced, in this process: a second trace of one is refused, the first is unharmed.

The mark stands on the modules, not on the pipelines, so two pipelines that share a transformer are covered, in
whichever thread they run. What a trace installs serves the thread that installed it, and no other.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from dit_lens.errors import PlanError

if TYPE_CHECKING:
    from torch import nn

_LOCK = threading.Lock()


class _Mark:
    """What one trace holds while it runs. A mark counts as long as it lives: an interrupt cannot leave it behind."""

    def __init__(self) -> None:
        self.thread = threading.current_thread().name


_MARKS: weakref.WeakKeyDictionary[nn.Module, weakref.ref[_Mark]] = weakref.WeakKeyDictionary()


@contextmanager
def traced(dits: Iterable[nn.Module]) -> Iterator[None]:
    """Mark transformers as being traced, for as long as the block runs.

    Args:
        dits: The transformers; every part with weights of its own is marked, because another pipeline may hold
            the parts under another module.

    Raises:
        PlanError: One of them is being traced already.
    """
    parts = [part for dit in dits for part in (dit, *(m for m in dit.modules() if m._parameters))]
    mark = _Mark()
    try:
        _set(parts, mark)
        yield
    finally:
        _clear(parts, mark)


def _set(parts: Iterable[nn.Module], mark: _Mark) -> None:
    with _LOCK:
        for part in parts:
            holder = _holder(part)
            if holder is not None:
                raise PlanError(
                    f"This {type(part).__name__} is being traced already, in thread {holder.thread!r}: end that trace first, "
                    "or trace a copy of the model."
                )
        for part in parts:
            _MARKS[part] = weakref.ref(mark)


def _clear(parts: Iterable[nn.Module], mark: _Mark) -> None:
    with _LOCK:
        for part in parts:
            if _holder(part) is mark:
                del _MARKS[part]


def _holder(part: nn.Module) -> _Mark | None:
    """Return the mark that stands on a module, where its trace is still there."""
    reference = _MARKS.get(part)
    return None if reference is None else reference()


def here(function: Callable[..., Any], before: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function for this thread alone; other threads get what was there before.

    Args:
        function: What a trace installs on an object that other pipelines may share.
        before: What the object had.
    """
    owner = threading.get_ident()

    @functools.wraps(function)
    def in_thread(*args: Any, **kwargs: Any) -> Any:
        return (function if threading.get_ident() == owner else before)(*args, **kwargs)

    return in_thread


__all__ = ["here", "traced"]
