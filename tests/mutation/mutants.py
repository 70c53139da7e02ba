"""The mutants of the contract's predicates: which there are, what they are called, and how one takes the place of the original.

Rules:
- A mutant is a predicate, or a function that predicates call, with one change (`operators.py`), or a clause that is registered
  with one part less.
- It belongs to every clause whose predicate comes to that function.
- Its key says where it is and what was changed, so it stays the same when other lines change:
  `counting.exact_count: A -> B`, with `(2)` for the second of the same in one function.
- Functions are changed in place, by their code: whoever has got hold of one runs the mutant.
"""

from __future__ import annotations

import ast
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType, ModuleType

from attrs import evolve, frozen

from migrate_vma_spec.clauses import CHAPTERS, common, tokens
from migrate_vma_spec.registry import REGISTRY
from tests.mutation.operators import apply, changes

MODULES = (*CHAPTERS, common, tokens)
WORDS = {"common.show", "common.names", "common.at"}
"""Functions that make words alone."""


@frozen
class Mutant:
    """One change. `make` puts it in the place of the original, in this process and for good."""

    key: str
    function: str
    lines: range
    """The lines of the statement, or of its head, that is changed."""
    clauses: tuple[str, ...]
    make: Callable[[], None]


def short(module: ModuleType) -> str:
    return module.__name__.rpartition(".")[2]


def all_mutants() -> list[Mutant]:
    """In the order of the contract."""
    clauses, found = _clauses_of_functions(), list[Mutant]()
    for module in MODULES:
        for function in _functions(module):
            name = f"{short(module)}.{function.name}"
            if name not in WORDS:
                found += _numbered(_mutants_of(module, function, name, clauses[name]))
    return found + _numbered(_less())


def _functions(module: ModuleType) -> list[ast.FunctionDef]:
    tree = ast.parse(Path(module.__file__ or "").read_text())
    return [node for node in tree.body if isinstance(node, ast.FunctionDef)]


def _mutants_of(module: ModuleType, function: ast.FunctionDef, name: str, clauses: tuple[str, ...]) -> Iterator[Mutant]:
    original = getattr(module, function.name)
    for path, old, new in changes(function):
        change = f"{_shown(old)} -> {_shown(new)}"
        yield Mutant(f"{name}: {change}", name, _lines(function, path), clauses, partial(_replace, original, function, path, new))


def _lines(function: ast.FunctionDef, path: tuple[tuple[str, int | None], ...]) -> range:
    """Of the innermost statement on the way."""
    node: ast.AST = function
    statement: ast.AST = function
    for field, index in path:
        value = getattr(node, field)
        node = value if index is None else value[index]
        statement = node if isinstance(node, ast.stmt) else statement
    body = getattr(statement, "body", None)
    last = body[0].lineno - 1 if body else statement.end_lineno
    return range(statement.lineno, max(last, statement.lineno) + 1)


def _shown(node: ast.AST) -> str:
    """A statement by its first line, and a comprehension's part as it is written."""
    if isinstance(node, ast.comprehension):
        return "".join(f" if {ast.unparse(test)}" for test in node.ifs).strip() or "no condition"
    return ast.unparse(ast.fix_missing_locations(node)).partition("\n")[0]


def _numbered(mutants: Iterator[Mutant]) -> list[Mutant]:
    seen = Counter[str]()
    found: list[Mutant] = []
    for mutant in mutants:
        seen[mutant.key] += 1
        found.append(mutant if seen[mutant.key] == 1 else evolve(mutant, key=f"{mutant.key} ({seen[mutant.key]})"))
    return found


def _replace(original: FunctionType, function: ast.FunctionDef, path: tuple[tuple[str, int | None], ...], new: ast.AST) -> None:
    changed = apply(function, path, new)
    changed.decorator_list = []
    future = ast.parse("from __future__ import annotations").body
    compiled = compile(ast.Module([*future, changed], []), original.__code__.co_filename, "exec")
    (code,) = (each for each in compiled.co_consts if isinstance(each, CodeType) and each.co_name == function.name)
    original.__code__ = code


def _less() -> Iterator[Mutant]:
    """Clauses that look at one kind of event less, apply to one subject more, or do not look at the end."""
    for clause in REGISTRY.values():
        judge = clause.step or clause.monitor
        if judge is None:
            continue
        function = f"{clause.chapter.rpartition('.')[2]}.{judge.__name__}"
        less = {f"on {kind.__name__}": {"on": tuple(each for each in clause.on if each is not kind)} for kind in clause.on}
        less |= {f"requires {each.name}": {"requires": clause.requires - {each}} for each in clause.requires}
        less |= {"end": {"end": None}} if clause.end is not None else {}
        for what, fields in less.items():
            key = f"{clause.id}: without `{what}`"
            yield Mutant(key, function, _of_code(judge), (clause.id,), partial(_register, evolve(clause, **fields)))


def _register(clause) -> None:
    REGISTRY[clause.id] = clause


def _of_code(function: FunctionType) -> range:
    lines = [line for _, _, line in function.__code__.co_lines() if line]
    return range(min(lines), max(lines) + 1)


def _clauses_of_functions() -> dict[str, tuple[str, ...]]:
    """Of each function, the clauses whose predicates come to it."""
    calls: dict[str, set[str]] = {}
    for module in MODULES:
        for function in _functions(module):
            names = {node.id for node in ast.walk(function) if isinstance(node, ast.Name)}
            named = (getattr(module, name, None) for name in names)
            calls[f"{short(module)}.{function.name}"] = {_name(each) for each in named if isinstance(each, FunctionType)}
    found: dict[str, set[str]] = defaultdict(set)
    for clause in REGISTRY.values():
        starts = (clause.step, clause.monitor, clause.end, clause.cycle)
        todo = [_name(each) for each in starts if isinstance(each, FunctionType)]
        while todo:
            name = todo.pop()
            if clause.id not in found[name]:
                found[name].add(clause.id)
                todo += calls.get(name, ())
    return defaultdict(tuple, {name: tuple(sorted(ids)) for name, ids in found.items()})


def _name(function: FunctionType) -> str:
    return f"{function.__module__.rpartition('.')[2]}.{function.__name__}"
