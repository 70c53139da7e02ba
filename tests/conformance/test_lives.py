"""Lives that drawn workloads once ended in a quarrel of the kernel and its contract, as small as they got: calm now."""

import pytest

from migrate_vma_conformance.life import Broken, Living, Moment, live
from migrate_vma_conformance.workbench import Drawn
from migrate_vma_conformance.workload import Act, Operation
from migrate_vma_impl.drivers.test_hmm import make_test_hmm
from migrate_vma_impl.generations import WAITING
from migrate_vma_impl.kernel import Config
from migrate_vma_impl.machine.system import Preemption

KNOWN = frozenset({"C62", "C71", "C77", "C79", "C87", "C88"})
SWAP = Config(system_frames=6, mms=3, swap_slots=2, files=2, file_pages=2, tlb_batch=True)


def alone(*acts):
    return tuple(Moment((Operation(act),)) for act in acts)


def race(*acts, switches=(), refusals=()):
    """The acts on one page, each on the next CPU."""
    return Moment(tuple(Operation(act, cpu) for cpu, act in enumerate(acts)), Drawn(tuple(switches), tuple(refusals)))


LIVES = {
    "MADV_FREE of a private mapping of a file is refused": alone(Act.MMAP_FILE, Act.FREE),
    "a pin that cannot wait for the monitor comes after its answer": (
        *alone(Act.UFFD_MISSING),
        race(Act.READ, Act.PIN, Act.READ, switches=[(1, 6, 0)]),
    ),
    "two faults map one page of a file": (*alone(Act.MMAP_FILE), race(Act.READ, Act.READ, switches=[(0, 12, 0)])),
    "a file with a name is not watched": alone(Act.MMAP_FILE, Act.UFFD_MISSING, Act.READ, Act.UFFD_END),
    "a guard is left in an entry that nobody guards any more": alone(Act.WRITE, Act.UFFD_GUARD, Act.UFFD_MISSING, Act.WRITE),
    "a page stays in the swap cache, unwritten, for somebody holds on to it": (
        *alone(Act.TO_DEVICE),
        race(Act.TO_SYSTEM, Act.PAGEOUT, switches=[(0, 41, 0)]),
    ),
    "a store behind a marker that guards comes again": alone(Act.MMAP_SHARED, Act.UFFD_GUARD, Act.WRITE),
    "shared memory is watched": alone(Act.MMAP_SHARED, Act.UFFD_MISSING, Act.WRITE, Act.FORK, Act.UFFD_END, Act.READ),
}


@pytest.mark.parametrize("program", LIVES.values(), ids=LIVES)
def test_a_life_that_ended_in_a_quarrel_is_calm(program):
    assert live(Living(make_test_hmm, WAITING, SWAP, Preemption.FULL, KNOWN), program) is None


FREED = (*alone(Act.TO_DEVICE), race(Act.DEVICE_WRITE, Act.READ, switches=[(0, 10, 0)]))
"""The test driver maps a device page that a CPU fault has brought back meanwhile (docs/findings/README.md)."""


@pytest.mark.parametrize(
    ("known", "clause"),
    [
        ({"C49: of another"}, "C49"),
        ({"C49: which is free"}, "REF"),
        ({"C49", "REF: of a CPU"}, "REF"),
        ({"C49", "REF: device"}, None),
    ],
)
def test_what_a_driver_is_known_to_break_can_be_named_by_words_of_it(known, clause):
    trouble = live(Living(make_test_hmm, WAITING, SWAP, Preemption.FULL, KNOWN | known), FREED)
    assert (trouble.clause.id if isinstance(trouble, Broken) else trouble) == clause
