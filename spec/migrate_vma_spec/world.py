"""fold(world, step): what a reader of the trace knows after one more step.

Rules: see `objects.py`. A fold is a pure function of its two arguments, reads nothing but the event, and judges nothing. An event
that tells of no object (a scheduling point, a failed trylock) leaves the very same world. Where a step is about a task's own
affairs, the task is the step's.
"""

from __future__ import annotations

import migrate_vma_spec.fold_folios
import migrate_vma_spec.fold_memory
import migrate_vma_spec.fold_spaces
import migrate_vma_spec.fold_tables
import migrate_vma_spec.fold_tasks  # noqa: F401  (all fill the table of folders)
from migrate_vma_spec.events import Step
from migrate_vma_spec.folding import FOLDERS
from migrate_vma_spec.objects import World

__all__ = ["World", "fold"]


def fold(world: World, step: Step) -> World:
    """The world after this step."""
    folder = FOLDERS.get(type(step.event))
    return world if folder is None else folder(world, step.task, step.cpu, step.event)
