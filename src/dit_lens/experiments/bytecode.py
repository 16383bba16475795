"""Code objects as plain text: what they do, and what they name. Comments, docstrings and line numbers leave no trace."""

from __future__ import annotations

import dis
import importlib
import importlib.util
import itertools
import types
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from typing import Any

SILENT = ("CACHE", "EXTENDED_ARG", "NOP", "RESUME")
"""Instructions that do nothing, or that belong to the next one."""

GLOBALS = ("LOAD_GLOBAL", "LOAD_NAME")
LOCALS = ("LOAD_FAST", "LOAD_FAST_CHECK", "LOAD_FAST_BORROW", "LOAD_DEREF", "LOAD_CLASSDEREF")
STORES = ("STORE_FAST", "STORE_NAME", "STORE_GLOBAL", "STORE_DEREF")
ATTRIBUTES = ("LOAD_ATTR", "LOAD_METHOD")
UNSEEN = ("__doc__", "__firstlineno__", "__static_attributes__")
"""Names that the body of a class or module sets, and that change nothing that it does."""


def plain(code: types.CodeType) -> list[Any]:
    """Return what a code object does, as nested lists: equal for two sources that differ in comments and docstrings alone."""
    instructions = _instructions(code)
    offsets = [i.offset for i in instructions]
    lines = [_instruction(i, offsets) for i in instructions]
    arguments = list(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])
    counts = [code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags & 0xFF]
    handlers = [
        [bisect_left(offsets, e.start), bisect_left(offsets, e.end), bisect_left(offsets, e.target), e.depth]
        for e in getattr(dis.Bytecode(code), "exception_entries", ())
    ]
    return [arguments, counts, lines, handlers]


def _instructions(code: types.CodeType) -> list[dis.Instruction]:
    shown = [i for i in dis.get_instructions(code) if i.opname not in SILENT]
    pairs = zip(shown, [*shown[1:], None], strict=True)
    dropped = {
        offset
        for first, second in pairs
        if second is not None and second.opname == "STORE_NAME" and second.argval in UNSEEN
        for offset in (first.offset, second.offset)
    }
    return [i for i in shown if i.offset not in dropped]


def _instruction(instruction: dis.Instruction, offsets: list[int]) -> list[Any]:
    value = instruction.argval
    if instruction.opcode in dis.hasjrel or instruction.opcode in dis.hasjabs:
        return [instruction.opname, bisect_left(offsets, value)]
    if instruction.opcode in dis.hasconst:
        return [instruction.opname, _constant(value)]
    return [instruction.opname, repr(value)]


def _constant(value: Any) -> Any:
    if isinstance(value, types.CodeType):
        return plain(value)
    if isinstance(value, tuple):
        return [_constant(v) for v in value]
    # A set has another order in every process.
    return sorted(map(repr, value)) if isinstance(value, frozenset) else repr(value)


def references(
    code: types.CodeType, space: Mapping[str, Any], is_ours: Callable[[str], bool]
) -> Iterator[Any]:
    """Yield what code refers to: globals, and what they lead to through attributes of modules (`analysis.mean`).

    What the code imports when it runs is followed too, where `is_ours` says so of the module's name.

    Args:
        code: of a function; the functions and classes that it defines are looked through as well.
        space: the globals that it runs in.
        is_ours: (name of a module) to whether it may be imported to be looked at.
    """
    yield from _references(code, space, {}, is_ours)


def _references(
    code: types.CodeType, space: Mapping[str, Any], around: Mapping[str, Any], is_ours: Callable[[str], bool]
) -> Iterator[Any]:
    shown = [i for i in dis.get_instructions(code) if i.opname not in SILENT]
    imported = dict(around)
    imported.update(_imports(shown, space, is_ours))
    for n, instruction in enumerate(shown):
        name = instruction.argval
        if instruction.opname in GLOBALS and name in space:
            yield _follow(space[name], shown[n + 1 :], is_ours)
        elif instruction.opname in (*LOCALS, *GLOBALS) and isinstance(name, str) and name in imported:
            yield _follow(imported[name], shown[n + 1 :], is_ours)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            inner = {name: imported[name] for name in constant.co_freevars if name in imported}
            yield from _references(constant, space, inner, is_ours)


def _follow(value: Any, after: list[dis.Instruction], is_ours: Callable[[str], bool]) -> Any:
    """Go on through attributes of modules; of another library's module, return it with the names that follow.

    What an object holds can no longer be told by its name.
    """
    for n, instruction in enumerate(after):
        if instruction.opname not in ATTRIBUTES or not isinstance(value, types.ModuleType):
            break
        if not is_ours(value.__name__):
            names = [i.argval for i in itertools.takewhile(lambda i: i.opname in ATTRIBUTES, after[n:])]
            return [value, names]
        try:
            value = getattr(value, instruction.argval)
        except AttributeError:
            break
    return value


def _imports(
    shown: list[dis.Instruction], space: Mapping[str, Any], is_ours: Callable[[str], bool]
) -> Iterator[tuple[str, Any]]:
    """Yield what a function imports when it runs, under the names that it gives."""
    for n, instruction in enumerate(shown):
        if instruction.opname != "IMPORT_NAME":
            continue
        level, wanted = shown[n - 2].argval, shown[n - 1].argval
        name = importlib.util.resolve_name("." * level + instruction.argval, space.get("__package__") or "")
        if not is_ours(name):
            continue
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue  # the code that imports it fails as well, or does without
        if not wanted:
            stored = next((i.argval for i in shown[n + 1 :] if i.opname in STORES), "")
            whole = (
                shown[n + 1].opname == "IMPORT_FROM"
            )  # `import a.b as c` gives the last module, `import a.b` the first
            yield stored, module if whole else importlib.import_module(name.partition(".")[0])
            continue
        for first, second in zip(shown[n + 1 :], shown[n + 2 :], strict=False):
            if first.opname == "IMPORT_FROM" and second.opname in STORES:
                yield second.argval, _part(module, first.argval)
            elif first.opname not in STORES:
                break


def _part(module: types.ModuleType, name: str) -> Any:
    try:
        return getattr(module, name)
    except AttributeError:
        return importlib.import_module(f"{module.__name__}.{name}")
