"""How a script starts from the command line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn, TypeVar

import tyro
from tqdm import tqdm

from dit_lens.errors import DitLensError

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
        code = main(tyro.cli(options))
    except DitLensError as error:
        tqdm.write(f"error: {error}", file=sys.stderr)
        code = 1
    sys.exit(code)


__all__ = ["run_script"]
