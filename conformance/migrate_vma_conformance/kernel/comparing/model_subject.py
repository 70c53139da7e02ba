"""The reference model as a subject: what it allows every operation to answer, from the contents and the VMAs alone.

Rules:
- It does not know where a page is, nor what a device has in its page table: it says of contents and permissions what each answer
  must be, and of the rest nothing. How answers come about is judged where there is a trace (`core_subject.CoreSubject.watch`).
- It follows a run: where an operation may be answered in more than one way, what it expects next is what follows from the answer.
"""

from __future__ import annotations

from collections.abc import Iterable

from migrate_vma_conformance.kernel import commands as ops
from migrate_vma_conformance.kernel.commands import Advice, Command, Kind, Protection
from migrate_vma_conformance.kernel.comparing.expectation import ANYTHING, Bytes, Expectation
from migrate_vma_conformance.kernel.comparing.model_memory import ModelMemory
from migrate_vma_conformance.kernel.comparing.operations import NOT_OPEN, Observation, Sequence
from migrate_vma_spec import events as ev
from migrate_vma_spec.vocabulary import PTE_NONE, Errno, VmFlags

SIGSEGV = 11
_THE_FILE = 0
_PROTECTIONS = {
    Protection.NONE: VmFlags.NONE,
    Protection.READ: VmFlags.READ,
    Protection.WRITE: VmFlags.READ | VmFlags.WRITE,
}
_NAMES = {
    Advice.DONTNEED: "madvise_dontneed",
    Advice.FREE: "madvise_free",
    Advice.COLD: "madvise_cold",
    Advice.PAGEOUT: "pageout",
    Advice.HUGEPAGE: "madvise_hugepage",
    Advice.NOHUGEPAGE: "madvise_hugepage",
}


class ModelSubject:
    """The reference model of the contract, which knows of no kernel."""

    name = "model"

    def follow(self, sequence: Sequence, seen: Iterable[Observation]) -> tuple[Expectation, ...]:
        """What each operation of the sequence may be observed as, those before it having been observed so."""
        life = _Life()
        return tuple(life.expect(operation, answer) for operation, answer in zip(sequence, seen, strict=True))


