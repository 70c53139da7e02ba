"""docs/SPEC.md: written from the registry, current, and checked by the command that writes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from migrate_vma_spec.clauses import CHAPTERS
from migrate_vma_spec.document import document, kind_of, main
from migrate_vma_spec.registry import REGISTRY

SPEC = Path(__file__).parents[2] / "docs" / "SPEC.md"


def test_the_document_in_the_repository_is_current():
    assert main(["--check", str(SPEC)]) == 0


@pytest.mark.parametrize("clause", REGISTRY.values(), ids=lambda clause: clause.id)
def test_a_clause_is_in_the_document_with_all_that_it_says(clause):
    text = document()
    start = text.index(f"### {clause.id} {clause.name}\n")
    section = text[start : text.find("\n#", start + 1)]
    for part in (clause.sentence, clause.level.value.upper(), kind_of(clause), clause.source, clause.symptom):
        assert part in section
    for need in clause.requires:
        assert need.value in section


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
