"""Code that is given as source, such as the body of a trace: what it does, and the values of the names that it reads.

A name counts where it may be read before the code itself has set it: a variable that a body sets first is not an input,
whatever an earlier run of the same cell left in it.
"""

from __future__ import annotations

import ast
import hashlib
import uuid
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from dit_lens.plan import bytecode, callables
from dit_lens.plan.content import Walk, unnamed_by
from dit_lens.plan.digests import digest

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
    around = {**scope, **(variables or {})}
    readings = sorted(dict.fromkeys(r for r in _free(tree.body, set()) if r[0] not in apart))

    def look(walk: Walk) -> list[Any]:
        walk.exact = walk.in_order = True
        with walk.at("the body"):
            return [_read(walk, name, attributes, around) for name, attributes in readings]

    sentences: list[str] = []
    data = look(Walk(sentences, repeatable=True))
    called = bytecode.names(compile(tree, "<body>", "exec"))
    if sentences and (sentences := unnamed_by(look, sentences, called)):
        data.append(uuid.uuid4().hex)
    if unnamed is not None:
        unnamed += sentences
    return {"source": hashlib.sha256(ast.dump(tree).encode()).hexdigest(), "reads": digest(data)}


def _read(walk: Walk, name: str, attributes: tuple[str, ...], around: Mapping[str, Any]) -> Any:
    if name != _IMPORT:
        return callables.named(walk, name, attributes, around)
    module, *rest = attributes
    plain = module.lstrip(".")
    reading = bytecode.Reading("module", plain, tuple(rest), len(module) - len(plain))
    return callables.imported(walk, reading, str(around.get("__package__") or ""))


Reading = tuple[str, tuple[str, ...]]
"""A name, and the attributes that are read off it at once; or `_IMPORT`, a module, and what is read of that."""

_IMPORT = "import"  # a word of the language, so no name


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
            inner = known
            for item in items:
                yield from _expression(item.context_expr, inner)
                if item.optional_vars is not None:
                    yield from _expression(item.optional_vars, inner)
                    inner |= _targets(item.optional_vars)
                if _may_swallow(item.context_expr):  # what comes after may not come to its end
                    inner = set(inner)
            yield from _free(body, inner)
        case ast.Assert():
            yield from _expression(node, set(known))
        case ast.Try() | ast.TryStar():
            for body in (node.body, node.orelse):
                yield from _free(body, set(known))
            for handler in node.handlers:
                yield from () if handler.type is None else _expression(handler.type, known)
                yield from _free(handler.body, known | ({handler.name} if handler.name else set()))
            yield from _free(node.finalbody, known)
        case ast.Match(subject=subject, cases=cases):
            yield from _expression(subject, known)
            for case in cases:
                inner = known | _bound([case.pattern])
                yield from _expression(case.pattern, known)
                yield from () if case.guard is None else _expression(case.guard, inner)
                yield from _free(case.body, inner)
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            yield from _scope(node, known)
            known.add(node.name)
        case ast.Import() | ast.ImportFrom():
            yield from _modules(node)
            known |= _imported_names(node)
        case ast.Assign(targets=targets, value=value):
            yield from _expression(value, known)
            for target in targets:
                yield from _expression(target, known)
                known |= _targets(target)
        case ast.AnnAssign(target=target, annotation=annotation, value=value):
            yield from _expression(annotation, known)
            if value is not None:
                yield from _expression(value, known)
                yield from _expression(target, known)
                known |= _targets(target)
        case ast.AugAssign(target=target, value=value):
            yield from _expression(value, known)
            if isinstance(target, ast.Name) and target.id not in known:
                yield target.id, ()
            yield from _expression(target, known)
        case _:
            yield from _expression(node, known)


_PASSES_ERRORS = ("open", "nullcontext", "contextlib.nullcontext", "warnings.catch_warnings", "np.errstate")
"""Contexts that let every error of their body through; so do all of torch's."""


def _may_swallow(context: ast.expr) -> bool:
    """Say whether a body of this context may end early without an error after it."""
    name = ast.unparse(context.func if isinstance(context, ast.Call) else context)
    return name not in _PASSES_ERRORS and not name.startswith("torch.")


