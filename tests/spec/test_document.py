"""docs/SPEC.md: written from the registry, current, and checked by the command that writes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from migrate_vma_spec.axioms import AXIOMS
from migrate_vma_spec.clauses import CHAPTERS
from migrate_vma_spec.document import document, kind_of, main, told
from migrate_vma_spec.guards import GUARDS
from migrate_vma_spec.known_bugs import KNOWN_BUGS, bugs_of
from migrate_vma_spec.notes import ALWAYS, BACKGROUND, BESIDE, SINCE
from migrate_vma_spec.registry import REGISTRY

SPEC = Path(__file__).parents[2] / "docs" / "SPEC.md"


def test_the_document_in_the_repository_is_current():
    assert main(["--check", str(SPEC)]) == 0


@pytest.mark.parametrize("clause", REGISTRY.values(), ids=lambda clause: clause.id)
def test_a_clause_is_in_the_document_with_all_that_it_says(clause):
    text = document()
    start = text.index(f"### {clause.id} {clause.name}\n")
    section = text[start : text.find("\n#", start + 1)]
    said = (clause.sentence, clause.level.value.upper(), kind_of(clause), clause.source, clause.symptom)
    bugs, needs = map(told, clause.broken_by), (need.value for need in clause.requires)
    for part in (*said, clause.since, clause.guard, *bugs, *needs):
        assert part in section
    for other, why in clause.beside:
        assert f"Beside {other}: {why}" in section


def test_every_clause_has_a_guard_and_every_chapter_an_introduction():
    assert GUARDS.keys() == REGISTRY.keys()
    assert all(guard.endswith(".") for guard in GUARDS.values())
    assert BACKGROUND.keys() == {module.__name__.rpartition(".")[2] for module in CHAPTERS}


def test_what_is_said_beside_the_clauses_is_of_clauses_that_exist():
    assert SINCE.keys() <= REGISTRY.keys()
    assert (REGISTRY["C01"].since, REGISTRY["C31"].since) == (ALWAYS, SINCE["C31"])
    assert {clause for pair in BESIDE for clause in pair} <= REGISTRY.keys()
    assert all(len(pair) == 2 for pair in BESIDE)
    assert {clause for bug in KNOWN_BUGS for clause in bug.clauses} <= REGISTRY.keys()


def test_the_bugs_of_a_clause_come_oldest_first():
    assert [bug.id for bug in bugs_of("C71")] == ["B20", "B46"]
    assert REGISTRY["C02"].broken_by == ()


def test_the_axioms_are_in_the_document():
    text = document()
    for axiom in AXIOMS:
        assert f"### {axiom.id}\n\n{axiom.sentence}\n" in text


def test_the_chapters_are_in_the_order_of_the_contract():
    text = document()
    titles = [(module.__doc__ or "").strip().splitlines()[0] for module in CHAPTERS]
    places = [text.index(f"## {number}. {title}\n") for number, title in enumerate(titles, 1)]
    assert places == sorted(places)


def test_a_stale_document_is_told_and_left_alone(tmp_path, capsys):
    path = tmp_path / "SPEC.md"
    path.write_text("old", encoding="utf-8")
    assert main(["--check", str(path)]) == 1
    assert f"{path} is stale" in capsys.readouterr().err
    assert path.read_text(encoding="utf-8") == "old"


def test_a_document_is_written_and_is_then_current(tmp_path):
    path = tmp_path / "SPEC.md"
    assert main(["--check", str(path)]) == 1
    assert main([str(path)]) == 0
    assert main(["--check", str(path)]) == 0


def test_no_line_is_too_long_for_a_mail():
    introduction = document().split("## 1.")[0]
    assert max(map(len, introduction.splitlines())) <= 130
