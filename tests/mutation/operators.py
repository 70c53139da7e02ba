"""Small changes of a piece of code, each of which a test ought to notice.

A change replaces one expression or statement by another one. What is only said of a finding (its words), annotations, and the
types in casts are left alone: the tests ask whether a clause is broken, not in which words.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from copy import deepcopy

Path = tuple[tuple[str, int | None], ...]
"""The way from a function to a part of it: field by field, with the index where the field is a list."""

OPPOSITES: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
}
"""What a comparison turns into; one of order into its neighbour, and into its contrary."""

OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
}

SIBLINGS = {"start": "end", "src": "dst", "old": "new", "refs": "locks", "any": "all", "min": "max"}
SIBLINGS |= {other: one for one, other in SIBLINGS.items()}
"""Names, and names of attributes, that are easily taken for each other."""

KEPT = "KEPT"
MEMORY = "memory"
"""The registry's word for a judgement that a clause holds, and a monitor's first parameter."""


def changes(function: ast.FunctionDef) -> Iterator[tuple[Path, ast.AST, ast.AST]]:
    """Every change of a function's body: the way there, what stands there, and what is to stand there instead."""
    parameters = {argument.arg for argument in function.args.args}
    for index, statement in enumerate(function.body):
        if not (index == 0 and isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)):
            yield from _below(statement, (("body", index),), parameters)


def apply(function: ast.FunctionDef, path: Path, instead: ast.AST) -> ast.FunctionDef:
    """A copy of the function with the change made."""
    changed = deepcopy(function)
    node: ast.AST = changed
    for field, index in path[:-1]:
        node = _child(node, field, index)
    field, index = path[-1]
    if index is None:
        setattr(node, field, instead)
    else:
        getattr(node, field)[index] = instead
    return ast.fix_missing_locations(changed)


def _child(node: ast.AST, field: str, index: int | None) -> ast.AST:
    value = getattr(node, field)
    return value if index is None else value[index]


def _below(node: ast.AST, path: Path, parameters: set[str]) -> Iterator[tuple[Path, ast.AST, ast.AST]]:
    for instead in _instead(node, parameters):
        yield path, node, instead
    for field, value in ast.iter_fields(node):
        if field in _left_alone(node):
            continue
        children = enumerate(value) if isinstance(value, list) else [(None, value)]
        for index, child in children:
            if isinstance(child, ast.AST):
                yield from _below(child, (*path, (field, index)), parameters)


def _left_alone(node: ast.AST) -> tuple[str, ...]:
    """The fields of a node that hold words, types, or targets of an assignment."""
    match node:
        case ast.JoinedStr():
            return ("values",)
        case ast.AnnAssign():
            return ("annotation", "target")
        case ast.Assign() | ast.AugAssign():
            return ("targets", "target")
        case ast.arguments():
            return ("args",)
        case ast.Call(func=ast.Name(id="cast" | "isinstance")):
            return ("func", "args")
        case ast.Call(func=ast.Name(id="sorted")):
            return ("func", "keywords")
        case ast.IfExp() if _is_words(node.body) and _is_words(node.orelse):
            return ("test", "body", "orelse")
        case _:
            return ()


def _is_words(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _instead(node: ast.AST, parameters: set[str]) -> Iterator[ast.AST]:
    yield from _conditions(node)
    yield from _values(node, parameters)
    yield from _statements(node)


def _conditions(node: ast.AST) -> Iterator[ast.AST]:
    match node:
        case ast.Compare(ops=[only]):
            for other in OPPOSITES[type(only)]:
                yield ast.Compare(node.left, [other()], node.comparators)
        case ast.Compare():
            yield from _chained(node)
        case ast.BoolOp():
            yield ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
            for left in _one_less(node.values):
                yield left[0] if len(left) == 1 else ast.BoolOp(node.op, left)
        case ast.UnaryOp(op=ast.Not()):
            yield node.operand
        case ast.comprehension() if node.ifs:
            for left in _one_less(node.ifs):
                yield ast.comprehension(node.target, node.iter, left, node.is_async)


def _values(node: ast.AST, parameters: set[str]) -> Iterator[ast.AST]:
    match node:
        case ast.BinOp(op=op) if type(op) in OPERATORS:
            yield ast.BinOp(node.left, OPERATORS[type(op)](), node.right)
        case ast.Constant(value=bool()):
            yield ast.Constant(not node.value)
        case ast.Constant(value=int()):
            yield from (ast.Constant(node.value + 1), ast.Constant(node.value - 1))
        case ast.Name() | ast.Attribute():
            yield from _named(node, parameters)
        case ast.IfExp() if not (_is_words(node.body) and _is_words(node.orelse)):
            yield from (node.body, node.orelse)
        case ast.Set() if len(node.elts) > 1:
            yield from (ast.Set(left) for left in _one_less(node.elts))


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    match node:
        case ast.Return(value=ast.expr()):
            yield from _returned(node.value)
        case ast.If():
            yield from (ast.If(ast.Constant(held), node.body, node.orelse) for held in (True, False))
        case ast.Continue():
            yield ast.Break()
        case ast.AugAssign():
            yield ast.Pass()


def _one_less(parts: list[ast.expr]) -> Iterator[list[ast.expr]]:
    for index in range(len(parts)):
        yield parts[:index] + parts[index + 1 :]


def _chained(node: ast.Compare) -> Iterator[ast.AST]:
    """Of `a <= b < c`: each comparison turned, and each left out."""
    for index, op in enumerate(node.ops):
        for other in OPPOSITES[type(op)]:
            yield ast.Compare(node.left, [*node.ops[:index], other(), *node.ops[index + 1 :]], node.comparators)
    yield ast.Compare(node.left, node.ops[:-1], node.comparators[:-1])
    yield ast.Compare(node.comparators[0], node.ops[1:], node.comparators[1:])


def _named(node: ast.Name | ast.Attribute, parameters: set[str]) -> Iterator[ast.AST]:
    if isinstance(node, ast.Attribute):
        if node.attr in SIBLINGS:
            yield ast.Attribute(node.value, SIBLINGS[node.attr], node.ctx)
    elif node.id == KEPT:
        yield ast.Constant(None)
    elif (other := SIBLINGS.get(node.id)) and (node.id not in parameters or other in parameters):
        yield ast.Name(other, node.ctx)


def _returned(value: ast.expr) -> Iterator[ast.AST]:
    """Nothing instead of what is returned; of a monitor's pair, nothing new to remember, or nothing to say."""
    if isinstance(value, ast.Tuple) and len(value.elts) == 2:
        first, second = value.elts
        if not (isinstance(first, ast.Name) and first.id == MEMORY):
            yield ast.Return(ast.Tuple([ast.Name(MEMORY, ast.Load()), second], ast.Load()))
        if not (isinstance(second, ast.Constant) and second.value is None) and not _is_kept(second):
            yield ast.Return(ast.Tuple([first, ast.Constant(None)], ast.Load()))
    elif not (isinstance(value, ast.Constant) and value.value in (None, True, False)) and not _is_kept(value):
        yield ast.Return(ast.Constant(None))


def _is_kept(node: ast.AST) -> bool:
    """It is changed where it stands."""
    return isinstance(node, ast.Name) and node.id == KEPT