def _modules(node: ast.Import | ast.ImportFrom) -> Iterator[Reading]:
    """Go through the modules that a statement imports, and what it reads of them."""
    if isinstance(node, ast.Import):
        for alias in node.names:  # `import a.b` binds `a`, of which anything may be read
            yield _IMPORT, (alias.name if alias.asname else alias.name.partition(".")[0],)
            yield _IMPORT, (alias.name,)
    else:
        for alias in node.names:
            module = "." * node.level + (node.module or "")
            yield _IMPORT, (module,) if alias.name == "*" else (module, alias.name)


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
    if parts := _parts_in_turn(node):
        certain, rest = parts
        for part in certain:
            yield from _expression(part, known)
        for part in rest:
            yield from _expression(part, set(known))
        return
    for child in ast.iter_child_nodes(node):
        yield from _expression(child, known)


def _parts_in_turn(node: ast.AST) -> tuple[list[ast.expr], list[ast.expr]] | None:
    """Return the parts of an expression that run for certain, and those that may not; None where all of them run."""
    match node:
        case ast.BoolOp(values=[first, *rest]):
            return [first], rest
        case ast.IfExp(test=test, body=body, orelse=other):
            return [test], [body, other]
        case ast.Compare(left=left, comparators=[first, *rest]):
            return [left, first], rest
    return None


def _chain(node: ast.AST) -> tuple[ast.Name | None, tuple[str, ...]]:
    attributes: list[str] = []
    while isinstance(node, ast.Attribute):
        attributes.insert(0, node.attr)
        node = node.value
    return (node if isinstance(node, ast.Name) else None), tuple(attributes)


def _scope(node: Any, known: set[str]) -> Iterator[Reading]:
    """Go through what a function, a class or a comprehension reads from outside."""
    if isinstance(node, _COMPREHENSIONS):
        yield from _comprehension(node, known)
    elif isinstance(node, ast.ClassDef):
        for outside in (*node.decorator_list, *node.bases, *(keyword.value for keyword in node.keywords)):
            yield from _expression(outside, known)
        members = set(known)  # which the methods do not see
        for statement in node.body:
            if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                yield from _statement(statement, known | {node.name})
                members.add(statement.name)
            else:
                yield from _statement(statement, members)
    else:
        arguments = node.args
        for outside in (*getattr(node, "decorator_list", ()), *arguments.defaults, *arguments.kw_defaults):
            yield from () if outside is None else _expression(outside, known)
        body = node.body if isinstance(node.body, list) else [node.body]
        named = (
            *arguments.posonlyargs,
            *arguments.args,
            *arguments.kwonlyargs,
            arguments.vararg,
            arguments.kwarg,
        )
        inner = known | {argument.arg for argument in named if argument is not None}
        inner |= _bound(body) | ({node.name} if hasattr(node, "name") else set())  # it may call itself
        for child in body:
            yield from (
                _statement(child, inner) if isinstance(child, ast.stmt) else _expression(child, inner)
            )


def _comprehension(node: Any, known: set[str]) -> Iterator[Reading]:
    """Go through what a comprehension reads: its first iterable stands outside of it."""
    inner = set(known)
    for n, generator in enumerate(node.generators):
        yield from _expression(generator.iter, known if n == 0 else inner)
        inner |= _targets(generator.target)
        for condition in generator.ifs:
            yield from _expression(condition, inner)
    for result in (node.key, node.value) if isinstance(node, ast.DictComp) else (node.elt,):
        yield from _expression(result, inner)


def _bound(statements: list[Any]) -> set[str]:
    """Return the names that are local to a function because its own statements set them."""
    names: set[str] = set()
    outside: set[str] = set()
    left = list(statements)
    while left:
        node = left.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Global | ast.Nonlocal):
            outside |= set(node.names)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= _imported_names(node)
        elif isinstance(node, ast.ExceptHandler) and node.name:
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.MatchAs | ast.MatchStar) and node.name:
            names.add(node.name)
        if isinstance(node, _COMPREHENSIONS):
            left += [inner for inner in ast.walk(node) if isinstance(inner, ast.NamedExpr)]
        elif not isinstance(node, _SCOPES):
            left += ast.iter_child_nodes(node)
    return names - outside


def _imported_names(node: ast.Import | ast.ImportFrom) -> set[str]:
    return {(alias.asname or alias.name).partition(".")[0] for alias in node.names}


def _targets(node: ast.AST) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}


__all__ = ["describe_source"]