class _Life:
    def __init__(self) -> None:
        self._memory = ModelMemory()
        self._opened: set[tuple[int, int]] = set()
        self._files = _THE_FILE
        self._memory.say(ev.MmCreated(0))

    def expect(self, operation: Command, seen: Observation) -> Expectation:
        if isinstance(operation, ops.DeviceAccess):
            return self._device(operation, seen)
        match operation:
            case ops.Load(process, page):
                found = self._memory.bytes_in(process, page)
                self._memory.operation("read", (process, page))
                return _killed() if found is None else Expectation(_ONLY_ZERO, value=found)
            case ops.Store(process, page, value):
                return self._store(process, page, value)
            case ops.Open(process, device):
                self._opened.add((process, device))
                return Expectation(_ONLY_ZERO)
            case ops.Fork() | ops.Exit():
                return self._process(operation)
            case _:
                results = self._system_call(operation, seen.result or 0)
                return Expectation(results) if results else ANYTHING

    # ---- user space --------------------------------------------------------------------------------------------------

    def _store(self, process: int, page: int, value: int) -> Expectation:
        if not self._memory.may_write(process, page):
            return _killed()
        self._memory.store(process, page, frozenset({value}))
        return Expectation(_ONLY_ZERO)

    def _process(self, operation: ops.Fork | ops.Exit) -> Expectation:
        memory, process = self._memory, operation.process
        if isinstance(operation, ops.Fork):
            child = operation.child
            inherited = memory.inherited(process, child)
            return Expectation(memory.operation("fork", (process, child), ev.MmForked(process, child), *inherited))
        self._opened = {pair for pair in self._opened if pair[0] != process}
        return Expectation(memory.operation("exit", (process,), ev.MmExited(process)))

    def _system_call(self, operation: Command, seen: int) -> frozenset[int]:
        """The allowed results; none where the model knows nothing of it."""
        memory = self._memory
        match operation:
            case ops.Map(process, first, count):
                return self._map(operation)
            case ops.Unmap(process, first, count):
                gone = (*memory.cleared(process, first, first + count), ev.VmaUnmapped(process, first, first + count))
                return memory.operation("munmap", (process, first, first + count), *gone)
            case ops.Protect(process, first, count, protection):
                return self._protect(process, first, first + count, _PROTECTIONS[protection])
            case ops.Advise(process, first, count, advice) if advice in _NAMES:
                return self._advise(process, first, first + count, advice)
            case ops.Remap(process, first, count, to):
                return self._remap(process, first, first + count, to, seen)
            case _:
                return frozenset()

    def _map(self, operation: ops.Map) -> frozenset[int]:
        mm, start, end = operation.process, operation.first, operation.first + operation.count
        flags, kind = _PROTECTIONS[operation.protection], operation.kind
        flags |= VmFlags.SHARED if kind in (Kind.SHARED, Kind.FILE) else VmFlags.NONE
        flags |= VmFlags.HUGEPAGE if kind is Kind.HUGE else VmFlags.NONE
        file = None
        if kind in (Kind.FILE, Kind.FILE_PRIVATE):
            file = _THE_FILE
        elif kind is Kind.SHARED:
            self._files += 1
            file = self._files
        index = start if file == _THE_FILE else 0
        self._memory.say(*self._memory.cleared(mm, start, end), ev.VmaUnmapped(mm, start, end))
        self._memory.say(ev.VmaMapped(mm, start, end, flags, file is None, file, index))
        return _ONLY_ZERO

    def _protect(self, mm: int, start: int, end: int, protection: VmFlags) -> frozenset[int]:
        """Up to the first gap the permissions change, whatever the answer is."""
        name, arguments = "mprotect", (mm, start, end, int(protection))
        self._memory.say(ev.OperationBegan(name, arguments))
        results = self._memory.results(name)
        keep = ~(VmFlags.READ | VmFlags.WRITE)
        for first, last, flags in self._memory.unbroken(mm, start, end):
            self._memory.say(ev.VmaChanged(mm, first, last, flags & keep | protection))
        self._memory.say(ev.OperationEnded(name, min(results)))
        return results

    def _advise(self, mm: int, start: int, end: int, advice: Advice) -> frozenset[int]:
        """What is mapped is advised, gaps or no gaps, up to a VMA that the advice is not for."""
        name, memory = _NAMES[advice], self._memory
        memory.say(ev.OperationBegan(name, (mm, start, end)))
        results = memory.results(name)
        if advice is Advice.DONTNEED:
            for first, last, _ in memory.pieces(mm, start, end):
                memory.say(*memory.cleared(mm, first, last))
        if advice is Advice.FREE:
            self._free(mm, start, end)
        memory.say(ev.OperationEnded(name, min(results)))
        return results

    def _free(self, mm: int, start: int, end: int) -> None:
        for first, last, _ in self._memory.pieces(mm, start, end):
            vma = self._memory.world.vma(mm, first)
            if vma is None or not vma.anonymous:
                return
            for addr in range(first, last):
                pfn = self._memory.world.pte(mm, addr).pfn
                if pfn is not None:
                    self._memory.say(ev.FolioLazyfreed(pfn))

    def _remap(self, mm: int, start: int, end: int, to: int, seen: int) -> frozenset[int]:
        name, arguments, memory = "mremap", (mm, start, end, to), self._memory
        by = to - start
        memory.say(ev.OperationBegan(name, arguments))
        results = memory.results(name)
        if not seen and 0 in results:
            moved = [(addr, memory.world.pte(mm, addr)) for addr in range(start, end)]
            memory.say(*memory.cleared(mm, to, end + by), ev.VmaUnmapped(mm, to, end + by), ev.VmaMoved(mm, start, end, to))
            memory.say(*(ev.PteChanged(mm, addr + by, PTE_NONE, pte) for addr, pte in moved if pte.pfn is not None))
            memory.say(*memory.cleared(mm, start, end))
        memory.say(ev.OperationEnded(name, min(results, default=0)))
        return results

    # ---- devices -----------------------------------------------------------------------------------------------------

    def _device(self, operation: ops.DeviceAccess, seen: Observation) -> Expectation:
        if (operation.process, operation.device) not in self._opened:
            return Expectation(frozenset({NOT_OPEN}))
        if not operation.count:
            return Expectation(frozenset({-Errno.EINVAL}))
        match operation:
            case ops.DeviceRead():
                found = self._found(operation)
                return _REFUSED if found is None else Expectation(_ONLY_ZERO, data=found)
            case ops.DeviceWrite():
                return self._write(operation, seen)
            case ops.ToDevice() | ops.Exclusive():
                found = self._found(operation)
                return _REFUSED if found is None else Expectation(_ONLY_ZERO, errors=True, data=found)
            case ops.ToSystem():
                return _REFUSED if self._found(operation) is None else Expectation(_ONLY_ZERO)
            case ops.Snapshot(process, _, first, count):
                pages = range(first, first + count)
                return Expectation(_ONLY_ZERO, writable=tuple(self._memory.may_write(process, page) for page in pages))
            case ops.CheckExclusive():
                return Expectation(frozenset({0, -Errno.EPERM}))
            case _:
                return Expectation(_ONLY_ZERO)

    def _found(self, operation: ops.DeviceAccess) -> tuple[Bytes, ...] | None:
        """What may be found in each of the pages, or None where not all of them may be read."""
        pages = range(operation.first, operation.first + operation.count)
        found = [self._memory.bytes_in(operation.process, page) for page in pages]
        return None if None in found else tuple(each for each in found if each is not None)

    def _write(self, operation: ops.DeviceWrite, seen: Observation) -> Expectation:
        """A write that is refused may have reached some of the pages; one of pages that are shared in the device is refused."""
        may: list[bool] = []
        for offset in range(operation.count):
            process, page = operation.process, operation.first + offset
            before = self._memory.bytes_in(process, page) or frozenset()
            may.append(self._memory.may_write(process, page))
            if may[-1]:
                new = frozenset({(operation.value + offset) % 256})
                self._memory.store(process, page, new | before if seen.result else new)
        return Expectation(_ONLY_ZERO if all(may) else frozenset(), errors=True)


_ONLY_ZERO = frozenset({0})
_REFUSED = Expectation(frozenset(), errors=True)


def _killed() -> Expectation:
    return Expectation(frozenset(), signals=frozenset({SIGSEGV}))
