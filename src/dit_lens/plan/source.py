"""Code that is given as source, such as the body of a trace: what it does, and the values of the names that it reads.

A name counts where it may be read before the code itself has set it: a variable that a body sets first is not an input,
whatever an earlier run of the same cell left in it.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from dit_lens.plan import callables
from dit_lens.plan.content import Walk

_SCOPES = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef
_COMPREHENSIONS = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp


def describe_source(
    text: str,
    scope: Mapping[str, Any],
    variables: Mapping[str, Any] | None = None,
    unnamed: list[str] | None = None,
    apart: Collection[str] = (),
) -> dict[str, Any]:
    """Return plain data that names code given as source.

    Args:
        text: the statements.
        scope: the globals where it runs.
        variables: the locals where it runs; they win over globals of the same name.
        unnamed: gets a sentence for each value that it reads and that cannot be named.
        apart: names that are not inputs, such as that of the trace itself.
    """
    tree = ast.parse(text)
    walk = Walk([] if unnamed is None else unnamed, "the body")
    walk.exact = True
    around = {**scope, **(variables or {})}
    readings = dict.fromkeys(r for r in _free(tree.body, set()) if r[0] not in apart)
    data = [callables.named(walk, name, attributes, around) for name, attributes in sorted(readings)]
    return {
        "source": hashlib.sha256(ast.dump(tree).encode()).hexdigest(),
        "reads": walk.node(tree, lambda *_: data),
    }


Reading = tuple[str, tuple[str, ...]]
"""A name, and the attributes that are read off it at once."""


def _free(statements: list[ast.stmt], known: set[str]) -> Iterator[Reading]:
    """Go through what statements read from outside; `known` gets what they have set for certain."""
    for statement in statements:
        yield from _statement(statement, known)


def _statement(node: ast.stmt, known: set[str]) -> Iterator[Reading]:
    match node:
        case ast.If(test=test, body=body, orelse=other):
            yield from _expression(test, known)
            yield from _either([body, other], known)
        case ast.For(target=target, iter=values) | ast.AsyncFor(target=target, iter=values):
            yield from _expression(values, known)
            yield from _inside(node, known | _targets(target), known)
        case ast.While(test=test):
            yield from _expression(test, known)
            yield from _inside(node, set(known), known)
        case ast.With(items=items, body=body) | ast.AsyncWith(items=items, body=body):
            for item in items:
                yield from _expression(item.context_expr, known)
                if item.optional_vars is not None:
                    known |= _targets(item.optional_vars)
            yield from _free(body, known)
        case ast.Try() | ast.TryStar():
            for body in (node.body, *(handler.body for handler in node.handlers), node.orelse):
                bound = {handler.name for handler in node.handlers if handler.name}
                yield from _free(body, known | bound)
            for handler in node.handlers:
                yield from () if handler.type is None else _expression(handler.type, known)
            yield from _free(node.finalbody, known)
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            known.add(node.name)  # it may call itself
            yield from _scope(node, known)
        case ast.Import(names=names) | ast.ImportFrom(names=names):
            known |= {(alias.asname or alias.name).partition(".")[0] for alias in names}
        case ast.Assign(targets=targets, value=value):
            yield from _expression(value, known)
            for target in targets:
                yield from _expression(target, known)
                known |= _targets(target)
        case ast.AugAssign(target=target, value=value):
            yield from _expression(value, known)
            if isinstance(target, ast.Name) and target.id not in known:
                yield target.id, ()
            yield from _expression(target, known)
        case _:
            yield from _expression(node, known)


def _inside(node: Any, inner: set[str], known: set[str]) -> Iterator[Reading]:
    """Go through the body of a loop, which may not run at all."""
    yield from _free(node.body, inner)
    yield from _free(node.orelse, set(known))


def _either(bodies: list[list[ast.stmt]], known: set[str]) -> Iterator[Reading]:
    """Go through branches of which one runs; what all of them set is set."""
    after = []
    for body in bodies:
        inner = set(known)
        yield from _free(body, inner)
        after.append(inner)
    known |= set.intersection(*after)


def _expression(node: ast.AST, known: set[str]) -> Iterator[Reading]:
    """Go through what an expression reads from outside."""
    if isinstance(node, ast.Name | ast.Attribute):
        name, attributes = _chain(node)
        if name is not None:
            if isinstance(name.ctx, ast.Load) and name.id not in known:
                # What sets an attribute of an object may do with it what it likes.
                yield name.id, attributes if isinstance(node.ctx, ast.Load) else ()
            return
    if isinstance(node, _SCOPES | _COMPREHENSIONS):
        yield from _scope(node, known)
        return
    if isinstance(node, ast.NamedExpr):
        yield from _expression(node.value, known)
        known |= _targets(node.target)
        return
    for child in ast.iter_child_nodes(node):
        yield from _expression(child, known)


def _chain(node: ast.AST) -> tuple[ast.Name | None, tuple[str, ...]]:
    attributes: list[str] = []
    while isinstance(node, ast.Attribute):
        attributes.insert(0, node.attr)
        node = node.value
    return (node if isinstance(node, ast.Name) else None), tuple(attributes)


def _scope(node: Any, known: set[str]) -> Iterator[Reading]:
    """Go through what a function, a class or a comprehension reads from outside; what it sets is its own."""
    local_names = set(known)
    for inner in ast.walk(node):
        if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
            local_names.add(inner.id)
        elif isinstance(inner, ast.arg):
            local_names.add(inner.arg)
        elif isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            local_names.add(inner.name)
    for child in ast.iter_child_nodes(node):
        yield from (
            _statement(child, set(local_names))
            if isinstance(child, ast.stmt)
            else _expression(child, set(local_names))
        )


def _targets(node: ast.AST) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}


__all__ = ["describe_source"]
