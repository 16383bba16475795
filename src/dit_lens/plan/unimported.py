"""Modules that are not imported yet, by the code of their files; nothing is run to read them.

What a file of this package imports is not followed: the package's version says the rest.
"""

from __future__ import annotations

import functools
import os
import sys
import types
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit_lens.plan import bytecode, origin

if TYPE_CHECKING:
    from dit_lens.plan.content import Walk

Follow = Callable[[bytecode.Reading, str], Any]
"""(what code reads of a module, the package that the code stands in) to data."""


def describe(walk: Walk, name: str, names: tuple[str, ...], follow: Follow) -> Any:
    """Return a module as data: its file, those of the packages around it, and all that these files import.

    Args:
        walk: the way through values.
        name: of the module.
        names: that are read of it; the first may be a module inside it.
        follow: gives the data of what a file imports.
    """
    try:
        specs = list(_specs(name))
        inner = list(_specs(f"{name}.{names[0]}")) if names else []
    except KeyError:  # Python looks for such a folder's parent among what is imported
        return walk.unnamed(name, f"the module {name}, in a folder without __init__.py and not imported yet,")
    if not specs:
        return {"@missing": name}
    files = [_file(walk, spec, follow) for spec in max(specs, inner, key=len)]
    return {"@module": name, "read": list(names), "files": files}


def _specs(name: str) -> Iterator[ModuleSpec]:
    """Go through the packages around a module, and the module; nothing where it is not there."""
    specs: list[ModuleSpec] = []
    parts = name.split(".")
    for n in range(len(parts)):
        path = specs[-1].submodule_search_locations if specs else None
        if specs and path is None:
            return
        finders = (finder for finder in sys.meta_path if hasattr(finder, "find_spec"))
        spec = next((s for f in finders if (s := f.find_spec(".".join(parts[: n + 1]), path))), None)
        if spec is None:
            return
        specs.append(spec)
        if spec.origin and origin.is_library_file(spec.origin):
            break  # its version says the rest
    yield from specs


def _file(walk: Walk, spec: ModuleSpec, follow: Follow) -> Any:
    if not spec.origin or not os.path.isfile(spec.origin):
        return spec.name  # built in, frozen, or a folder alone
    if origin.is_library_file(spec.origin):
        return origin.library(spec.name)
    if not spec.origin.endswith(".py"):
        return walk.visit(Path(spec.origin).read_bytes())
    try:
        code = _compiled(spec.origin, os.stat(spec.origin).st_mtime_ns)
    except SyntaxError:  # the code that imports it fails as well
        return walk.visit(Path(spec.origin).read_bytes())
    imports = () if spec.origin.startswith(origin.HERE) else bytecode.imports(code)
    package = spec.parent or ""
    walk.names |= bytecode.names(code)
    return walk.node(code, lambda *_: [bytecode.analyse(code).digest, [follow(r, package) for r in imports]])


@functools.lru_cache(maxsize=1 << 10)
def _compiled(path: str, changed: int) -> types.CodeType:
    """Compile a file as it was at a time. One object stands for it, which a walk recognises."""
    return bytecode.of_file(path)
