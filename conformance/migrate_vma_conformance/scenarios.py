"""The scenarios that a driver is judged in: an address space, a device, and the tasks that race on it.

Rules:
- A scenario asks for nothing but the public operations of a driver and the system calls of the simulated kernel.
- The prologue builds the first state alone and is not searched; the actors are.
- An exhausted scenario is a bound that a verdict states: so many tasks, these operations, one page.
- `progress` names the progress clauses that the scenario is meant for: a cycle is judged in every scenario, but that there is
  none counts as evidence only where the clause could have been broken.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from attrs import evolve, frozen

from migrate_vma_impl.driver import Driver, Load
from migrate_vma_impl.generations import Generation
from migrate_vma_impl.kernel import Config, Kernel
from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.system import Preemption, System, Task
from migrate_vma_impl.mm import syscalls
from migrate_vma_impl.mm.mm_types import Folio, MigrateVma, Mm
from migrate_vma_impl.workqueue import kworker
from migrate_vma_spec.events import OperationBegan, OperationEnded
from migrate_vma_spec.vocabulary import Capability, Select, VmFlags

MakeCore = Callable[[Generation, Config], Kernel]
Act = Callable[[Kernel, Driver], Coroutine[Any, Any, None]]

READ_WRITE = VmFlags.READ | VmFlags.WRITE
PARENT, CHILD = Mm(0), Mm(1)


@frozen
class Actor:
    """A task of a scenario: a name, the CPU that it is pinned to, and what it does."""

    name: str
    cpu: int
    act: Act


@frozen
class Scenario:
    """`short`: allocations may fail. `workers`: CPUs have their workers. `driver`: a built-in driver that plays instead.

    `loads` are the operations that a driver must offer for the scenario to make sense; without them it is not run. `judges` are
    the clauses that it is judged by: where the scenario itself calls the kernel wrongly, nobody else is to be blamed for it.
    `adds_to` are the clauses to whose evidence it belongs, where that is not all of them; what it breaks counts for every
    clause. With `lockstep` a fair cycle is looked for before the whole state graph is. It is run on generations that have what
    it `requires`, and shows nothing on others.
    """

    name: str
    sentence: str
    config: Config
    prologue: Act
    actors: tuple[Actor, ...]
    progress: tuple[str, ...] = ()
    preemption: tuple[Preemption, ...] = (Preemption.FULL,)
    short: bool = False
    workers: bool = False
    driver: str | None = None
    loads: frozenset[Load] = frozenset({Load.TO_DEVICE})
    quick: bool = False
    judges: frozenset[str] | None = None
    adds_to: frozenset[str] | None = None
    lockstep: bool = False
    requires: frozenset[Capability] = frozenset()

    def concerns(self, clause: str) -> bool:
        return self.judges is None or clause in self.judges

    def is_evidence_for(self, clause: str) -> bool:
        return self.concerns(clause) and (self.adds_to is None or clause in self.adds_to)


def build(
    scenario: Scenario, generation: Generation, make_driver: Callable[[Kernel], Driver], make_core: MakeCore = Kernel
) -> System:
    """The system that the machine runs. Whatever the factory or the driver raises goes to the caller."""
    kernel = make_core(generation, scenario.config)
    driver = make_driver(kernel)
    kernel.attach(driver)
    workers = tuple(
        Task(f"kworker/{cpu}", cpu, kworker, (kernel, cpu), daemon=True)
        for cpu in range(scenario.config.cpus if scenario.workers else 0)
    )
    actors = tuple(Task(actor.name, actor.cpu, _act, (actor.act, kernel, driver)) for actor in scenario.actors)
    prologue = Task("init", 0, _boot, (scenario.prologue, kernel, driver))
    return System(kernel.slots(), prologue, (*workers, *actors), scenario.config.cpus, scenario.short)


async def _boot(prologue: Act, kernel: Kernel, driver: Driver) -> None:
    await kernel.boot()
    await prologue(kernel, driver)


async def _act(act: Act, kernel: Kernel, driver: Driver) -> None:
    await act(kernel, driver)


# ---- prologues -------------------------------------------------------------------------------------------------------


async def _empty(kernel: Kernel, driver: Driver, pages: int = 1) -> None:
    await driver.open(PARENT)
    await syscalls.mmap(kernel, PARENT, 0, pages, READ_WRITE)


async def one_system_page(kernel: Kernel, driver: Driver) -> None:
    """One anonymous page, written by the CPU."""
    await _empty(kernel, driver)
    await syscalls.touch(kernel, PARENT, 0, write=True)


async def one_device_page(kernel: Kernel, driver: Driver) -> None:
    """The same page, on the device."""
    await one_system_page(kernel, driver)
    await driver.to_device(PARENT, 0, 1)


async def one_forked_device_page(kernel: Kernel, driver: Driver) -> None:
    """The same, then forked: two address spaces map the device page."""
    await one_device_page(kernel, driver)
    await syscalls.fork(kernel, PARENT, CHILD)


async def one_forked_system_page(kernel: Kernel, driver: Driver) -> None:
    """The same page in system memory, then forked: two address spaces map it, and neither may write it."""
    await one_system_page(kernel, driver)
    await syscalls.fork(kernel, PARENT, CHILD)


async def one_mirrored_page(kernel: Kernel, driver: Driver) -> None:
    """The same page, which the device has written, so that its page table maps it."""
    await one_system_page(kernel, driver)
    await driver.device_write(PARENT, 0)


async def three_kinds(kernel: Kernel, driver: Driver) -> None:
    """A written page, a page that was only read (the zero page), and a hole."""
    await _empty(kernel, driver, 3)
    await syscalls.touch(kernel, PARENT, 0, write=True)
    await syscalls.touch(kernel, PARENT, 1, write=False)


async def batched_beside_forked(kernel: Kernel, driver: Driver) -> None:
    """A device page that a child maps too, and before it a system page in the LRU batch of CPU 0.

    In this order the migration drains while the device page is locked and the child's entry still names it.
    """
    await _empty(kernel, driver, 2)
    await syscalls.touch(kernel, PARENT, 1, write=True)
    await driver.to_device(PARENT, 1, 2)
    await syscalls.fork(kernel, PARENT, CHILD)
    await driver.open(CHILD)
    await syscalls.touch(kernel, PARENT, 0, write=True)


async def one_large_system_folio(kernel: Kernel, driver: Driver) -> None:
    """A folio of two pages, mapped by one leaf and written by the CPU."""
    await driver.open(PARENT)
    await syscalls.mmap(kernel, PARENT, 0, 2, READ_WRITE | VmFlags.HUGEPAGE)
    await syscalls.touch(kernel, PARENT, 0, write=True)


async def one_large_device_folio(kernel: Kernel, driver: Driver) -> None:
    """The same folio, on the device."""
    await one_large_system_folio(kernel, driver)
    await driver.to_device(PARENT, 0, 2)


async def one_split_device_leaf(kernel: Kernel, driver: Driver) -> None:
    """The same folio, mapped page by page: the protection of one page was changed, and changed back."""
    await one_large_device_folio(kernel, driver)
    await syscalls.mprotect(kernel, PARENT, 0, 1, VmFlags.READ)
    await syscalls.mprotect(kernel, PARENT, 0, 1, READ_WRITE)


async def watched_hole(kernel: Kernel, driver: Driver) -> None:
    """A hole in a VMA of which a userfaultfd is told."""
    await driver.open(PARENT)
    await syscalls.mmap(kernel, PARENT, 0, 1, READ_WRITE | VmFlags.UFFD_MISSING)


# ---- acts ------------------------------------------------------------------------------------------------------------


def touch(mm: Mm, addr: int, *, write: bool) -> Act:
    async def act(kernel: Kernel, driver: Driver) -> None:
        await syscalls.touch(kernel, mm, addr, write=write)

    return act


def to_device(mm: Mm, start: int, end: int) -> Act:
    async def act(kernel: Kernel, driver: Driver) -> None:
        await driver.to_device(mm, start, end)

    return act


def to_system(mm: Mm, start: int, end: int) -> Act:
    async def act(kernel: Kernel, driver: Driver) -> None:
        await driver.to_system(mm, start, end)

    return act


def device_access(mm: Mm, addr: int, *, write: bool) -> Act:
    async def act(kernel: Kernel, driver: Driver) -> None:
        await (driver.device_write if write else driver.device_read)(mm, addr)

    return act


async def evict(kernel: Kernel, driver: Driver) -> None:
    await driver.evict()


async def release(kernel: Kernel, driver: Driver) -> None:
    await driver.release()


async def unmap(kernel: Kernel, driver: Driver) -> None:
    await syscalls.munmap(kernel, PARENT, 0, 1)


async def discard(kernel: Kernel, driver: Driver) -> None:
    await syscalls.madvise_dontneed(kernel, PARENT, 0, 1)


async def fork(kernel: Kernel, driver: Driver) -> None:
    await syscalls.fork(kernel, PARENT, CHILD)


async def borrow_device_page(kernel: Kernel, driver: Driver) -> None:
    """A transient reference to the device page, as compaction takes one."""
    await syscalls.speculative_reference(kernel, driver.folios[0].pfn)


async def pin_and_unpin(kernel: Kernel, driver: Driver) -> None:
    await syscalls.pin_and_unpin(kernel, PARENT, 0)


async def round_trip(kernel: Kernel, driver: Driver) -> None:
    """Alone: to the device, the device's access, back by a fault, to the device, a fork, stores on both sides, the end."""
    await driver.to_device(PARENT, 0, 3)
    if Load.DEVICE_WRITE in driver.loads:
        await driver.device_write(PARENT, 0)
        await driver.device_read(PARENT, 1)
    await syscalls.touch(kernel, PARENT, 0, write=False)
    await driver.to_device(PARENT, 0, 3)
    await syscalls.fork(kernel, PARENT, CHILD)
    if Load.DEVICE_READ in driver.loads:
        await driver.device_read(PARENT, 0)
    await syscalls.touch(kernel, CHILD, 0, write=True)
    await syscalls.touch(kernel, PARENT, 0, write=True)
    await driver.to_system(PARENT, 0, 3)
    await syscalls.exit(kernel, CHILD)
    await syscalls.munmap(kernel, PARENT, 0, 3)


