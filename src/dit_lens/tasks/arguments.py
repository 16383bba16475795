"""What tasks are asked with: whole numbers of any library, each as a Python int."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import TYPE_CHECKING, Any, TypeVar, cast

from dit_lens.errors import TaskError
from dit_lens.plan.places import whole_number

if TYPE_CHECKING:
    from dit_lens.tasks.sample import Sample

F = TypeVar("F", bound="Callable[..., Sample]")


def whole_numbers(task: F) -> F:
    """Let a task take whole numbers of any library, as they change neither scene nor split; refuse what is none.

    Raises:
        TaskError: when the task is called with another value for a parameter that is an `int`. (The seed is refused where random
            numbers are made of it.)
        TypeError: it has no such parameter, or one is missing.
    """
    asked = signature(task)
    optional = {
        name: "None" in parameter.annotation
        for name, parameter in asked.parameters.items()
        if parameter.annotation.startswith("int")
    }

    @wraps(task)
    def checked(*args: Any, **options: Any) -> Sample:
        try:
            bound = asked.bind(*args, **options)
        except TypeError as error:
            raise TypeError(f"{task.__name__}({', '.join(asked.parameters)}): {error}.") from None
        for name, value in bound.arguments.items():
            if name not in optional or (value is None and optional[name]):
                continue
            number = whole_number(value)
            if number is None and name != "seed":
                raise TaskError(f"{task.__name__}({name}={value!r}): give a whole number.")
            bound.arguments[name] = value if number is None else number
        return task(*bound.args, **bound.kwargs)

    return cast(F, checked)
