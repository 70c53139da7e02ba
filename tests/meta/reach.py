"""Which functions of the simulated mm run in which generation, as the tests' runs show: a pytest plugin, and the table of it.

    pytest -p tests.meta.reach --reach FILE tests/impl   adds what runs to FILE: in parts if need be, and under xdist
    python -m tests.meta.reach FILE                      docs/functions.md from FILE
    python -m tests.meta.reach --check                   every public function has a row that says it is reached

Rules:
- A function runs when its code object is entered. The generation is that of the frame's argument `kernel`; a function
  without one, as the effects of traps are, counts for the generation that was seen last.
- Runs in child processes of a test are not seen.
- The check compares names, never figures: a row goes stale when its function does.
"""

from __future__ import annotations

import argparse
import ast
import fcntl
import functools
import json
import sys
from collections import defaultdict
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

from migrate_vma_impl import mm
from migrate_vma_impl.generations import GENERATIONS
from tests.meta.sources import ROOT

MM = Path(mm.__file__).parent
DOCUMENT = ROOT / "docs" / "functions.md"
COMPOUND = "c"
LETTERS = (*(name[0] for name in GENERATIONS), COMPOUND)
HEAD = """# Functions of the simulated mm, and the generations in which the tests run them

Made from a run of `tests/impl` and `tests/litmus` with `-p tests.meta.reach --reach FILE`, by `python -m tests.meta.reach FILE`:
a function has a mark where its code was entered while a kernel of that generation was at hand. A missing mark says that no test
goes there, not that no run can. Functions whose names begin with an underscore are left out.

Columns: {columns}, and `{compound}` for every record with large
device-private folios.
"""

Reached = dict[str, set[str]]


# ---- watching --------------------------------------------------------------------------------------------------------


class Watch:
    """Notes the functions of mm/ that are entered, and the letter of the generation at hand."""

    def __init__(self) -> None:
        self.reached: Reached = defaultdict(set)
        self.letter = ""

    def enter(self, frame: FrameType, name: str) -> None:
        kernel = frame.f_locals.get("kernel") if "kernel" in _arguments(frame.f_code) else None
        if kernel is not None:
            self.letter = letter_of(kernel.generation.name)
        if self.letter:
            self.reached[name].add(self.letter)

    def start(self) -> None:
        if sys.version_info < (3, 12):
            sys.setprofile(self._profile)
            return
        monitoring = sys.monitoring
        monitoring.use_tool_id(monitoring.PROFILER_ID, "reach")
        for event in (monitoring.events.PY_START, monitoring.events.PY_RESUME):
            monitoring.register_callback(monitoring.PROFILER_ID, event, self._monitor)
        monitoring.set_events(monitoring.PROFILER_ID, monitoring.events.PY_START | monitoring.events.PY_RESUME)

    def stop(self) -> None:
        if sys.version_info < (3, 12):
            sys.setprofile(None)
            return
        sys.monitoring.set_events(sys.monitoring.PROFILER_ID, 0)
        sys.monitoring.free_tool_id(sys.monitoring.PROFILER_ID)

    def _profile(self, frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and (name := function_of(frame.f_code)):
            self.enter(frame, name)

    def _monitor(self, code: CodeType, _: int) -> Any:
        name = function_of(code)
        if not name:
            return sys.monitoring.DISABLE
        self.enter(sys._getframe(1), name)
        return None


@functools.cache
def _arguments(code: CodeType) -> tuple[str, ...]:
    return code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]


@functools.cache
def function_of(code: CodeType) -> str:
    """`file.py:qualified name` for code of mm/, else nothing."""
    path = Path(code.co_filename)
    return f"{path.name}:{code.co_qualname}" if path.parent == MM else ""


@functools.cache
def letter_of(generation: str) -> str:
    """The column of a generation, by its name or that of a mutation of it."""
    if "+compound" in generation:
        return COMPOUND
    return next((name[0] for name in GENERATIONS if generation.startswith(name)), "")


