"""A stage for tests of the simulated kernel: operations run to their end one after the other, or are stepped by hand.

It executes traps directly on a dictionary of slots, and shares nothing with the machine of the explorer.
"""

from __future__ import annotations

from typing import Any, ClassVar

from migrate_vma_impl.driver import Driver
from migrate_vma_impl.generations import Generation
from migrate_vma_impl.kernel import Config, Kernel
from migrate_vma_impl.machine.containers import FreeList, Shared, shared
from migrate_vma_impl.machine.traps import ME, Kind, ThisCpu, Trap
from migrate_vma_impl.mm import syscalls
from migrate_vma_impl.mm.mm_types import FaultContext, Folio, FolioState, MigrateVma, Mm, PteSlot, Vma
from migrate_vma_impl.mm.mmap_lock import find_vma
from migrate_vma_impl.workqueue import process_one_work
from migrate_vma_spec.events import Oops
from migrate_vma_spec.vocabulary import MIGRATE_PFN_MIGRATE, MIGRATE_PFN_WRITE, Pte, Select, VmFault, VmFlags, migrate_pfn

A, B = Mm(0), Mm(1)
DEVICE_PAGE = Folio(100)
VMA = Vma(A, 0, 2, syscalls.READ_WRITE, 0)
"""What a stage of two pages has mapped."""


class Stopped(Exception):
    """The kernel oopsed."""


class Player:
    """A task that is stepped by hand."""

    def __init__(self, stage: Stage, name: str, cpu: int, coroutine: Any) -> None:
        self.stage, self.name, self.cpu, self.coroutine = stage, name, cpu, coroutine
        self.result: Any = None
        self.ended = False
        self.trap: Trap | None = None
        self._resume(None)

    def _resume(self, answer: Any) -> None:
        """Go on to the next trap that is no note."""
        while True:
            try:
                self.trap = self.coroutine.send(answer)
            except StopIteration as stop:
                self.ended, self.result, self.trap = True, stop.value, None
                return
            if self.trap.kind is not Kind.NOTE:
                return
            self.stage.say(self, self.trap.args[0])
            answer = None

    def step(self) -> bool:
        """One step; False if the task has to wait."""
        trap = self.trap
        assert trap is not None, f"{self.name} has ended"
        args = tuple(self.name if arg is ME else arg for arg in trap.args)
        if trap.kind is Kind.CHOICE:
            args = (*args, self.stage.choose(args[0]))
        keys = [key.make(self.cpu) if isinstance(key, ThisCpu) else key for key in trap.keys]
        outcome = trap.effect(*(self.stage.slots[key] for key in keys), *args)
        if outcome is None:
            return False
        values, answer, event = outcome
        assert len(values) == len(keys)
        for key, value in zip(keys, values, strict=True):
            hash(value)
            self.stage.slots[key] = value
        self.stage.say(self, event)
        self._resume(answer)
        return True

    def until(self, kind: type, **fields: Any) -> Any:
        """Step until the task says an event of this kind with these fields; the event."""
        while True:
            seen = len(self.stage.trace)
            assert self.step(), f"{self.name} waits and has not said {kind.__name__}"
            for event in self.stage.trace[seen:]:
                if isinstance(event, kind) and all(getattr(event, name) == value for name, value in fields.items()):
                    return event

    def block(self) -> None:
        """Step until the task has to wait."""
        while self.step():
            assert not self.ended, f"{self.name} ended without waiting"

    def finish(self) -> Any:
        while not self.ended:
            assert self.step(), f"{self.name} waits for ever at {self.trap}"
        return self.result


