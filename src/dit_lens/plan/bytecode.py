"""What compiled code does, without where it stands; and the names that it reads.

Two functions whose text differs in comments, docstrings, layout or names of locals have one digest; so have two modules
and two classes.
"""

from __future__ import annotations

import dis
import hashlib
import types
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.machinery import SourceFileLoader
from itertools import pairwise
from pathlib import Path
from typing import Any

SKIPPED = frozenset({"NOP", "RESUME", "CACHE", "EXTENDED_ARG", "PRECALL", "COPY_FREE_VARS", "NOT_TAKEN"})
GLOBALS = frozenset({"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"})
CELLS = frozenset({"LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_DEREF"})
ATTRIBUTES = frozenset({"LOAD_ATTR", "LOAD_METHOD"})
LOCALS = frozenset({"LOAD_FAST", "LOAD_FAST_BORROW", "LOAD_FAST_CHECK", "LOAD_DEREF", "LOAD_NAME"})
STORES = frozenset({"STORE_FAST", "STORE_NAME", "STORE_DEREF", "STORE_GLOBAL"})
JUMPS = frozenset({*dis.hasjrel, *dis.hasjabs})
UNSEEN = frozenset({"__doc__", "__firstlineno__", "__static_attributes__"})
"""Names that the body of a class or module sets, and that change nothing that it does."""


@dataclass(frozen=True)
class Reading:
    """A name that code reads from outside.

    Attributes:
        kind: "global", "cell" (a variable of the function around it), "module" (imported in the code, and read there),
            "import" (imported, for what that does), or "unseen" (a method that reads what no name says).
        name: of the variable, the module or the method.
        attributes: that are read off it at once, one after the other.
        level: of a relative import.
    """

    kind: str
    name: str
    attributes: tuple[str, ...] = ()
    level: int = 0


@dataclass(frozen=True)
class Code:
    """Code as data.

    Attributes:
        digest: hash of what it does.
        readings: what it reads from outside, each once, in the order in which it stands in the code.
    """

    digest: str
    readings: tuple[Reading, ...]


@lru_cache(maxsize=1 << 14)
def analyse(code: types.CodeType) -> Code:
    """Return what code does and what it reads, nested functions included."""
    readings = dict.fromkeys(_readings(code, frozenset(code.co_freevars), {}))
    return Code(hashlib.sha256(_text(code).encode()).hexdigest(), tuple(readings))


def of_file(path: str | Path) -> types.CodeType:
    """Return the compiled code of a module's file, without running it.

    Raises:
        OSError: the file cannot be read.
        SyntaxError: it is no Python.
    """
    code = SourceFileLoader("__module__", str(path)).get_code("__module__")
    assert code is not None  # a file with source always has code
    return code


def _instructions(code: types.CodeType) -> list[dis.Instruction]:
    """Return the instructions of code that do something: those that set a docstring do not."""
    instructions = [i for i in dis.get_instructions(code) if i.opname not in SKIPPED]
    silent = {
        offset
        for before, store in pairwise(instructions)
        if store.opname == "STORE_NAME" and store.argval in UNSEEN and before.opcode in dis.hasconst
        for offset in (before.offset, store.offset)
    }
    return [i for i in instructions if i.offset not in silent]


def _text(code: types.CodeType) -> str:
    """Return a text that is equal for equal code: constants, names and instructions in place of their positions."""
    named = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags & 0xFFFF)
    instructions = _instructions(code)
    offsets = [i.offset for i in instructions]
    lines = [repr((counts, named)), *(f"{i.opname} {_argument(i, offsets)}" for i in instructions)]
    for entry in dis.Bytecode(code).exception_entries:  # type: ignore[attr-defined]
        places = [bisect_left(offsets, place) for place in (entry.start, entry.end, entry.target)]
        lines.append(f"except {places} {entry.depth} {entry.lasti}")
    return "\n".join(lines)


def _argument(instruction: dis.Instruction, offsets: list[int]) -> str:
    if (
        instruction.opcode in JUMPS
    ):  # the number of the instruction: how long the way there is depends on docstrings
        return str(bisect_left(offsets, instruction.argval))
    if instruction.opcode in dis.hasconst or instruction.opname == "KW_NAMES":
        return constant(instruction.argval)
    if instruction.opcode in dis.hasname:
        return f"{instruction.argval} {(instruction.arg or 0) & 1 if instruction.opname == 'LOAD_GLOBAL' else ''}"
    return str(instruction.arg)


def constant(value: Any) -> str:
    """Return the text of a constant in code, the same in every process."""
    if isinstance(value, types.CodeType):
        return f"code {hashlib.sha256(_text(value).encode()).hexdigest()}"
    if isinstance(value, tuple):
        return f"({', '.join(map(constant, value))})"
    if isinstance(value, frozenset):  # a set has another order in every process
        return f"{{{', '.join(sorted(map(constant, value)))}}}"
    return repr(value)


