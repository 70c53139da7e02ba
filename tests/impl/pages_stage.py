"""Drivers for tests of pages that are taken by others than their process: device-coherent memory, and device-exclusive pages."""

from __future__ import annotations

from typing import ClassVar

from migrate_vma_impl.generations import WAITING
from migrate_vma_impl.machine.containers import FreeList, Mirror, Shared, shared
from migrate_vma_impl.mm import syscalls, syscalls_pin
from migrate_vma_impl.mm.gup_grab import Foll
from migrate_vma_impl.mm.mm_types import MigrateVma, Mm
from migrate_vma_impl.mm.mmap_lock import find_vma
from migrate_vma_impl.mm.mmu_notifier import NotifierRange
from migrate_vma_spec.vocabulary import MIGRATE_PFN_MIGRATE, Errno, Memory, NotifyReason, Select
from tests.impl.stage import A, FakeDriver, Stage

READ, WRITE, PIN, LONGTERM = Foll.NONE, Foll.WRITE, Foll.PIN, Foll.LONGTERM


class Coherent(FakeDriver):
    """Its memory is mapped as system memory is."""

    memory: ClassVar[Memory] = Memory.DEVICE_COHERENT

    async def to_system(self, mm: Mm, start: int, end: int) -> int:
        return await self.bring_back(mm, start, end, Select.DEVICE_COHERENT, self.owner)

    async def bring_back(self, mm: Mm, start: int, end: int, select: Select, owner: str | None) -> int:
        vma = find_vma(await self.kernel.mmap_read_lock(mm), start)
        args = MigrateVma(vma, start, end, [0] * (end - start), [0] * (end - start), owner, select)
        result = await self.kernel.migrate_vma_setup(args)
        if not result:
            await self.fill(args.src, args.dst, device=False)
            await self.kernel.migrate_vma_pages(args)
            result = sum(bool(entry & MIGRATE_PFN_MIGRATE) for entry in args.src)
            await self.kernel.migrate_vma_finalize(args)
        await self.kernel.mmap_read_unlock(mm)
        return result


class Taker(FakeDriver):
    """Takes pages for itself, and lets go of them when it is told to."""

    state: ClassVar[Shared] = shared(free=FreeList(), mirror=Mirror())

    async def exclusive(self, mm: Mm, start: int, end: int) -> int:
        vmas = await self.kernel.mmap_read_lock(mm)
        result = end - start
        for addr in range(start, end):
            made = await self.kernel.make_device_exclusive(mm, vmas, addr, self.owner)
            if isinstance(made, Errno):
                result = -made
                break
            page, folio = made
            await self.state.mirror.map(mm, addr, page, write=True)
            await self.kernel.folio_unlock(folio)
            await self.kernel.folio_put(folio)
        await self.kernel.mmap_read_unlock(mm)
        return result

    async def check_exclusive(self, mm: Mm, addr: int) -> int:
        return -Errno.EPERM if await self.state.mirror.lookup(mm, addr) else 0

    async def invalidate(self, range_: NotifierRange) -> None:
        if range_.reason is NotifyReason.EXCLUSIVE and range_.owner == self.owner:
            return
        await self.kernel.mmu_interval_set_seq(self.name, range_.mm)
        await self.state.mirror.unmap_range(range_.mm, range_.start, range_.end)


class CoherentTaker(Taker):
    memory: ClassVar[Memory] = Memory.DEVICE_COHERENT


class PagesStage(Stage):
    """With the operations that take and drop pages."""

    def __init__(self, driver: type[FakeDriver] | None = None, **config: int) -> None:
        super().__init__(WAITING, driver, **{"system_frames": 6, **config})
        if driver is not None:
            self.run(self.driver.open, A)

    def take(self, start: int, end: int, flags: Foll, *, mm: Mm = A, fast: bool = False) -> tuple[int | None, ...]:
        """The frames of the pages that were taken; None for the zero page."""
        self.taken = self.run(take, self.kernel, mm, start, end, flags, fast)
        return tuple(None if page is None else page.pfn for page in self.taken)

    def drop(self, flags: Foll) -> None:
        """What was taken last."""
        self.run(syscalls_pin.drop_user_pages, self.kernel, self.taken, flags)

    def fork(self, child: Mm) -> int:
        return self.run(syscalls.fork, self.kernel, A, child)

    def settle(self) -> None:
        """No reference is left in a batch of this CPU."""
        self.run(self.kernel.lru_add_drain)


def on_coherent_device() -> PagesStage:
    """Page 0 was written, and lives on a coherent device."""
    stage = PagesStage(Coherent)
    stage.touch(0, write=True)
    stage.settle()
    assert stage.to_device() == 1
    assert stage.pte(0).pfn == 100
    return stage


async def take(kernel, mm, start, end, flags, fast):
    return await syscalls_pin.take_user_pages(kernel, mm, start, end, flags, fast=fast)