def add_to(path: Path, reached: Reached) -> None:
    """Adds to what the file has; several processes may do so at once."""
    with path.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        merged = {name: set(letters) for name, letters in json.loads(file.read() or "{}").items()}
        for name, letters in reached.items():
            merged.setdefault(name, set()).update(letters)
        file.truncate(0)
        json.dump({name: "".join(sorted(letters)) for name, letters in sorted(merged.items())}, file, indent=0)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--reach", metavar="FILE", help="add to this file which functions of the simulated mm run")


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("--reach")
    if path is not None and not config.getoption("numprocesses", None):
        config.pluginmanager.register(_Session(Path(path)))


class _Session:
    def __init__(self, path: Path) -> None:
        self.path, self.watch = path, Watch()

    def pytest_sessionstart(self) -> None:
        self.watch.start()

    def pytest_sessionfinish(self) -> None:
        self.watch.stop()
        add_to(self.path, self.watch.reached)


# ---- the table -------------------------------------------------------------------------------------------------------


def public_functions(source: str) -> list[str]:
    """The functions of a module, and the methods of its classes, that do not begin with an underscore, in their order."""
    found: list[str] = []
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef):
            found += [f"{node.name}.{each.name}" for each in node.body if _is_function(each)]
        elif _is_function(node):
            found.append(node.name)
    return [name for name in found if not any(part.startswith("_") for part in name.split("."))]


def _is_function(node: ast.AST) -> bool:
    return isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))


def known_functions() -> dict[str, list[str]]:
    return {path.name: public_functions(path.read_text()) for path in sorted(MM.glob("*.py"))}


def document(reached: Reached, known: dict[str, list[str]]) -> str:
    """The table, file by file."""
    names = ", ".join(f"`{name[0]}` {name}" for name in GENERATIONS)
    parts = [HEAD.format(columns=names, compound=COMPOUND)]
    for file, functions in known.items():
        if functions:
            parts.append(f"\n## {file}\n\n| function | {' | '.join(LETTERS)} |\n|---|{'---|' * len(LETTERS)}\n")
            parts += [_row(function, reached.get(f"{file}:{function}", set())) for function in functions]
    return "".join(parts)


def _row(function: str, letters: set[str]) -> str:
    return f"| `{function}` | {' | '.join('x' if each in letters else ' ' for each in LETTERS)} |\n"


def rows(text: str) -> dict[str, set[str]]:
    """What a table says: of each function, the columns with a mark."""
    file, found = "", {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("## "):
            file = line[3:]
        elif line.startswith("| `"):
            found[f"{file}:{cells[0].strip('`')}"] = {
                letter for letter, cell in zip(LETTERS, cells[1:], strict=True) if cell == "x"
            }
    return found


def complaints(text: str, known: dict[str, list[str]]) -> list[str]:
    """What is wrong with a table, in words; figures are not compared."""
    table = rows(text)
    names = [f"{file}:{function}" for file, functions in known.items() for function in functions]
    return [
        *(f"{name} has no row" for name in names if name not in table),
        *(f"{name} is reached by no test" for name in names if table.get(name) == set()),
        *(f"{name} is gone" for name in table if name not in names),
    ]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.meta.reach", description="Write docs/functions.md, or check it.")
    parser.add_argument("file", nargs="?", type=Path, help="what `--reach FILE` wrote")
    parser.add_argument("--check", action="store_true", help="fail where a public function is in no row that is reached")
    given = parser.parse_args(arguments)
    if given.file:
        read = json.loads(given.file.read_text())
        DOCUMENT.write_text(document({name: set(letters) for name, letters in read.items()}, known_functions()))
    elif not given.check:
        parser.error("a FILE to make the table of, or --check")
    wrong = complaints(DOCUMENT.read_text(), known_functions()) if given.check else []
    sys.stderr.write("".join(f"docs/functions.md: {each}\n" for each in wrong))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