def _readings(
    code: types.CodeType, outer: frozenset[str], around: Mapping[str, Sequence[Reading]]
) -> Iterator[Reading]:
    """Go through what code reads.

    Args:
        code: a function's, or of one inside of it.
        outer: variables of the functions around the outermost code.
        around: names of modules that the functions around this code import.
    """
    instructions = _instructions(code)
    modules = {name: [*bound] for name, bound in around.items() if name in code.co_freevars}
    for n, instruction in enumerate(instructions):
        if instruction.opname == "IMPORT_NAME":  # also below a function that reads it
            yield from _imported(instructions, n, modules)
    read = {i.argval for i in instructions if i.opname in LOCALS} | set(code.co_cellvars)
    for name, bound in modules.items():
        if name not in read and name not in around:
            yield from (Reading("import", module.name, (), module.level) for module in bound)
    for n, instruction in enumerate(instructions):
        name, opname = instruction.argval, instruction.opname
        if _is_unseen(instructions, n):
            yield Reading("unseen", name)
        if opname in LOCALS and name in modules:
            chain = _chain(instructions, n + 1)
            yield from (Reading("module", module.name, chain, module.level) for module in modules[name])
        elif opname in GLOBALS:
            yield Reading("global", name, _chain(instructions, n + 1))
        elif opname in CELLS and name in outer:
            yield Reading("cell", name, _chain(instructions, n + 1))
        elif isinstance(name, types.CodeType):
            yield from _readings(name, outer, modules)


FRAMES = frozenset({"currentframe", "_getframe", "f_globals", "f_locals", "f_back"})
"""Attributes by which the variables around a call are read."""


def _is_unseen(instructions: list[dis.Instruction], n: int) -> bool:
    """Say whether an instruction begins a call that reads what no name says: of subclasses, or of the variables around it."""
    name, opname = instructions[n].argval, instructions[n].opname
    after = next(
        (i for i in instructions[n + 1 :] if i.opname not in ("PRECALL", "PUSH_NULL", "CACHE")), None
    )
    is_bare_call = after is not None and after.opname == "CALL" and after.arg == 0
    if opname in GLOBALS:
        return name in ("vars", "dir") and is_bare_call
    if opname not in ATTRIBUTES:
        return False
    if name == "eval":  # a torch module's takes nothing; pandas' reads variables
        return not is_bare_call
    if name == "query":  # pandas reads what stands in the text as "@name"
        text = after.argval if after is not None and after.opcode in dis.hasconst else None
        return not isinstance(text, str) or "@" in text
    return name == "__subclasses__" or name in FRAMES


def _chain(instructions: list[dis.Instruction], start: int) -> tuple[str, ...]:
    """Return the attributes that are read one after the other from a place on."""
    names = []
    for instruction in instructions[start:]:
        if instruction.opname not in ATTRIBUTES:
            break
        names.append(instruction.argval)
    return tuple(names)


def _imported(
    instructions: list[dis.Instruction], n: int, modules: dict[str, list[Reading]]
) -> Iterator[Reading]:
    """Go through what an import in the code reads; a whole module is put beside its local name in `modules`."""
    level, names = (i.argval for i in instructions[n - 2 : n])
    module, following = instructions[n].argval, instructions[n + 1 :]
    if names is None:
        # `import a.b` binds `a`; `import a.b as c` reads `b` off it first.
        bound = next((i for i in following if i.opname in STORES), None)
        if bound is not None:
            renamed = following[0] is not bound
            name = module if renamed else module.partition(".")[0]
            modules.setdefault(bound.argval, []).append(Reading("module", name, (), level))
        return
    for instruction in following:
        if instruction.opname == "IMPORT_FROM":
            yield Reading("module", module, (instruction.argval,), level)
        elif instruction.opname not in STORES:
            break


@lru_cache(maxsize=1 << 10)
def imports(code: types.CodeType) -> tuple[Reading, ...]:
    """Return all that code imports, whether it reads it or not; nested functions included."""
    readings: dict[Reading, None] = {}
    instructions = _instructions(code)
    for n, instruction in enumerate(instructions):
        if instruction.opname == "IMPORT_NAME":
            level, names = (i.argval for i in instructions[n - 2 : n])
            parts: list[tuple[str, ...]] = [(name,) for name in names or () if name != "*"] or [()]
            readings |= dict.fromkeys(Reading("module", instruction.argval, part, level) for part in parts)
        elif isinstance(instruction.argval, types.CodeType):
            readings |= dict.fromkeys(imports(instruction.argval))
    return tuple(readings)


@lru_cache(maxsize=1 << 14)
def names(code: types.CodeType) -> frozenset[str]:
    """Return all names and texts in code, nested functions included: what it calls has one of these. Formatting says `format`."""
    instructions = _instructions(code)
    words = {*code.co_names, *(text for text in code.co_consts if isinstance(text, str))}
    if any(i.opname.startswith("FORMAT_") for i in instructions) or any("%" in word for word in words):
        words.add("format")
    inner = [names(constant) for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return frozenset(words).union(*inner)


@lru_cache(maxsize=1 << 14)
def stored_and_loaded(code: types.CodeType) -> tuple[frozenset[str], frozenset[str]]:
    """Return the attributes that a method sets on its first argument, and all attributes that it reads."""
    stored, loaded = set(), set()
    itself = code.co_varnames[:1]
    before = None
    for instruction in _instructions(code):
        if instruction.opname == "STORE_ATTR" and before is not None and _is_self(before, itself):
            stored.add(instruction.argval)
        elif instruction.opname in ATTRIBUTES:
            loaded.add(instruction.argval)
        elif isinstance(instruction.argval, types.CodeType):
            loaded |= stored_and_loaded(instruction.argval)[1]
        elif isinstance(instruction.argval, str) and instruction.opcode in dis.hasconst:
            loaded.add(instruction.argval)  # getattr(self, "name")
        before = instruction
    return frozenset(stored), frozenset(loaded)


def _is_self(instruction: dis.Instruction, itself: tuple[str, ...]) -> bool:
    """Say whether what stands before a STORE_ATTR puts `self` on the stack; `self.n += 1` swaps it there."""
    return instruction.opname == "SWAP" or instruction.argval in itself
