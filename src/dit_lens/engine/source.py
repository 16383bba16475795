"""The source of a trace's body: found afresh, and refused where it is not what runs.

nnsight compiles the body from the source file of the frame, and reads a file once per process. A file that has changed
since, or a notebook cell under a reused name, would run another body than the one that stands there.
"""

from __future__ import annotations
import __future__

import ast
import dis
import linecache
import sys
from collections.abc import Iterator, Mapping
from functools import reduce
from operator import or_
from types import CodeType, FrameType
from typing import Any

from greenlet import getcurrent
from nnsight.tracing.globals import BLOCKS, SOURCES
from nnsight.tracing.tracer import TRY_STATEMENTS, Tracer, skippable

from dit_lens.errors import PlanError


def capture(tracer: Any) -> None:
    """Find the body of the `with` block that the caller of the caller enters, and have it compiled.

    Args:
        tracer: nnsight's tracer, which takes the body.

    Raises:
        PlanError: The body cannot be run beside the model, as it is written.
    """
    frame = sys._getframe(2)
    code = frame.f_code
    SOURCES.pop(code.co_filename, None)
    BLOCKS.pop((code.co_filename, frame.f_lineno, code.co_name, code.co_firstlineno), None)
    linecache.checkcache(code.co_filename)
    where = f"{code.co_filename}:{frame.f_lineno}"
    text = Tracer.source(code.co_filename)
    try:
        node = tracer.parse(text, frame.f_lineno)
        compiled = None if node is None else tracer.compile(tracer.build(node), frame)
    except SyntaxError as error:
        raise PlanError(
            f"{where}: the body of a trace cannot be compiled on its own ({error.msg}): leave return, yield, await, nonlocal, "
            "and break or continue of a loop around it, out of the body."
        ) from None
    if node is None or compiled is None:
        raise PlanError(
            f"{where}: no source of a `with` block is found there. Write `with lens.trace(...) as tr:` in a file or a "
            "notebook cell, and restart Python where the file has changed since it was imported."
        )
    _check(node, text, frame, where)
    tracer.node, tracer.info = node, Tracer.Info(frame, compiled)


def _check(node: ast.With | ast.AsyncWith, text: str, frame: FrameType, where: str) -> None:
    """Refuse a body that would run twice, elsewhere, or not as it stands in the source."""
    if not skippable(node):
        return
    first = node.body[0]
    if first.lineno == node.lineno:
        raise PlanError(
            f"{where}: the body of a trace starts on a line of its own, below `with lens.trace(...) as tr:`."
        )
    if isinstance(first, TRY_STATEMENTS):
        raise PlanError(
            f"{where}: the body of a trace cannot start with `try:`; put another statement before it."
        )
    if any(isinstance(part, ast.Global) for part in ast.walk(node)):
        raise PlanError(
            f"{where}: the body of a trace has variables of its own, so `global` in it would set none: fill a list or a dict."
        )
    if not _is_last(node, frame):
        raise PlanError(
            f"{where}: lens.trace(...) stands last in its `with`: what comes after it would be over before the body runs."
        )
    if not _stands_for_what_runs(node, text, frame):
        if _is_in_body(frame.f_code):
            raise PlanError(
                f"{where}: this trace stands in the body of another one, which has no source of its own: put it into a function, "
                "and call that in the body."
            )
        raise PlanError(
            f"{where}: the source of the body is not what runs: the file has changed since it was imported, or an import hook "
            "has written it anew. Import it anew, or restart Python."
        )


def _is_in_body(code: CodeType) -> bool:
    """Say whether code stands in the body of a trace that runs."""
    mediator = getattr(getcurrent(), "mediator", None)
    return mediator is not None and any(part is code for part in _parts(mediator().code))


def _is_last(node: ast.With | ast.AsyncWith, frame: FrameType) -> bool:
    """Say whether no other item of the `with` is entered between the one that is being entered and the body."""
    if len(node.items) == 1:
        return True
    for instruction in dis.get_instructions(frame.f_code):
        line = instruction.positions.lineno if instruction.positions else None
        if instruction.offset <= frame.f_lasti or line is None:
            continue
        if line >= node.body[0].lineno:
            return True
        if instruction.opname == "BEFORE_WITH":
            return False
    return True


def _stands_for_what_runs(node: ast.With | ast.AsyncWith, text: str, frame: FrameType) -> bool:
    """Say whether the body, compiled from the source as it is now, is what the frame runs: each instruction, line by line."""
    lines = range(node.body[0].lineno, (node.end_lineno or node.lineno) + 1)
    asserts = {
        line: part.lineno
        for part in ast.walk(node)
        if isinstance(part, ast.Assert)
        for line in range(part.lineno, (part.end_lineno or part.lineno) + 1)
    }
    flags = frame.f_code.co_flags & _FUTURE | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    try:
        module = compile(text, frame.f_code.co_filename, "exec", flags, dont_inherit=True)
    except (SyntaxError, ValueError):  # the file is cut, or something else by now
        return False
    running = _instructions(frame.f_code, lines, asserts)
    return any(running and running == _instructions(part, lines, asserts) for part in _parts(module))


_FUTURE = reduce(or_, (getattr(__future__, name).compiler_flag for name in __future__.all_feature_names))
"""The flags of `from __future__ import ...`, under which a file is compiled."""

_ASSERT = "assert"
"""Stands for the instructions of an assertion, which pytest writes anew."""


def _instructions(code: CodeType, lines: range, asserts: Mapping[int, int]) -> list[Any]:
    """Return the instructions of some lines, as (line, operation, argument); a jump's argument is the line that it leads to."""
    instructions = list(dis.get_instructions(code))
    places: dict[int, int | None] = {}
    for instruction in instructions:
        line = instruction.positions.lineno if instruction.positions else None
        places[instruction.offset] = line if line is None else asserts.get(line, line)
    listing: list[Any] = []
    for instruction in instructions:
        line = places[instruction.offset]
        if line is None or line not in lines or instruction.opname == "EXTENDED_ARG":
            continue
        if line in asserts:
            entry: Any = (line, _ASSERT)
        elif instruction.opcode in _JUMPS:
            entry = (line, instruction.opname, places.get(instruction.argval))
        else:
            entry = (line, instruction.opname, _argument(instruction.argval, lines, asserts))
        if entry != (line, _ASSERT) or listing[-1:] != [entry]:
            listing.append(entry)
    return listing


_JUMPS = {*dis.hasjrel, *dis.hasjabs}


def _argument(value: Any, lines: range, asserts: Mapping[int, int]) -> Any:
    """Return what an instruction works on, so that only equal things are equal: 1 is not 1.0."""
    if isinstance(value, CodeType):
        counts = value.co_argcount, value.co_posonlyargcount, value.co_kwonlyargcount, value.co_flags
        return counts, _instructions(value, lines, asserts)
    return sorted(map(repr, value)) if isinstance(value, frozenset) else repr(value)


def _parts(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _parts(constant)


__all__ = ["capture"]
