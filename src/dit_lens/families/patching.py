"""How families wrap a pipeline's own calls for the time of a run, and take all of it back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from dit_lens.errors import PlanError
from dit_lens.families.tracing import here

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
        wrapped = hasattr(vars(module).get("forward"), "_torchdynamo_orig_callable")
        if (
            wrapped
            or hasattr(module, "_orig_mod")
            or getattr(module, "_compiled_call_impl", None) is not None
        ):
            raise PlanError(
                f"{f'{name}.{path}'.rstrip('.')} is compiled: hooks would break its graph. Trace an uncompiled model."
            )


def set_attribute(holder: Any, name: str, value: Any) -> Callable[[], None]:
    """Set an instance attribute; return what puts back what was there, or removes it where nothing was.

    A function serves the thread that sets it. Another thread, which may run the same module bare, gets the function
    that was there before.
    """
    had, before = name in vars(holder), vars(holder).get(name)
    current = getattr(holder, name, None)
    setattr(holder, name, here(value, current) if callable(value) and callable(current) else value)

    def put_back() -> None:
        if had:
            setattr(holder, name, before)
        else:
            delattr(holder, name)

    return put_back


def undo_all(undo: Sequence[Callable[[], None]]) -> Callable[[], None]:
    """Return what undoes several things, the last of them first."""

    def restore() -> None:
        for put_back in reversed(undo):
            put_back()

    return restore
