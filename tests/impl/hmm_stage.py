"""A stage on which the kernel's hmm-tests are played: the calls of that selftest, for the model of its driver.

Data are followed through the trace alone: every store is a fresh token, copies and clears carry tokens about, and a load answers
the token of the page that it reached. So a page with the wrong contents shows, whoever mixed it up. Every run is judged by the
clauses as it goes, and at its end nothing may be left: no page in use, on the device or off it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from enum import Enum
from typing import Any, ClassVar

import pytest
from attrs import define, field, frozen

from migrate_vma_impl.driver import Driver
from migrate_vma_impl.drivers.test_hmm import make_test_hmm, make_test_hmm_adapted, make_test_hmm_coherent
from migrate_vma_impl.drivers.test_hmm_access import Prot, Reply
from migrate_vma_impl.drivers.test_hmm_ioctl import Command
from migrate_vma_impl.generations import COMPOUND_GENERATIONS, GENERATIONS, Generation
from migrate_vma_impl.kernel import Kernel
from migrate_vma_impl.machine.containers import DriverSlot
from migrate_vma_impl.mm import syscalls, syscalls_files
from migrate_vma_impl.mm.mm_types import Folio, Mm, MmState, Pgmap
from migrate_vma_spec.events import (
    CpuAccessed,
    DeviceAccessed,
    Event,
    FrameAdded,
    PageCleared,
    PageCopied,
    PageFilled,
    PageWritten,
    Step,
)
from migrate_vma_spec.judge import Judge
from migrate_vma_spec.vocabulary import Capability, VmFlags
from tests.impl.stage import A, B, Stage

__all__ = ["CASES", "A", "B", "Buffer", "Case", "Command", "HmmStage", "Prot", "Subject", "Variant", "case", "write_in_the_child"]

ZERO = 0
"""The contents of the zero page, and of a page that was cleared."""

HUGE = 4
"""Pages of a large folio, where there are any."""

NPAGES = 4
"""A buffer of the selftest that is to be large."""

UNDER_THE_OTHER = "in entry-first the page moves while the other process maps it (C54, C56)"

ROUNDS = 3
"""NTIMES of the selftest."""


class Variant(Enum):
    """FIXTURE_VARIANT of the selftest."""

    PRIVATE = "device_private"
    COHERENT = "device_coherent"


@frozen
class Subject:
    """One parameter set: a generation and a kind of device memory."""

    generation: Generation
    variant: Variant = Variant.PRIVATE

    def make(self, frames: int | None, kernel: Kernel, name: str) -> Driver:
        """The module's device of this kind, adapted where the generation asks it of drivers, and of this size."""
        adapted = Capability.REFILL in self.generation.capabilities
        private = make_test_hmm_adapted if adapted else make_test_hmm
        driver = (make_test_hmm_coherent if self.variant is Variant.COHERENT else private)(kernel, name)
        driver.frames = frames or driver.frames
        return driver

    @property
    def unreferenced(self) -> frozenset[str]:
        """What every fault breaks whose generation takes no reference to its page."""
        protected = {Capability.FAULT_PAGE, Capability.REFILL} & self.generation.capabilities
        return frozenset() if protected else frozenset({"C41"})

    @property
    def moved_while_mapped(self) -> frozenset[str]:
        """What a fault on a page of two processes breaks where the fault path puts in the migration entry of one."""
        entry_first = Capability.REFILL in self.generation.capabilities and self.variant is Variant.PRIVATE
        return frozenset({"C54", "C56"}) if entry_first else frozenset()

    def __str__(self) -> str:
        return f"{self.generation.name}-{self.variant.value}"


# ---- contents --------------------------------------------------------------------------------------------------------


@define
class Contents:
    """What is in every page frame, file page and swap slot, by the trace."""

    frames: dict[int, int] = field(factory=dict)
    stored: dict[tuple[int | None, int], int] = field(factory=dict)
    accesses: list[int] = field(factory=list)
    fresh: int = 0

    def see(self, event: Event) -> None:
        match event:
            case FrameAdded(pfn=pfn):
                self.frames[pfn] = -pfn  # nobody knows what is in it
            case PageCleared(pfn=pfn):
                self.frames[pfn] = ZERO
            case PageCopied(src=src, dst=dst):
                self.frames[dst] = self.frames[src]
            case PageFilled(pfn=pfn, file=file, index=index):
                unwritten = ZERO if file is None else -1000 * (file + 1) - index
                self.frames[pfn] = self.stored.setdefault((file, index), unwritten)
            case PageWritten(pfn=pfn, file=file, index=index):
                self.stored[file, index] = self.frames[pfn]
            case CpuAccessed() | DeviceAccessed():
                self._access(event.pfn, event.write)
            case _:
                pass

    def _access(self, pfn: int | None, write: bool) -> None:
        if write:
            assert pfn is not None, "the zero page is written"
            self.fresh += 1
            self.frames[pfn] = self.fresh
        self.accesses.append(ZERO if pfn is None else self.frames[pfn])


