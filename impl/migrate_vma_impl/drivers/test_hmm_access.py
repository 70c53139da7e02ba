"""What the pretended device of lib/test_hmm.c does with memory: loads, stores, snapshots, exclusive access, and its page table.

Rules and liberties:
- The mutex guards the mirror (the page table of the pretended device).
- A device access looks up the mirror and reaches the memory in one step; the kernel's two steps are under the mutex.
- hmm_range_fault has no time-out here: time is no argument for progress.
- An entry for exclusive access is no writable one: a store through it is a device fault, as there, which ends the exclusivity.
- Exclusive access is taken page by page, as in 7.3; 6.1 takes a window at once (`test_hmm_shipped`).
- A snapshot subscribes to nothing of its own. In the kernel it does, so that invalidations which the mirror ignores (its own
  migrations) make it begin again as well; here those leave it as it is, which no answer of the selftest depends on.
- An ioctl answers all that the kernel writes back. The operations of a scenario are the same commands, and answer one number.
"""

from __future__ import annotations

import enum
from typing import ClassVar

from attrs import frozen

from migrate_vma_impl.driver import Driver
from migrate_vma_impl.machine.containers import Lock, Mirror, Shared, shared
from migrate_vma_impl.mm.hmm_types import HmmPfn, HmmRange
from migrate_vma_impl.mm.mm_types import Folio, Mm, Vma
from migrate_vma_impl.mm.mmu_notifier import NotifierRange
from migrate_vma_spec.vocabulary import Errno, NotifyReason

FAULT_WINDOW = 32
"""Pages in one hmm_range_fault of the ioctls (64 before 7.2)."""


class Prot(enum.IntFlag):
    """What a snapshot says of a page: HMM_DMIRROR_PROT_* of lib/test_hmm_uapi.h."""

    NONE = 0x00
    READ = 0x01
    WRITE = 0x02
    PMD = 0x04
    ZERO = 0x10
    DEV_PRIVATE_LOCAL = 0x20
    DEV_PRIVATE_REMOTE = 0x30
    DEV_COHERENT_LOCAL = 0x40
    DEV_COHERENT_REMOTE = 0x50
    ERROR = 0xFF


@frozen
class Reply:
    """struct hmm_dmirror_cmd as it comes back: 0 or a negated errno, pages copied, device faults, and a snapshot's bytes."""

    ret: int = 0
    cpages: int = 0
    faults: int = 0
    perm: tuple[Prot, ...] = ()

    @property
    def number(self) -> int:
        """What the command comes to as an operation of a scenario that counts pages."""
        return self.ret or self.cpages


