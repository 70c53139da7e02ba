"""Witnesses of a fake guest, and what they are told to do with it."""

from __future__ import annotations

import sys
from pathlib import Path

from migrate_vma_conformance.kernel.commands import ReadFile
from migrate_vma_conformance.kernel.witness.witness import Way, Witness

_SCRIPT = Path(__file__).with_name("fake_guest.py")

DIE, OOPS, HANG, GARBLE, SKIP, FLOOD, LARGE = map(ReadFile, ("die", "oops", "hang", "garble", "skip", "flood", "large"))


def way(mood: str = "", limit: float = 20.0) -> Way:
    return Way(lambda wire, console: [sys.executable, str(_SCRIPT), str(wire), str(console), mood], limit)


def fake_witness(*ways: Way, patience: float = 20.0) -> Witness:
    return Witness("fake", list(ways or [way()]), patience)
