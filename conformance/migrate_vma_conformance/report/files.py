"""Reports as files: what `--output` writes, and where `replay` finds a token.

A directory gets report.json, and for each violation GENERATION-CLAUSE.txt (the splat) and GENERATION-CLAUSE.jsonl (its trace).
"""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import TypeAlias

from migrate_vma_conformance.errors import UsageError
from migrate_vma_conformance.report.json_report import report_document, text
from migrate_vma_conformance.report.splat import splat
from migrate_vma_conformance.verdict import ClauseVerdict, Counterexample, Report
from migrate_vma_spec.registry import Clause
from migrate_vma_spec.schema import write_trace

Json: TypeAlias = "str | float | list[Json] | dict[str, Json] | None"

_TOKEN = re.compile(r"\bmv\d+\.[\w.-]+")
_LARGEST = 64_000_000
"""Bytes of a file that `replay` reads; a report of every clause in every generation has under one million."""


def make_directory(directory: Path) -> None:
    """Make sure that a report can be written there, before anybody waits for it.

    Raises:
        UsageError: it is no directory, or cannot be made or written to.
    """
    with _told(directory):
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass


def write_report(report: Report, directory: Path, clauses: Mapping[str, Clause], *, strict: bool = False) -> None:
    """Write the report and its counterexamples.

    Raises:
        UsageError: the directory cannot be written to.
    """
    make_directory(directory)
    with _told(directory):
        (directory / "report.json").write_text(text(report_document(report, strict=strict)) + "\n", encoding="utf-8")
        for generation, verdict, example in _violations(report):
            lines = splat(verdict, report.subject, generation, clauses.get(verdict.clause))
            stem = re.sub(r"[^\w.-]+", "-", f"{generation}-{verdict.clause}").strip("-.")
            (directory / f"{stem}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
            write_trace(directory / f"{stem}.jsonl", example.steps)


@contextlib.contextmanager
def _told(directory: Path) -> Generator[None]:
    """What the file system refuses, in words."""
    try:
        yield
    except OSError as error:
        problem = f"cannot be written to ({error.strerror})"
        raise UsageError(str(directory), "--output", problem, "a directory, or a path where one can be made") from error


def _violations(report: Report) -> Iterator[tuple[str, ClauseVerdict, Counterexample]]:
    """Each violated verdict with the name of its generation and its counterexample."""
    for generation in report.generations:
        for verdict in generation.clauses.values():
            if verdict.counterexample is not None:
                yield generation.name, verdict, verdict.counterexample


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
    """A text itself; of a report its counterexamples, and not the command that made it."""
    if isinstance(document, str):
        yield document
    elif isinstance(document, list):
        for item in document:
            yield from () if isinstance(item, str) else _words(item)
    elif isinstance(document, dict):
        for key, value in document.items():
            yield from _words(value) if key == "counterexample" or not isinstance(value, str) else ()