# ---- the stage -------------------------------------------------------------------------------------------------------


@define
class Buffer:
    """struct hmm_buffer: [ptr, ptr + npages) of an address space, and what the device last said of it."""

    hmm: HmmStage
    ptr: int
    npages: int
    mm: Mm = A
    mirror: list[Any] = field(factory=list)
    cpages: int = 0
    faults: int = 0

    def at(self, page: int, npages: int = 1) -> Buffer:
        """A part of it, as where the selftest moves buffer->ptr."""
        return Buffer(self.hmm, self.ptr + page, npages, self.mm)

    def of(self, mm: Mm) -> Buffer:
        """The same addresses in another process."""
        return Buffer(self.hmm, self.ptr, self.npages, mm)

    def store(self) -> list[int]:
        """The CPU writes every page; what it wrote."""
        return [self.hmm.access(self.mm, self.ptr + page, write=True) for page in range(self.npages)]

    def load(self) -> list[int]:
        """The CPU reads every page; what it read."""
        return [self.hmm.access(self.mm, self.ptr + page, write=False) for page in range(self.npages)]

    def cmd(self, command: Command, *, device: int = 0) -> int:
        """hmm_dmirror_cmd: 0 or a negated errno."""
        return self.hmm.cmd(command, self, device)

    def munmap(self) -> None:
        assert self.hmm.call(syscalls.munmap, self.mm, self.ptr, self.ptr + self.npages) == 0

    def mprotect(self, prot: VmFlags) -> None:
        assert self.hmm.call(syscalls.mprotect, self.mm, self.ptr, self.ptr + self.npages, prot) == 0

    def madvise_huge(self, thp: bool) -> None:
        """MADV_HUGEPAGE, or MADV_NOHUGEPAGE."""
        assert self.hmm.call(syscalls.madvise_hugepage, self.mm, self.ptr, self.ptr + self.npages, thp) == 0

    def madvise_free(self) -> None:
        assert self.hmm.call(syscalls.madvise_free, self.mm, self.ptr, self.ptr + self.npages) == 0

    def mremap(self, to: int) -> Buffer:
        """What it is where it has been moved to."""
        assert self.hmm.call(syscalls.mremap, self.mm, self.ptr, self.ptr + self.npages, to) == 0
        return Buffer(self.hmm, to, self.npages, self.mm)


class HmmStage(Stage):
    """A kernel with the driver's devices, which process A has open."""

    size: ClassVar[dict[str, int]] = {"cpus": 2, "system_frames": 12, "addresses": 8, "mms": 2}

    def __init__(self, subject: Subject, *, devices: int = 1, frames: int | None = None, **config: int) -> None:
        self.subject = subject
        self.contents = Contents()
        self.judge = Judge(subject.generation.capabilities)
        self.broken: dict[str, str] = {}
        make: Any = functools.partial(subject.make, frames)
        if "pmd_order" in config:
            config = {"system_frames": 32, **config}
        super().__init__(subject.generation, make, pages=0, devices=devices, **{**self.size, **config})
        for number in range(devices):
            self.open(A, number)

    def say(self, player: Any, event: Event) -> None:
        self.contents.see(event)
        for clause, sentence in self.judge.feed(Step(player.name, player.cpu, event)):
            self.broken[clause] = sentence
        super().say(player, event)

    def call(self, system_call: Any, *values: Any) -> Any:
        return self.run(system_call, self.kernel, *values)

    @property
    def compound(self) -> bool:
        """Whether large folios migrate whole."""
        return self.kernel.thp_migration_supported

    # ---- the selftest's helpers ----

    def open(self, mm: Mm, device: int = 0) -> None:
        """hmm_open."""
        self.run(self.drivers[device].open, mm)

    def mmap(self, npages: int = NPAGES, prot: VmFlags = syscalls.READ_WRITE, *, at: int = 0) -> Buffer:
        """Private anonymous memory."""
        assert self.call(syscalls.mmap, A, at, at + npages, prot) == 0
        return Buffer(self, at, npages)

    def access(self, mm: Mm, addr: int, *, write: bool) -> int:
        """A load or store by the CPU, and what is in the page then."""
        assert self.touch(addr, write=write, mm=mm) == 0
        return self.contents.accesses[-1]

    def cmd(self, command: Command, buffer: Buffer, device: int) -> int:
        before = len(self.contents.accesses)
        driver: Any = self.drivers[device]
        reply: Reply = self.run(driver.ioctl, command, buffer.mm, buffer.ptr, buffer.npages)
        if not reply.ret:
            buffer.cpages, buffer.faults = reply.cpages, reply.faults
            buffer.mirror = list(reply.perm) if command is Command.SNAPSHOT else self.contents.accesses[before:]
        return reply.ret

    def fork(self) -> None:
        """A's child is B, which needs a mirror of its own for its own address space."""
        assert self.call(syscalls.fork, A, B) == 0

    def exit(self, mm: Mm) -> None:
        assert self.call(syscalls.exit, mm) == 0

    def fail(self, what: str) -> None:
        """HMM_DMIRROR_FLAGS with HMM_DMIRROR_FLAG_FAIL_ALLOC: the next allocation fails, of the large folios that are wanted."""
        if self.compound:
            self.answers[what] = [1]

    def forget_files(self) -> None:
        """Every page of a file goes to its medium, and from the page cache."""
        self.run(self.kernel.lru_add_drain_all)
        for file in range(self.kernel.config.files):
            for index in range(self.kernel.config.file_pages):
                self.call(syscalls_files.write_back, file, index)
                self.call(syscalls_files.drop_page, file, index)

    # ---- the end ----

    def close(self) -> None:
        """The device files are closed, which evicts, and every process ends; then nothing may be in use."""
        for driver in self.drivers:
            self.run(driver.evict)
        for number in range(self.kernel.config.mms):
            state: MmState = self.slots[Mm(number)]
            if state.users:
                self.exit(Mm(number))
        self.forget_files()
        assert not any(self.answers.values()), f"nothing failed: {self.answers}"
        in_use = {key.pfn: value.refcount for key, value in self.slots.items() if isinstance(key, Folio) and value.refcount}
        assert in_use == {}
        assert [self.slots[Pgmap(driver.name)].refs for driver in self.drivers] == [0] * len(self.drivers)
        assert [self.slots.get(DriverSlot(driver.name, "in_use"), 0) for driver in self.drivers] == [0] * len(self.drivers)
        self.broken.update(self.judge.end())


