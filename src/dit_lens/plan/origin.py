"""Whose code it is: a library's, which its version names, or the user's own (and this package's), which its text names."""

from __future__ import annotations

import hashlib
import importlib.metadata as metadata
import importlib.util
import os
import platform
import sys
import sysconfig
import time
import types
import uuid
from functools import cache
from pathlib import Path
from typing import Any

_BEGUN = time.time()
HERE = str(Path(__file__).resolve().parents[1]) + os.sep
"""Folder of this package."""

_MODELING = (
    "torch",
    "torchvision",
    "diffsynth",
    "diffusers",
    "transformers",
    "peft",
    "accelerate",
    "nnsight",
)
OF_MODELS = frozenset((*_MODELING, "dit_lens"))
"""Libraries whose objects make up a pipeline: what a run writes into those is no part of what they are."""

FRAMEWORKS = (
    *_MODELING,
    *(
        "numpy",
        "xarray",
        "scipy",
        "sklearn",
        "PIL",
        "einops",
        "safetensors",
        "zarr",
        "dask",
        "pandas",
        "tqdm",
    ),
    *("_pytest", "pytest", "IPython", "ipykernel"),
)
"""Libraries also where they are installed from a folder of the user's; their sources then count with the version."""

DISTRIBUTIONS = {"PIL": "pillow", "sklearn": "scikit-learn", "cv2": "opencv-python", "_pytest": "pytest"}
_STANDARD = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib")})
_INSTALLED = ("/site-packages/", "/dist-packages/")


def is_library_file(filename: str) -> bool:
    """Say whether a file belongs to Python or to an installed library."""
    answer = _is_installed(filename)
    return answer if answer is not None else _framework_of(filename) is not None


@cache
def _is_installed(filename: str) -> bool | None:
    """Return what the file's path says; None where it does not say (a library may be imported later)."""
    if filename.startswith(HERE):
        return False
    if filename.startswith("<frozen"):
        return True
    path = filename.replace("\\", "/")
    if any(part in path for part in _INSTALLED) or path.startswith(_STANDARD):
        return True
    return None


def _framework_of(filename: str) -> str | None:
    for name in FRAMEWORKS:
        file = getattr(sys.modules.get(name), "__file__", None)
        if file and filename.startswith(str(Path(file).parent) + "/"):
            return name
    return None


def is_library_module(name: str) -> bool:
    """Say whether a module, by its name, belongs to Python or to an installed library."""
    top = name.partition(".")[0]
    if top in ("dit_lens", "__main__"):  # a script's own classes, also where a profiler of Python's runs it
        return False
    if top in sys.stdlib_module_names and _is_standard(top):
        return True
    file = getattr(sys.modules.get(name), "__file__", None) or _file_of(top)
    return bool(file) and is_library_file(str(file))


def _is_standard(top: str) -> bool:
    """Say whether a module is Python's, and not a file of the user's of that name."""
    file = _file_of(top)
    return file in (None, "built-in", "frozen") or bool(_is_installed(str(file)))


def _file_of(top: str) -> str | None:
    """Return where a top-level module comes from, the same whether it is imported already or not."""
    if (module := sys.modules.get(top)) is not None:
        return getattr(module, "__file__", None)
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    return None if spec is None else spec.origin


def is_library_function(function: types.FunctionType) -> bool:
    """Say whether a function is a library's.

    Libraries also make code that stands in no file (the `__init__` of a dataclass). It is theirs where their module holds it:
    whoever makes code may give it the globals of a library.
    """
    filename = function.__code__.co_filename
    if not filename.startswith("<") or filename.startswith("<frozen"):
        return is_library_file(filename)
    module = function.__globals__.get("__name__")
    return isinstance(module, str) and is_library_module(module) and _stands_in(module, function)


def held_at(module: str, qualname: str) -> Any:
    """Return what a module that is imported holds under a dotted name; None where it holds nothing there."""
    held: Any = sys.modules.get(module)
    for name in qualname.split("."):
        held = getattr(held, "__dict__", {}).get(name)
    return held


def _stands_in(module: str, function: types.FunctionType) -> bool:
    """Say whether a module holds a function under the name that the function bears."""
    held = held_at(module, function.__qualname__)
    while held is not None:
        if held is function:
            return True
        held = (
            getattr(held, "__wrapped__", None)
            or getattr(held, "__func__", None)
            or getattr(held, "fget", None)
        )
    return False


def is_own_code(code: types.CodeType) -> bool:
    """Say whether a function is this package's."""
    return code.co_filename.startswith(HERE)


@cache
def library(name: str) -> str:
    """Return the library that a module belongs to, with its version, such as "torch 2.9.1"."""
    top = name.partition(".")[0]
    if top in sys.stdlib_module_names:
        return f"python {platform.python_version()}"
    file = _file_of(top) or ""
    sources = "" if not file or _is_installed(file) else f" {_sources(str(Path(file).parent))}"
    return f"{top} {_version(top)}{sources}"


def _version(top: str) -> str:
    names = [DISTRIBUTIONS.get(top, top)]
    while names:
        try:
            return metadata.version(names.pop())
        except metadata.PackageNotFoundError:
            continue
    version = getattr(sys.modules.get(top), "__version__", None)
    if version is None:  # slow, and rarely needed: it reads what every distribution holds
        version = next(
            (metadata.version(d) for d in metadata.packages_distributions().get(top, ())), "unknown"
        )
    return str(version)


def _sources(folder: str) -> str:
    """Hash the sources of a library that is installed from a folder: its version does not tell changes.

    Sources that were written while this process ran may not be those that it has imported: they are equal to no others.
    """
    digest, newest = hashlib.sha256(), 0.0
    for path in sorted(Path(folder).rglob("*")):
        # No folder of such a name, no link that leads nowhere.
        if path.suffix in (".py", ".so", ".pyd") and path.is_file():
            digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
            newest = max(newest, path.stat().st_mtime)
    return digest.hexdigest()[:16] if newest < _BEGUN else f"changed {uuid.uuid4().hex}"