class DmirrorAccess(Driver):
    """struct dmirror: the mirror of each address space that has opened the device, and what goes through it."""

    state: ClassVar[Shared] = shared(mutex=Lock(), mirror=Mirror())
    erases_one_more: ClassVar[bool] = False
    """dmirror_do_update as it is (6.1 to 7.3): it erases the entry behind the range as well (xa_for_each_range)."""
    stores_device_pages: ClassVar[bool] = False
    """dmirror_do_fault as it is shipped (6.1 to 7.3): of a page of the device itself it stores the page that the entry
    names, and not the page that backs it.
    """

    async def invalidate(self, range_: NotifierRange) -> None:
        """dmirror_interval_invalidate: its own migrations see to the mirror themselves."""
        if range_.reason is NotifyReason.MIGRATE and range_.owner == self.owner:
            return
        await self.state.mutex.lock()
        await self.kernel.mmu_interval_set_seq(self.name, range_.mm)
        await self.state.mirror.unmap_range(range_.mm, range_.start, range_.end + self.erases_one_more)
        await self.state.mutex.unlock()

    # ---- loads and stores: dmirror_read, dmirror_write ---------------------------------------------------------------------

    async def device_read(self, mm: Mm, addr: int, pages: int = 1) -> int:
        """HMM_DMIRROR_READ."""
        return (await self._access(mm, addr, addr + pages, write=False)).ret

    async def device_write(self, mm: Mm, addr: int, pages: int = 1) -> int:
        """HMM_DMIRROR_WRITE."""
        return (await self._access(mm, addr, addr + pages, write=True)).ret

    async def _access(self, mm: Mm, start: int, end: int, *, write: bool, unlocked: bool = False) -> Reply:
        """Page after page; where the mirror has none, what is left of the range is faulted in."""
        faults, addr = 0, start
        while True:
            addr = await self._try_access(mm, addr, end, write=write)
            if addr == end:
                return Reply(cpages=end - start, faults=faults)
            result = await self._fault(mm, addr, end, write=write, unlocked=unlocked)
            if result:
                return Reply(result)
            faults += 1

    async def _try_access(self, mm: Mm, start: int, end: int, *, write: bool) -> int:
        """dmirror_do_read, dmirror_do_write: the first page that the mirror does not have, or `end`."""
        addr = start
        await self.state.mutex.lock()
        while addr < end and await self.state.mirror.access(mm, addr, write=write):
            addr += 1
        await self.state.mutex.unlock()
        return addr

    async def _read_back(self, mm: Mm, start: int, end: int) -> Reply:
        """What a migration to the device, or exclusive access, reads of the range: -ENOENT where the mirror has a gap."""
        addr = await self._try_access(mm, start, end, write=False)
        return Reply(cpages=end - start) if addr == end else Reply(-Errno.ENOENT)

    # ---- device faults: dmirror_fault --------------------------------------------------------------------------------------

    async def _fault(self, mm: Mm, start: int, end: int, *, write: bool, unlocked: bool) -> int:
        """dmirror_fault, dmirror_fault_unlocked: -EFAULT where the address space is gone."""
        if not await self.kernel.mmget_not_zero(mm):
            return -Errno.EFAULT
        result, range_fault = 0, self._range_fault_unlocked if unlocked else self._range_fault
        for addr in range(start, end, FAULT_WINDOW):
            result = await range_fault(mm, addr, min(end, addr + FAULT_WINDOW), write=write)
            if result:
                break
        await self.kernel.mmput(mm)
        return result

    async def _range_fault(self, mm: Mm, start: int, end: int, *, write: bool) -> int:
        """dmirror_range_fault: again, where an invalidation came in between."""
        result = -Errno.EBUSY
        while result == -Errno.EBUSY:
            await self.kernel.mmu_interval_read_begin(self.name, mm)
            vmas = await self.kernel.mmap_read_lock(mm)
            range_ = HmmRange(self.name, mm, vmas, start, end, write=write, dev_private_owner=self.owner)
            result = await self.kernel.hmm_range_fault(range_)
            await self.kernel.mmap_read_unlock(mm)
            if not result:
                result = await self._map_found(range_)
        return result

    async def _range_fault_unlocked(self, mm: Mm, start: int, end: int, *, write: bool) -> int:
        """dmirror_range_fault_unlocked (7.3): the faults of the walk may drop mmap_lock."""
        result = -Errno.EBUSY
        while result == -Errno.EBUSY:
            range_ = HmmRange(self.name, mm, (), start, end, write=write, dev_private_owner=self.owner)
            result = await self.kernel.hmm_range_fault_unlocked(range_)
            if not result:
                result = await self._map_found(range_)
        return result

    async def _map_found(self, range_: HmmRange) -> int:
        """What was found goes into the mirror, unless it is stale."""
        await self.state.mutex.lock()
        stale = await self.kernel.mmu_interval_read_retry(self.name, range_.mm)
        result = -Errno.EBUSY if stale else await self._do_fault(range_)
        await self.state.mutex.unlock()
        return result

    async def _do_fault(self, range_: HmmRange) -> int:
        """dmirror_do_fault: -EFAULT for a page that cannot be written, one of the device's own behind a read-only entry."""
        for i, found in enumerate(range_.hmm_pfns):
            if range_.write and not found.write:
                return -Errno.EFAULT
            bare = self.stores_device_pages and found.folio is not None and self.kernel.is_device_private(found.folio)
            await self.state.mirror.map(range_.mm, range_.start + i, found.folio, found.write, bare=bare)
        return 0

    # ---- snapshots: dmirror_snapshot ---------------------------------------------------------------------------------------

    async def snapshot(self, mm: Mm, start: int, end: int) -> int:
        """HMM_DMIRROR_SNAPSHOT."""
        return (await self._snapshot(mm, start, end)).number

    async def _snapshot(self, mm: Mm, start: int, end: int) -> Reply:
        if not await self.kernel.mmget_not_zero(mm):
            return Reply(-Errno.EINVAL)
        perm: tuple[Prot, ...] = ()
        for addr in range(start, end, FAULT_WINDOW):
            perm += await self._range_snapshot(mm, addr, min(end, addr + FAULT_WINDOW))
        await self.kernel.mmput(mm)
        return Reply(cpages=end - start, perm=perm)

    async def _range_snapshot(self, mm: Mm, start: int, end: int) -> tuple[Prot, ...]:
        """dmirror_range_snapshot. A walk that asks for no fault fails only where an invalidation came in between."""
        while True:
            await self.kernel.mmu_interval_read_begin(self.name, mm)
            vmas = await self.kernel.mmap_read_lock(mm)
            range_ = HmmRange(self.name, mm, vmas, start, end, fault=False, dev_private_owner=self.owner)
            await self.kernel.hmm_range_fault(range_)
            await self.kernel.mmap_read_unlock(mm)
            await self.state.mutex.lock()
            stale = await self.kernel.mmu_interval_read_retry(self.name, mm)
            await self.state.mutex.unlock()
            if not stale:
                return tuple(self._mkentry(found) for found in range_.hmm_pfns)

    def _mkentry(self, found: HmmPfn) -> Prot:
        """dmirror_mkentry, which knows the small zero page alone (is_zero_pfn): a huge one is any page of the system."""
        if found.error:
            return Prot.ERROR
        if not found.valid:
            return Prot.NONE
        access = Prot.WRITE if found.write else Prot.READ
        if found.order:
            return (Prot.NONE if found.folio is None else self._kind(found.folio)) | access | Prot.PMD
        return self._kind(found.folio) | access

    def _kind(self, folio: Folio | None) -> Prot:
        """Whose memory a page is, where it is no system memory."""
        if folio is None:
            return Prot.ZERO
        if not self.kernel.is_zone_device(folio):
            return Prot.NONE
        local = self.kernel.owner_of(folio) == self.owner
        if self.kernel.is_device_private(folio):
            return Prot.DEV_PRIVATE_LOCAL if local else Prot.DEV_PRIVATE_REMOTE
        return Prot.DEV_COHERENT_LOCAL if local else Prot.DEV_COHERENT_REMOTE

    # ---- exclusive access: dmirror_exclusive, dmirror_check_atomic ---------------------------------------------------------

    async def exclusive(self, mm: Mm, start: int, end: int) -> int:
        """HMM_DMIRROR_EXCLUSIVE."""
        return (await self._exclusive(mm, start, end)).number

    async def _exclusive(self, mm: Mm, start: int, end: int) -> Reply:
        """Page after page, up to the first that is not to be had; then a read of all."""
        if not await self.kernel.mmget_not_zero(mm):
            return Reply(-Errno.EINVAL)
        vmas = await self.kernel.mmap_read_lock(mm)
        result, addr = 0, start
        while not result and addr < end:
            result = await self._take_exclusive(mm, vmas, addr)
            addr += 1
        await self.kernel.mmap_read_unlock(mm)
        await self.kernel.mmput(mm)
        return Reply(result) if result else await self._read_back(mm, start, end)

    async def _take_exclusive(self, mm: Mm, vmas: tuple[Vma, ...], addr: int) -> int:
        """dmirror_atomic_map, while the folio's lock keeps CPUs from taking the page back."""
        made = await self.kernel.make_device_exclusive(mm, vmas, addr)
        if isinstance(made, Errno):
            return -made
        page, folio = made
        await self.state.mutex.lock()
        await self.state.mirror.map(mm, addr, page, write=False, atomic=True)
        await self.state.mutex.unlock()
        await self.kernel.folio_unlock(folio)
        await self.kernel.folio_put(folio)
        return 0

    async def check_exclusive(self, mm: Mm, addr: int, pages: int = 1) -> int:
        """HMM_DMIRROR_CHECK_EXCLUSIVE: -EPERM while the device has one of the pages for itself, 0 when it has none."""
        return await self._check_atomic(mm, addr, addr + pages)

    async def _check_atomic(self, mm: Mm, start: int, end: int) -> int:
        for addr in range(start, end):
            entry = await self.state.mirror.lookup(mm, addr)
            if entry is not None and entry.atomic:
                return -Errno.EPERM
        return 0
