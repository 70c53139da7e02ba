"""docs/kernel-differences.md tells of every record, and of no other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from migrate_vma_conformance.kernel.comparing.known import KNOWN
from migrate_vma_conformance.kernel.guests import KINDS

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "kernel-differences.md").read_text()


def sections():
    """The text of each section on a known difference, by its heading, in one line."""
    chapter = DOCUMENT.split("## Known differences")[1].split("\n## ")[0]
    _, *parts = re.split(r"^### (.*)$", chapter, flags=re.MULTILINE)
    return {heading: " ".join(text.split()) for heading, text in zip(parts[::2], parts[1::2], strict=True)}


def test_each_record_has_a_section_and_each_section_a_record():
    assert list(sections()) == [known.id for known in KNOWN]


@pytest.mark.parametrize("known", KNOWN, ids=lambda known: known.id)
def test_a_section_says_what_its_record_says(known):
    text = sections()[known.id]
    assert known.what in text
    assert f"Source: {known.source}." in text
    assert f"Versions: {', '.join(known.versions)}." in text


@pytest.mark.parametrize("known", KNOWN, ids=lambda known: known.id)
def test_a_record_is_of_guests_that_there_are(known):
    assert all(any(name.startswith(version) for name in KINDS) for version in known.versions)
