"""How a script starts from the command line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import fields
from typing import Any, NoReturn, TypeVar

import tyro
from tqdm import tqdm

from dit_lens.errors import DitLensError, TaskError

T = TypeVar("T")


def run_script(main: Callable[[T], int], options: type[T]) -> NoReturn:
    """Read the options from the command line, run a script, and end the process with its exit code.

    What the user can mend (a `DitLensError`) is one line on stderr and exit code 1; anything else is a bug, and keeps
    its traceback.

    Args:
        main: of the script: options to exit code.
        options: the class of the options; its docstring heads `--help`.
    """
    try:
        chosen = tyro.cli(options)
        _check_numbers(chosen)
        code = main(chosen)
    except DitLensError as error:
        tqdm.write(f"error: {error}", file=sys.stderr)
        code = 1
    sys.exit(code)


def _check_numbers(options: Any) -> None:
    """Refuse lists without a value where there has to be one, and counts and seeds below 0, which Python counts from the end.

    Raises:
        TaskError: it names the option.
    """
    for field in fields(options):
        value = getattr(options, field.name)
        several = value if isinstance(value, tuple | list) else [value]
        if not several and field.default != ():
            raise TaskError(f"--{field.name.replace('_', '-')}: give at least one.")
        if any(isinstance(number, int) and number < 0 for number in several):
            raise TaskError(f"--{field.name.replace('_', '-')} {value}: give 0 or more.")


__all__ = ["run_script"]