def write_in_the_child(buffer: Buffer) -> tuple[list[int], Buffer, list[int]]:
    """A's child has its device write where A's pages are: what it loads before, what the device says, and what it loads after."""
    hmm, child = buffer.hmm, buffer.of(B)
    hmm.fork()
    before = child.load()
    hmm.open(B)
    child.cmd(Command.WRITE)
    after = child.load()
    hmm.exit(B)
    return before, child, after


# ---- the cases -------------------------------------------------------------------------------------------------------


@frozen
class Case:
    """One TEST_F of hmm-tests.c, or a part of it, as it is played here."""

    name: str
    subjects: tuple[Subject, ...]
    devices: int
    large: bool
    note: str


CASES: dict[str, list[Case]] = {}
"""The cases that are played, by the kernel's names for them; filled by `case` as the test modules are imported."""

BOTH = (Variant.PRIVATE, Variant.COHERENT)
EVERY = tuple(GENERATIONS.values())
LARGE = (*EVERY, *COMPOUND_GENERATIONS.values())


def case(
    name: str,
    *,
    variants: tuple[Variant, ...] = BOTH,
    generations: tuple[Generation, ...] = (),
    devices: int = 1,
    note: str = "",
    known: frozenset[str] = frozenset(),
    shared_by_fork: bool = False,
    parts: Iterable[tuple[Any, ...]] = ((),),
    **config: Any,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Play a test of the kernel's in each generation and variant.

    Args:
        name: the kernel's name for it.
        variants: the kinds of device memory.
        generations: the generations; all where none are given, with large folios also those that migrate them whole.
        devices: how many devices there are.
        note: what a reader of the table has to know.
        known: the clauses that it breaks, and has to, by a known fault.
        shared_by_fork: a fault brings back a page that two processes map. Where the fault path installs the migration entry of
            one of them (the mail's alternative), the page migrates under the other.
        parts: what the test is called with besides, each time on a new stage (the loops of the selftest).
        config: what differs in the kernel's Config.
    """
    large = "pmd_order" in config
    rounds = tuple(parts)
    chosen = generations or (LARGE if large else EVERY)
    subjects = tuple(Subject(generation, variant) for variant in variants for generation in chosen)

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        CASES.setdefault(name, []).append(Case(name, subjects, devices, large, note))

        def play(subject: Subject) -> None:
            broken: dict[str, str] = {}
            for arguments in rounds:
                hmm = HmmStage(subject, devices=devices, **config)
                function(hmm, *arguments)
                hmm.close()
                broken.update(hmm.broken)
            due = known | (subject.moved_while_mapped if shared_by_fork else frozenset())
            unknown = {clause: sentence for clause, sentence in broken.items() if clause not in due | subject.unreferenced}
            assert not unknown, unknown
            assert due <= set(broken), f"{sorted(due)} is known, and does not show"

        functools.update_wrapper(play, function)
        del play.__wrapped__  # pytest is to see the parameters of `play`
        return pytest.mark.parametrize("subject", subjects, ids=str)(play)

    return decorate
