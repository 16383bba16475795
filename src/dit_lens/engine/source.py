"""The source of a trace's body: found afresh, and refused where it is not what runs.

nnsight compiles the body from the source file of the frame, and reads a file once per process. A file that has changed
since, or a notebook cell under a reused name, would run another body than the one that stands there.
"""

from __future__ import annotations

import ast
import copy
import dis
import linecache
import sys
from collections.abc import Iterator
from types import CodeType, FrameType
from typing import Any

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
    try:
        node = tracer.parse(Tracer.source(code.co_filename), frame.f_lineno)
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
    _check(node, frame, where)
    tracer.node, tracer.info = node, Tracer.Info(frame, compiled)


def _check(node: ast.With | ast.AsyncWith, frame: FrameType, where: str) -> None:
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
    if not _is_last(node, frame):
        raise PlanError(
            f"{where}: lens.trace(...) stands last in its `with`: what comes after it would be over before the body runs."
        )
    if missing := sorted(map(str, _words(_function(node)) - _words(frame.f_code))):
        raise PlanError(
            f"{where}: the source of the body is not what runs ({missing[0]} is new): the file has changed since it was "
            "imported. Import it anew, or restart Python."
        )


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


class _WithoutAsserts(ast.NodeTransformer):
    """Leaves assertions out: pytest writes them anew."""

    def visit_Assert(self, node: ast.Assert) -> ast.Pass:
        return ast.copy_location(ast.Pass(), node)


def _function(node: ast.With | ast.AsyncWith) -> CodeType | None:
    """Compile the body as a function's, as it was where it stands in one; None where that cannot be."""
    module = ast.parse("def body():\n    pass")
    function = module.body[0]
    assert isinstance(function, ast.FunctionDef)
    # After `pass`, so that a text that stands first is no docstring.
    function.body += [_WithoutAsserts().visit(copy.deepcopy(statement)) for statement in node.body]
    try:
        code = compile(ast.fix_missing_locations(module), "<body>", "exec")
    except SyntaxError:
        return None
    return next(constant for constant in code.co_consts if isinstance(constant, CodeType))


def _words(code: CodeType | None) -> set[Any]:
    """Return the names, numbers and texts of a code object and of those inside of it."""
    return set() if code is None else {word for part in _parts(code) for word in _own_words(part)}


def _own_words(code: CodeType) -> Iterator[Any]:
    for name in (*code.co_names, *code.co_varnames, *code.co_cellvars, *code.co_freevars):
        if not name.startswith("__"):
            yield name
    for constant in code.co_consts:
        if isinstance(constant, int | float | complex | bytes):
            yield type(constant).__name__, constant
        elif (
            isinstance(constant, str) and "<locals>" not in constant
        ):  # that is a class's place in a function
            yield "str", constant


def _parts(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _parts(constant)


__all__ = ["capture"]
