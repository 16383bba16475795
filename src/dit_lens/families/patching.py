"""How a run wraps what it runs on, marks it as being traced, and takes all of it back, whatever interrupts it.

The mark stands on the modules, not on the pipelines, so two pipelines that share a transformer are covered, in
whichever thread they run: a second trace of a transformer is refused, the first is unharmed. What a run installs serves
the thread that installed it, and no other.
"""

from __future__ import annotations

import functools
import gc
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from dit_lens.errors import PlanError

if TYPE_CHECKING:
    from torch import nn

MARK = "_dit_lens_wrapped"
"""Attribute of the function by which a pipeline is seen to be traced already."""


def refuse_traced(pipe: Any, function: Any) -> None:
    """Raise PlanError where a function of the pipeline is wrapped already."""
    if hasattr(function, MARK):
        raise PlanError(f"This {type(pipe).__name__} is being traced already: end that trace first.")


def refuse_compiled(name: str, dit: nn.Module) -> None:
    """Raise PlanError where a model, or a part of it, is compiled."""
    for path, module in dit.named_modules():
        # torch.compile wraps a module, or its forward; module.compile, which pipe.compile_pipeline uses, marks it.
        held = vars(module)
        wrapped = "_torchdynamo_orig_callable" in getattr(held.get("forward"), "__dict__", {})
        if (
            wrapped
            or "_orig_mod" in (held.get("_modules") or {})
            or held.get("_compiled_call_impl") is not None
        ):
            raise PlanError(
                f"{f'{name}.{path}'.rstrip('.')} is compiled: hooks would break its graph. Trace an uncompiled model."
            )


T = TypeVar("T")
_ACTIVE = threading.local()
"""By thread, as `patches`: how to take back what the run that is under way has put on objects."""


def guarded(work: Callable[[], T], clean: Callable[[], None] = lambda: None) -> T:
    """Do some work, and then take back all that `set_attribute` has put on objects meanwhile.

    An interrupt may come at any moment, also while things are put on or taken back. So each is noted before it is put
    on, taking back twice does no harm, and what one interrupt cut short is taken back once more.

    Args:
        work: what is done.
        clean: what else is cleaned up; called once or twice.
    """
    patches: list[Callable[[], None]] = []
    around = getattr(_ACTIVE, "patches", None)

    def restore() -> None:
        while patches:
            patches[-1]()  # takes itself off the list
        clean()
        _ACTIVE.patches = around

    try:
        try:
            _ACTIVE.patches = patches
            return work()
        finally:
            restore()
    finally:
        restore()


def set_attribute(holder: Any, name: str, value: Any) -> Callable[[], None]:
    """Set an instance attribute; return what puts back what was there, or removes it where nothing was.

    A function serves the thread that sets it. Another thread, which may run the same module bare, gets the function
    that was there before. Inside `guarded`, all is put back at the end.
    """
    had, before = name in vars(holder), vars(holder).get(name)
    current = getattr(holder, name, None)
    patches: list[Callable[[], None]] | None = getattr(_ACTIVE, "patches", None)

    def put_back() -> None:
        if had:
            setattr(holder, name, before)
        elif name in vars(holder):
            delattr(holder, name)
        if patches is not None and put_back in patches:
            patches.remove(put_back)

    if patches is not None:
        patches.append(put_back)
    setattr(holder, name, here(value, current) if callable(value) and callable(current) else value)
    return put_back


def undo_all(undo: Sequence[Callable[[], None]]) -> Callable[[], None]:
    """Return what undoes several things, the last of them first."""

    def restore() -> None:
        for put_back in reversed(undo):
            put_back()

    return restore


# ---- marks

_LOCK = threading.RLock()  # the end of a trace that was abandoned may come from the collector, at any line


class _Mark:
    """What one trace holds while it runs. A mark counts as long as it lives: an interrupt cannot leave it behind."""

    def __init__(self) -> None:
        self.thread, self.ident = threading.current_thread().name, threading.get_ident()
        self.pid = os.getpid()

    @property
    def counts(self) -> bool:
        """Whether the trace runs in this process: of a parent's, only the thread that was forked goes on."""
        return self.pid == os.getpid() or self.ident == threading.get_ident()


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
        try:
            _set(parts, mark)
            yield
        finally:
            _clear(parts, mark)
    finally:  # once more, where an interrupt came in between
        _clear(parts, mark)


@contextmanager
def undisturbed(dits: Iterable[nn.Module]) -> Iterator[None]:
    """Let no other thread begin a trace while the block looks at a pipeline; a trace of this thread's own goes on.

    Args:
        dits: the pipeline's transformers.

    Raises:
        PlanError: another thread is tracing one of them, and has put things of its own into the pipeline.
    """
    dits = list(dits)
    holders = {id(holder): holder for dit in dits if (holder := _holder(dit)) is not None}
    if holders and all(holder.ident == threading.get_ident() for holder in holders.values()):
        yield
        return
    with traced(dits):
        yield


def _set(parts: Sequence[nn.Module], mark: _Mark) -> None:
    refuse_marked(parts)
    with _LOCK:
        _refuse_marked(parts)
        for part in parts:
            _MARKS[part] = weakref.ref(mark)


def refuse_marked(parts: Sequence[nn.Module]) -> None:
    """Raise PlanError where one of some modules is being traced."""
    if any(_holder(part) is not None for part in parts):
        gc.collect()  # a mark that several interrupts left in the cycle of a traceback
    _refuse_marked(parts)


def _refuse_marked(parts: Sequence[nn.Module]) -> None:
    for part in parts:
        holder = _holder(part)
        if holder is not None:
            raise PlanError(
                f"This {type(part).__name__} is being traced already, in thread {holder.thread!r}: end that trace first, "
                "or trace a copy of the model."
            )


def _clear(parts: Iterable[nn.Module], mark: _Mark) -> None:
    with _LOCK:
        for part in parts:
            if _holder(part) is mark:
                del _MARKS[part]


def _holder(part: nn.Module) -> _Mark | None:
    """Return the mark that stands on a module, where its trace is still there."""
    reference = _MARKS.get(part)
    mark = None if reference is None else reference()
    return mark if mark is not None and mark.counts else None


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


# ---- interrupts

PATIENCE = 5.0
"""Seconds after the first Ctrl-C from which another one counts again: cleaning up hangs."""


@contextmanager
def one_interrupt() -> Iterator[None]:
    """Let the first Ctrl-C raise KeyboardInterrupt in the block, and hold back those that follow at once.

    They are not held back outside the main thread, inside of another such block, and where the user handles Ctrl-C. An
    interrupt that falls into the end of a `torch.no_grad` leaves gradients off: they are as they were before.
    """
    import torch

    gradients = torch.is_grad_enabled()
    with _held_back():
        try:
            yield
        except BaseException:  # while a second interrupt is still held back
            torch.set_grad_enabled(gradients)
            raise


@contextmanager
def _held_back() -> Iterator[None]:
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    last = -PATIENCE

    def interrupt(number: int, frame: Any) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= PATIENCE:
            last = now
            raise KeyboardInterrupt

    try:
        try:
            signal.signal(signal.SIGINT, interrupt)
            yield
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    finally:  # once more, where an interrupt came in between
        signal.signal(signal.SIGINT, signal.default_int_handler)