async def refused_setups(kernel: Kernel, driver: Driver) -> None:
    """Every argument that migrate_vma_setup refuses, in the order of its checks, with a device page mapped."""
    await traps.note(OperationBegan("refused setups"))
    vmas = await kernel.mmap_read_lock(PARENT)
    vma, fault_page = vmas[0], driver.folios[0]
    wrong = (
        MigrateVma(None, 0, 1, [0], [0], driver.owner, Select.SYSTEM),
        MigrateVma(evolve(vma, flags=vma.flags | VmFlags.PFNMAP), 0, 1, [0], [0], driver.owner, Select.SYSTEM),
        MigrateVma(evolve(vma, flags=vma.flags | VmFlags.HUGETLB), 0, 1, [0], [0], driver.owner, Select.SYSTEM),
        MigrateVma(vma, 0, 0, [], [], driver.owner, Select.SYSTEM),
        MigrateVma(vma, vma.end, vma.end + 1, [0], [0], driver.owner, Select.SYSTEM),
        MigrateVma(vma, 0, vma.end + 1, [0] * (vma.end + 1), [0] * (vma.end + 1), driver.owner, Select.SYSTEM),
        MigrateVma(vma, 0, 1, None, [0], driver.owner, Select.SYSTEM),
        MigrateVma(vma, 0, 1, [0], None, driver.owner, Select.SYSTEM),
    )
    for args in wrong:
        await kernel.migrate_vma_setup(args)
    capabilities = kernel.generation.capabilities
    pages = [Folio(1)] * (Capability.FAULT_PAGE in capabilities) + [fault_page] * (Capability.FAULT_LOCK in capabilities)
    for page in pages:
        await kernel.migrate_vma_setup(MigrateVma(vma, 0, 1, [0], [0], driver.owner, Select.DEVICE_PRIVATE, page))
    await kernel.mmap_read_unlock(PARENT)
    await traps.note(OperationEnded("refused setups", 0))


