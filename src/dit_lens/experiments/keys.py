"""Keys: what names a cached result, so that whatever changes the result changes its name.

A key holds the settings, the model, the samples by their content, the versions of libraries, and the measurement with all
that its code reads, wherever it lies (see `dit_lens.plan.callables`). What is reached through an object (`batch.step`) names
no function, so the parts of the library whose objects a measurement is handed count whole, by their compiled code.
Comments, docstrings and line numbers never count. What nothing names gives another key every time, with a warning.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import xarray as xr

from dit_lens.experiments.options import Options
from dit_lens.lens import Lens
from dit_lens.plan import bytecode
from dit_lens.plan.content import Walk, digest
from dit_lens.store import versions
from dit_lens.tasks.sample import Sample

LIBRARY = Path(__file__).parents[1]
WHOLE = (
    *("engine", "families", "models", "plan", "store", "edits", "lens", "records", "attention_records"),
    *("tasks.files", "tasks.image", "tasks.pairs", "tasks.sample", "tasks.scene"),
)
"""Packages and modules of the library that count whole: their objects are handed to measurements, or they serve those."""


def maker(
    name: str,
    options: Options,
    lens: Lens,
    function: Callable[..., Any],
    using: xr.Dataset | None = None,
) -> str:
    """Hash all that makes results, the samples aside.

    Args:
        name: of what is made.
        options: their settings count.
        lens: the model.
        function: makes the results.
        using: what the results are made with; its attribute `key` counts.
    """
    fit = None if using is None else using.attrs["key"]
    unnamed: list[str] = []
    model = lens.identity(unnamed)
    return _hash([name, options.settings, model, function, fit, versions(), library_code()], unnamed)


def key(made_by: str, samples: Iterable[Sample]) -> str:
    """Return the key of a result: of what makes it (see `maker`), and of the samples, by content."""
    return _hash([made_by, list(samples)], [])


def reachable(function: Callable[..., Any]) -> str:
    """Hash a function with the code and the constants that it can reach."""
    return _hash([function, library_code()], [])


def _hash(parts: list[Any], unnamed: list[str]) -> str:
    """Hash values by content; warn of what has none, with the sentences of `unnamed`."""
    walk = Walk(unnamed, whole=tuple(f"dit_lens.{name}" for name in WHOLE))
    hashed = digest(walk.whole(parts))
    if unnamed:
        warnings.warn(
            f"{'; '.join(dict.fromkeys(unnamed))}. So results made with it are not used again: make it inside the function "
            "that needs it.",
            stacklevel=3,
        )
    return hashed


@functools.cache
def library_code() -> str:
    """Hash the parts of the library that count whole."""
    places = [name.replace(".", "/") for name in WHOLE]
    files = [
        file for place in places for end in (".py", "/**/*.py") for file in sorted(LIBRARY.glob(place + end))
    ]
    return digest(
        [
            [file.relative_to(LIBRARY).as_posix(), bytecode.analyse(bytecode.of_file(file)).digest]
            for file in files
        ]
    )


__all__ = ["key", "library_code", "maker", "reachable"]
