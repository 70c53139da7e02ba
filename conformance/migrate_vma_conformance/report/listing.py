"""The listings of the command line: clauses, generations and scenarios, as text and as JSON values."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from attrs import fields

from migrate_vma_conformance.options import Profile
from migrate_vma_conformance.report.layout import labelled, paragraph
from migrate_vma_conformance.scenarios import Scenario
from migrate_vma_impl.generations import Generation
from migrate_vma_impl.steps import SOUND, Steps
from migrate_vma_spec.registry import Clause


def chapter_title(clause: Clause) -> str:
    """The first line of the docstring of the chapter's module."""
    words = inspect.getdoc(sys.modules[clause.chapter]) if clause.chapter in sys.modules else None
    return words.splitlines()[0].rstrip(".") if words else clause.chapter


def clause_document(clause: Clause) -> dict[str, Any]:
    """A clause as JSON values."""
    return {
        "id": clause.id,
        "name": clause.name,
        "sentence": clause.sentence,
        "level": clause.level.value,
        "party": clause.party.value,
        "chapter": chapter_title(clause),
        "source": clause.source,
        "symptom": clause.symptom,
        "requires": sorted(capability.value for capability in clause.requires),
        "progress": None if clause.progress is None else clause.progress.value,
    }


def clause_lines(clauses: Iterable[Clause]) -> list[str]:
    """Clauses in short: id, level, party and name, under their chapters."""
    lines: list[str] = []
    chapter = ""
    for clause in clauses:
        if clause.chapter != chapter:
            chapter = clause.chapter
            lines += ([""] if lines else []) + paragraph(chapter_title(clause))
        head = f"  {clause.id:<4} {clause.level.name:<7}{clause.party.value:<16}"
        lines += paragraph(f"{head}{clause.name}", hang=" " * len(head))
    return lines


def clause_page(clause: Clause) -> list[str]:
    """Everything that the registry says of one clause."""
    facts = [
        ("clause", clause.sentence),
        ("chapter", chapter_title(clause)),
        ("binds", f"{clause.party.value} ({clause.level.name})"),
        ("source", clause.source),
        ("symptom", clause.symptom),
        ("requires", "; ".join(sorted(capability.value for capability in clause.requires)) or "nothing"),
    ]
    if clause.progress is not None:
        facts.append(("judged on", f"cycles and dead ends of exhausted state graphs: {clause.progress.value}"))
    lines = paragraph(f"{clause.id} {clause.name}")
    return lines + [line for label, text in facts if text for line in labelled(label, text)]


# ---- generations -----------------------------------------------------------------------------------------------------

_TOLD = {"name", "aliases", "patch_levels", "sentence", "capabilities", "steps"}


def parts(generation: Generation) -> dict[str, str]:
    """What the generation is made of: a function's name for each part, and the steps that are not the sound ones."""
    found = {field.name: _part(getattr(generation, field.name)) for field in fields(Generation) if field.name not in _TOLD}
    changed = ((field.name, getattr(generation.steps, field.name)) for field in fields(Steps))
    return found | {f"steps.{name}": _part(step) for name, step in changed if step is not getattr(SOUND, name)}


def _part(value: Any) -> str:
    return getattr(value, "__name__", None) or str(value).lower()


def generation_document(generation: Generation) -> dict[str, Any]:
    """A generation as JSON values."""
    return {
        "name": generation.name,
        "sentence": generation.sentence,
        "aliases": list(generation.aliases),
        "patch_levels": list(generation.patch_levels),
        "capabilities": sorted(capability.value for capability in generation.capabilities),
        "parts": parts(generation),
    }


def generation_lines(generations: Iterable[Generation]) -> list[str]:
    """Each generation with its kernels, what it can, and its parts; those that differ from the one before are marked."""
    lines: list[str] = []
    before: dict[str, str] = {}
    for generation in generations:
        lines += ([""] if lines else []) + [generation.name, *paragraph(generation.sentence, indent="  ")]
        lines += labelled("kernels", ", ".join(_kernels(generation)) or "none", column=16)
        lines += labelled("capabilities", "; ".join(sorted(each.value for each in generation.capabilities)) or "none", column=16)
        for name, part in parts(generation).items():
            mark = "*" if before and before.get(name) != part else ""
            lines += paragraph(f"  {name:<24}{part} {mark}", hang=" " * 26)
        before = parts(generation)
    return [*lines, "", "* differs from the generation before it"]


def _kernels(generation: Generation) -> Iterator[str]:
    """Series as first released, and beside a series the release of it that was read."""
    for alias in generation.aliases:
        read = next((level for level in generation.patch_levels if level.startswith(f"{alias}.")), None)
        yield f"{alias} (as of {read})" if read is not None else alias


# ---- scenarios -------------------------------------------------------------------------------------------------------


def scenario_document(scenario: Scenario) -> dict[str, Any]:
    """A scenario as JSON values. `driver` plays in it whoever is checked; None: the driver under test."""
    return {
        "name": scenario.name,
        "sentence": scenario.sentence,
        "tasks": [{"name": actor.name, "cpu": actor.cpu} for actor in scenario.actors],
        "preemption": [model.value for model in scenario.preemption],
        "progress": list(scenario.progress),
        "driver": scenario.driver,
        "profiles": _profiles(scenario),
    }


def _profiles(scenario: Scenario) -> list[str]:
    return [profile.value for profile in Profile if scenario.quick or profile is not Profile.QUICK]


def scenario_lines(scenarios: Iterable[Scenario]) -> list[str]:
    """Each scenario with its sentence, its tasks by CPU, and how it is run."""
    lines: list[str] = []
    for scenario in scenarios:
        lines += ([""] if lines else []) + [scenario.name, *paragraph(scenario.sentence, indent="  ")]
        lines += labelled("tasks", ", ".join(f"{actor.name} on CPU {actor.cpu}" for actor in scenario.actors))
        lines += labelled("preemption", ", ".join(model.value for model in scenario.preemption))
        if scenario.progress:
            lines += labelled("progress", ", ".join(scenario.progress))
        if scenario.driver is not None:
            lines += labelled("driver", f"{scenario.driver}, whatever driver is checked")
        lines += labelled("profiles", ", ".join(_profiles(scenario)))
    return lines