# ---- the scenarios ---------------------------------------------------------------------------------------------------

_ONE_PAGE = Config(cpus=2, system_frames=3, addresses=1, mms=1)
_ONE_PAGE_FORKED = Config(cpus=2, system_frames=4, addresses=1, mms=2)
_TWO_PAGES_FORKED = Config(cpus=2, system_frames=5, addresses=2, mms=2)
_THREE_PAGES = Config(cpus=2, system_frames=6, addresses=3, mms=2)
_ONE_LEAF = Config(cpus=2, system_frames=6, addresses=2, mms=1, pmd_order=1)
_ONE_LEAF_FORKED = evolve(_ONE_LEAF, system_frames=8, mms=2)
_LARGE = frozenset({Capability.COMPOUND})

_ALL = (
    Scenario(
        "fault2",
        "Two CPUs fault one device page.",
        _ONE_PAGE,
        one_device_page,
        (Actor("t1", 0, touch(PARENT, 0, write=True)), Actor("t2", 1, touch(PARENT, 0, write=False))),
        progress=("C79", "C82", "C84"),
        quick=True,
    ),
    Scenario(
        "fault3",
        "Three CPUs fault one device page.",
        evolve(_ONE_PAGE, cpus=3),
        one_device_page,
        tuple(Actor(f"t{number + 1}", number, touch(PARENT, 0, write=False)) for number in range(3)),
        progress=("C79", "C82", "C84"),
        judges=frozenset({"C82", "C84"}),
        adds_to=frozenset({"C84"}),
        lockstep=True,
    ),
    Scenario(
        "fault2-forked",
        "Two CPUs fault one device page that two address spaces map.",
        _ONE_PAGE_FORKED,
        one_forked_device_page,
        (Actor("t1", 0, touch(PARENT, 0, write=True)), Actor("t2", 1, touch(CHILD, 0, write=False))),
        progress=("C82", "C84"),
    ),
    Scenario(
        "fault-short",
        "A CPU faults a device page while memory is short.",
        _ONE_PAGE,
        one_device_page,
        (Actor("t1", 0, touch(PARENT, 0, write=True)),),
        progress=("C79",),
        short=True,
        quick=True,
    ),
    Scenario(
        "fault-evict",
        "A CPU faults a device page that the driver evicts.",
        _ONE_PAGE,
        one_device_page,
        (Actor("t1", 0, touch(PARENT, 0, write=True)), Actor("t2", 1, evict)),
        progress=("C82",),
        loads=frozenset({Load.EVICT}),
    ),
    Scenario(
        "fault-munmap",
        "A CPU faults a device page that another unmaps.",
        _ONE_PAGE,
        one_device_page,
        (Actor("t1", 0, touch(PARENT, 0, write=True)), Actor("t2", 1, unmap)),
        progress=("C82",),
    ),
    Scenario(
        "fault-discard",
        "A CPU faults a device page that another discards with MADV_DONTNEED.",
        _ONE_PAGE,
        one_device_page,
        (Actor("t1", 0, touch(PARENT, 0, write=True)), Actor("t2", 1, discard)),
        progress=("C82",),
    ),
    Scenario(
        "fault-fork",
        "A CPU faults a device page while another forks.",
        _ONE_PAGE_FORKED,
        one_device_page,
        (Actor("t1", 0, touch(PARENT, 0, write=True)), Actor("t2", 1, fork)),
        progress=("C82",),
    ),
    Scenario(
        "fault-borrow",
        "A CPU faults a device page of which two others take transient references.",
        evolve(_ONE_PAGE, cpus=3),
        one_device_page,
        (
            Actor("t1", 0, touch(PARENT, 0, write=True)),
            Actor("t2", 1, borrow_device_page),
            Actor("t3", 2, borrow_device_page),
        ),
        progress=("C82",),
    ),
    Scenario(
        "fault-device",
        "A CPU and the device write one device page.",
        _ONE_PAGE,
        one_device_page,
        (Actor("t1", 0, touch(PARENT, 0, write=True)), Actor("t2", 1, device_access(PARENT, 0, write=True))),
        progress=("C82",),
        loads=frozenset({Load.DEVICE_WRITE}),
    ),
    Scenario(
        "migrate-store",
        "A page goes to the device while a CPU stores to it.",
        _ONE_PAGE,
        one_system_page,
        (Actor("t1", 0, to_device(PARENT, 0, 1)), Actor("t2", 1, touch(PARENT, 0, write=True))),
        progress=("C82",),
        workers=True,
    ),
    Scenario(
        "migrate-discard",
        "A page goes to the device while another CPU discards it with MADV_DONTNEED.",
        _ONE_PAGE,
        one_system_page,
        (Actor("t1", 0, to_device(PARENT, 0, 1)), Actor("t2", 1, discard)),
        progress=("C82",),
        workers=True,
    ),
    Scenario(
        "migrate-forked",
        "A page that two address spaces map goes to the device while a CPU of the other one stores to it.",
        _ONE_PAGE_FORKED,
        one_forked_system_page,
        (Actor("t1", 0, to_device(PARENT, 0, 1)), Actor("t2", 1, touch(CHILD, 0, write=True))),
        progress=("C82",),
        workers=True,
    ),
    Scenario(
        "migrate-holes",
        "A page, a zero page and a hole go to the device while a CPU stores to the hole.",
        _THREE_PAGES,
        three_kinds,
        (Actor("t1", 0, to_device(PARENT, 0, 3)), Actor("t2", 1, touch(PARENT, 2, write=True))),
        progress=("C82",),
        workers=True,
    ),
    Scenario(
        "migrate-pin",
        "A page goes to the device while another CPU pins it.",
        _ONE_PAGE,
        one_system_page,
        (Actor("t1", 0, to_device(PARENT, 0, 1)), Actor("t2", 1, pin_and_unpin)),
        progress=("C82",),
        workers=True,
    ),
    Scenario(
        "migrate-device",
        "A page that the device maps goes to the device while the device stores to it.",
        _ONE_PAGE,
        one_mirrored_page,
        (Actor("t1", 0, to_device(PARENT, 0, 1)), Actor("t2", 1, device_access(PARENT, 0, write=True))),
        progress=("C82",),
        workers=True,
        loads=frozenset({Load.TO_DEVICE, Load.DEVICE_WRITE}),
    ),
    Scenario(
        "migrate-watched",
        "A hole that a userfaultfd watches goes to the device.",
        _ONE_PAGE,
        watched_hole,
        (Actor("t1", 0, to_device(PARENT, 0, 1)),),
    ),
    Scenario(
        "migrate-evict",
        "A page goes to the device, which another CPU empties.",
        _ONE_PAGE,
        one_system_page,
        (Actor("t1", 0, to_device(PARENT, 0, 1)), Actor("t2", 1, evict)),
        progress=("C82", "C86"),
        workers=True,
        loads=frozenset({Load.TO_DEVICE, Load.EVICT}),
    ),
    Scenario(
        "fault-refused",
        "A CPU faults a device page while memory is short, and the driver says so.",
        _ONE_PAGE,
        one_device_page,
        (Actor("t1", 0, touch(PARENT, 0, write=True)),),
        progress=("C79",),
        short=True,
        driver="wide",
        quick=True,
    ),
    Scenario(
        "round-trip",
        "One CPU and the device use three pages through their whole life.",
        _THREE_PAGES,
        three_kinds,
        (Actor("t1", 0, round_trip),),
        workers=True,
        quick=True,
    ),
    Scenario(
        "refused",
        "migrate_vma_setup is called with everything that it refuses.",
        _ONE_PAGE,
        one_device_page,
        (Actor("t1", 0, refused_setups),),
        quick=True,
        judges=frozenset({"C02", "C03", "C06", "C30"}),
    ),
    Scenario(
        "unbind",
        "A CPU faults a device page while the driver is unbound.",
        _ONE_PAGE,
        one_device_page,
        (Actor("t1", 0, touch(PARENT, 0, write=True)), Actor("t2", 1, release)),
        progress=("C82",),
        loads=frozenset({Load.RELEASE}),
    ),
    Scenario(
        "drain",
        "A wide migration drains the LRU batches with a device page locked, which a CPU in hmm_range_fault needs.",
        _TWO_PAGES_FORKED,
        batched_beside_forked,
        (Actor("t1", 1, to_device(PARENT, 0, 2)), Actor("t2", 0, to_system(CHILD, 1, 2))),
        progress=("C85",),
        preemption=(Preemption.FULL, Preemption.VOLUNTARY),
        workers=True,
        driver="wide",
        quick=True,
    ),
    Scenario(
        "large-fault2",
        "Two CPUs fault one large device folio.",
        _ONE_LEAF,
        one_large_device_folio,
        (Actor("t1", 0, touch(PARENT, 0, write=True)), Actor("t2", 1, touch(PARENT, 1, write=False))),
        progress=("C79", "C82", "C84"),
        quick=True,
        requires=_LARGE,
    ),
    Scenario(
        "large-fault-pages",
        "A CPU faults the second page of a large device folio that is mapped page by page.",
        _ONE_LEAF,
        one_split_device_leaf,
        (Actor("t1", 0, touch(PARENT, 1, write=True)),),
        progress=("C79", "C82"),
        quick=True,
        requires=_LARGE,
    ),
    Scenario(
        "large-fault-range",
        "The same, where the driver brings back the whole range.",
        _ONE_LEAF,
        one_split_device_leaf,
        (Actor("t1", 0, touch(PARENT, 1, write=True)),),
        progress=("C79", "C82"),
        driver="wide",
        requires=_LARGE,
    ),
    Scenario(
        "large-fault-short",
        "A CPU faults a large device folio while memory is short.",
        _ONE_LEAF,
        one_large_device_folio,
        (Actor("t1", 0, touch(PARENT, 0, write=True)),),
        progress=("C82",),
        short=True,
        requires=_LARGE,
    ),
    Scenario(
        "large-fault-forked",
        "A CPU faults a large device folio that a child maps too.",
        _ONE_LEAF_FORKED,
        one_large_device_folio,
        (Actor("t1", 0, touch(PARENT, 0, write=True)), Actor("t2", 1, fork)),
        progress=("C82",),
        requires=_LARGE,
    ),
    Scenario(
        "large-fault-discard",
        "A CPU faults a large device folio of which another discards a page.",
        _ONE_LEAF,
        one_large_device_folio,
        (Actor("t1", 0, touch(PARENT, 1, write=True)), Actor("t2", 1, discard)),
        progress=("C82",),
        requires=_LARGE,
    ),
    Scenario(
        "large-migrate-discard",
        "A large folio goes to the device while another CPU discards one of its pages.",
        _ONE_LEAF,
        one_large_system_folio,
        (Actor("t1", 0, to_device(PARENT, 0, 2)), Actor("t2", 1, discard)),
        progress=("C82",),
        workers=True,
        requires=_LARGE,
    ),
    Scenario(
        "large-evict",
        "A CPU faults a large device folio that the driver evicts.",
        _ONE_LEAF,
        one_large_device_folio,
        (Actor("t1", 0, touch(PARENT, 0, write=True)), Actor("t2", 1, evict)),
        progress=("C82",),
        loads=frozenset({Load.TO_DEVICE, Load.EVICT}),
        requires=_LARGE,
    ),
)

SCENARIOS = {scenario.name: scenario for scenario in _ALL}