class Stage:
    """A kernel with one device (and a second one on request), booted, with [0, pages) mapped in address space A."""

    def __init__(
        self, generation: Generation, driver: type[FakeDriver] | None = None, *, pages: int = 2, devices: int = 1, **config: int
    ) -> None:
        self.kernel = Kernel(generation, Config(**config))
        self.drivers = [(driver or FakeDriver)(self.kernel, f"dev{number}") for number in range(devices)]
        for each in self.drivers:
            self.kernel.attach(each)
        self.slots = self.kernel.slots()
        self.trace: list[Any] = []
        self.answers: dict[str, list[int]] = {}
        self.run(self.kernel.boot)
        if pages:
            self.run(syscalls.mmap, self.kernel, A, 0, pages)
        self.players: list[Player] = []

    @property
    def driver(self) -> FakeDriver:
        return self.drivers[0]

    def say(self, player: Player, event: Any) -> None:
        self.trace.append(event)
        if isinstance(event, Oops):
            raise Stopped(event.what)

    def choose(self, what: str) -> int:
        asked = self.answers.get(what)
        return asked.pop(0) if asked else 0

    def start(self, name: str, function: Any, *values: Any, cpu: int = 0) -> Player:
        return Player(self, name, cpu, function(*values))

    def run(self, function: Any, *values: Any, cpu: int = 0) -> Any:
        """Alone, to its end, with the CPUs' workers where it waits for them."""
        player = self.start("main", function, *values, cpu=cpu)
        while not player.ended:
            if not player.step():
                self._work()
        return player.result

    def _work(self) -> None:
        cpus = range(self.kernel.config.cpus)
        workers = [self.start(f"kworker{cpu}", process_one_work, self.kernel, cpu, cpu=cpu) for cpu in cpus]
        busy = [worker for worker in workers if worker.step()]
        assert busy, "nobody can run"
        for worker in busy:
            worker.finish()
        for worker in workers:
            worker.coroutine.close()

    def touch(self, addr: int, *, write: bool, mm: Mm = A, cpu: int = 0) -> int:
        return self.run(syscalls.touch, self.kernel, mm, addr, write, cpu=cpu)

    def pte(self, addr: int, mm: Mm = A) -> Pte:
        return self.slots[PteSlot(mm.number, addr)]

    def folio(self, pfn: int) -> FolioState:
        return self.slots[Folio(pfn)]

    def said(self, kind: type, since: int = 0) -> list[Any]:
        return [event for event in self.trace[since:] if isinstance(event, kind)]

    def to_device(self, start: int = 0, end: int = 1, mm: Mm = A) -> int:
        return self.run(self.driver.to_device, mm, start, end)


class FakeDriver(Driver):
    """The smallest driver that keeps the contract in every generation."""

    frames: ClassVar[int] = 3
    state: ClassVar[Shared] = shared(free=FreeList())
    result: ClassVar[VmFault] = VmFault.NONE

    async def migrate_to_ram(self, vmf: FaultContext) -> VmFault:
        args = MigrateVma(vmf.vma, vmf.address, vmf.address + 1, [0], [0], self.owner, Select.DEVICE_PRIVATE, vmf.page)
        if await self.kernel.migrate_vma_setup(args):
            return VmFault.SIGBUS
        await self.kernel.refill_fault_entry(args, vmf)
        short = args.cpages and not await self.fill(args.src, args.dst, device=False)
        await self.kernel.migrate_vma_pages(args)
        await self.kernel.migrate_vma_finalize(args)
        return VmFault.OOM if short else self.result

    async def fill(self, src: list[int], dst: list[int], *, device: bool) -> bool:
        """Destinations for what migrates; False if memory was short."""
        for i, entry in enumerate(src):
            if not entry & MIGRATE_PFN_MIGRATE:
                continue
            page = await self._page(device)
            if page is None:
                return False
            source = self.kernel.migrate_pfn_to_folio(entry)
            if source is None:
                await self.kernel.clear_highpage(page)
            else:
                await self.kernel.copy_highpage(page, source)
            dst[i] = migrate_pfn(page.pfn) | entry & MIGRATE_PFN_WRITE
        return True

    async def _page(self, device: bool) -> Folio | None:
        if device:
            page = await self.state.free.pop()
            if page is not None:
                await self.kernel.zone_device_page_init(page)
            return page
        page = await self.kernel.alloc_page("system page")
        if page is not None:
            await self.kernel.folio_lock(page)
        return page

    async def to_device(self, mm: Mm, start: int, end: int) -> int:
        vma = find_vma(await self.kernel.mmap_read_lock(mm), start)
        args = MigrateVma(vma, start, end, [0] * (end - start), [0] * (end - start), self.owner, Select.SYSTEM)
        result = await self.kernel.migrate_vma_setup(args)
        if not result:
            await self.fill(args.src, args.dst, device=True)
            await self.kernel.migrate_vma_pages(args)
            result = sum(bool(entry & MIGRATE_PFN_MIGRATE) for entry in args.src)
            await self.kernel.migrate_vma_finalize(args)
        await self.kernel.mmap_read_unlock(mm)
        return result

    async def evict(self) -> int:
        pfns = [folio.pfn for folio in self.folios]
        src, dst = [0] * len(pfns), [0] * len(pfns)
        await self.kernel.migrate_device_range(src, pfns[0], len(pfns))
        await self.fill(src, dst, device=False)
        await self.kernel.migrate_device_pages(src, dst, len(pfns))
        moved = sum(bool(entry & MIGRATE_PFN_MIGRATE) for entry in src)
        await self.kernel.migrate_device_finalize(src, dst, len(pfns))
        return moved

    async def folio_free(self, folio: Folio) -> None:
        await self.state.free.push(folio)


READ_ONLY = VmFlags.READ
