"""Reports as files: what `--output` writes, and where `replay` finds a token.

A directory gets report.json; for each violation GENERATION-CLAUSE.txt (the splat) and GENERATION-CLAUSE.jsonl (its trace); and,
where Jinja (extra `report`) is installed, report.html.

Rules:
- A directory holds one report: the files of an earlier one are removed before its place is taken, and no others.
- A report.json that is none of ours is not overwritten.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import tempfile
from collections.abc import Generator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeAlias

from migrate_vma_conformance.errors import UsageError
from migrate_vma_conformance.report.cases import cases
from migrate_vma_conformance.report.json_report import report_document, text
from migrate_vma_conformance.report.page import page
from migrate_vma_conformance.report.splat import splat
from migrate_vma_conformance.verdict import Report
from migrate_vma_spec.registry import Clause
from migrate_vma_spec.schema import write_trace

Json: TypeAlias = "str | float | list[Json] | dict[str, Json] | None"

_REPORT = "report.json"
_PAGE = "report.html"
_LONGEST = 80
"""Letters of a generation's name in a file name."""
_TOKEN = re.compile(r"\bmv\d+\.[\w.-]+")
_LARGEST = 64_000_000
"""Bytes of a file that `replay` reads; a report of every clause in every generation has under one million."""


def make_directory(directory: Path) -> None:
    """Make sure that a report can be written there, before anybody waits for it.

    Raises:
        UsageError: it is no directory, cannot be made or written to, or holds a report.json of somebody else.
    """
    with _told(directory):
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
        _earlier(directory)


def write_report(report: Report, directory: Path, clauses: Mapping[str, Clause], *, strict: bool = False) -> None:
    """Write the report and its counterexamples, in the place of an earlier report.

    Raises:
        UsageError: the directory cannot be written to.
    """
    make_directory(directory)
    found = cases(report)
    names = _stems((case.generation, case.clause) for case in found)
    with _told(directory):
        for name in _earlier(directory):
            (directory / name).unlink(missing_ok=True)
        for case in found:
            stem = names[case.generation, case.clause]
            _write(directory / f"{stem}.txt", "\n".join(splat(case, clauses.get(case.clause))))
            write_trace(directory / f"{stem}.jsonl", case.example.steps)
        html = page(report, clauses, strict=strict)
        if html is not None:
            _write(directory / _PAGE, html)
        _write(directory / _REPORT, text(report_document(report, strict=strict)))


def _write(path: Path, content: str) -> None:
    path.write_text(f"{content}\n", encoding="utf-8")


def _stems(violations: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """A file name for each generation and clause: plain ASCII, the same every time, and no two alike in any file system."""
    found: dict[tuple[str, str], str] = {}
    for pair in violations:
        plain = "-".join(filter(None, (re.sub(r"[^A-Za-z0-9_.-]+", "-", part).strip("-.")[:_LONGEST] for part in pair)))
        taken = {stem.lower() for stem in found.values()}
        names = itertools.chain([plain], (f"{plain}-{number}" for number in itertools.count(2)))
        found[pair] = next(name for name in names if name.lower() not in taken)
    return found


def _earlier(directory: Path) -> list[str]:
    """The files of the report that is there already."""
    path = directory / _REPORT
    if not path.exists():
        return []
    try:
        clauses = {name: each["clauses"] for name, each in json.loads(_read(path))["generations"].items()}
        broken = [(name, clause) for name, each in clauses.items() for clause, said in each.items() if said["counterexample"]]
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
        problem = f"it holds a {_REPORT} that is no report of a check"
        raise UsageError(str(directory), "--output", problem, "a directory of its own") from error
    return [_REPORT, _PAGE, *(f"{stem}{kind}" for stem in _stems(broken).values() for kind in (".txt", ".jsonl"))]


@contextlib.contextmanager
def _told(directory: Path) -> Generator[None]:
    """What the file system refuses, in words."""
    try:
        yield
    except OSError as error:
        problem = f"cannot be written to ({error.strerror})"
        raise UsageError(str(directory), "--output", problem, "a directory, or a path where one can be made") from error


def token_of(given: str) -> str:
    """The token that the caller gave: itself, or the one in a file (a splat, a report, or a file that holds a token alone).

    Raises:
        UsageError: there is no such file, it cannot be read, or it holds no token or several.
    """
    path = Path(given)
    if _TOKEN.fullmatch(given) or not _is_file(path):
        return given
    found = list(dict.fromkeys(_tokens(_read(path))))
    if len(found) == 1:
        return found[0]
    problem = f"it holds {len(found) or 'no'} tokens"
    raise UsageError(given, "file", problem, "a splat (.txt), a report.json with one violation, or a file that holds one token")


def _is_file(path: Path) -> bool:
    """A token can be longer than any file name."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > _LARGEST:
            raise UsageError(str(path), "file", "it is too large to be a report", f"at most {_LARGEST:,} bytes")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(str(path), "file", f"cannot be read ({error.strerror})", "a file that holds a token") from error
    except UnicodeDecodeError as error:
        raise UsageError(str(path), "file", "is no text", "a file that holds a token") from error


def _tokens(content: str) -> Iterator[str]:
    """The tokens of a file. In a splat a long one is continued as a shell continues it."""
    try:
        document: Json = json.loads(content)
    except (ValueError, RecursionError):
        document = content.replace("\\\n", "")
    for word in _words(document):
        yield from _TOKEN.findall(word)


def _words(document: Json) -> Iterator[str]:
    """A text itself; of a report its verdicts' counterexamples, and not the command that made it."""
    if isinstance(document, str):
        yield document
    elif isinstance(document, list):
        for item in document:
            yield from () if isinstance(item, str) else _words(item)
    elif isinstance(document, dict):
        for key, value in document.items():
            kept = key == "counterexample" if isinstance(value, str) else key != "scenarios"
            yield from _words(value) if kept else ()
