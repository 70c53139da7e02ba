"""The calls that drivers make to migrate pages to and from their memory: mm/migrate_device.c (7.3).

    migrate_vma_setup -> (the driver fills dst and copies) -> migrate_vma_pages -> migrate_vma_finalize
    migrate_device_range / _pfns -> (the same) -> migrate_device_pages -> migrate_device_finalize   (migrate_device_by_pfn.py)

Rules:
- Addresses are page numbers, so masking start and end (the kernel's first step) changes nothing; the order of the checks is the
  kernel's.
- After setup, an entry with VALID stands for a page whose lock and one reference the library holds; what could not be taken is
  restored, unlocked, put, and 0. With the fault page the lock may be the fault handler's (`fault_page_locked`).
- Lock, references and mappings are those of the page's folio. A large one has one entry, its first page's, with COMPOUND; those
  of its other pages are 0.
- An array too short for what would be stored in it, or an entry that names no page frame, is memory corruption in the kernel;
  here the machine stops and says so.
- `call` numbers the migrations that a task has in flight, for the trace alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.traps import Outcome
from migrate_vma_impl.mm import swap
from migrate_vma_impl.mm.folio import folio_get, folio_nr_pages, folio_unlock, page_folio
from migrate_vma_impl.mm.migrate_device_collect import folio_of_fault, locked_by_fault
from migrate_vma_impl.mm.migrate_device_pages import device_pages
from migrate_vma_impl.mm.mm_types import Folio, FolioState, MigrateVma
from migrate_vma_spec.events import (
    FinalizeCalled,
    FinalizeReturned,
    FolioChecked,
    FolioRead,
    PagesCalled,
    PagesReturned,
    SetupCalled,
    SetupReturned,
)
from migrate_vma_spec.vocabulary import (
    MIGRATE_PFN_COMPOUND,
    MIGRATE_PFN_MIGRATE,
    VM_SPECIAL,
    Errno,
    Lru,
    VmFlags,
    migrate_pfn_to_pfn,
)

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel


def _entries(array: list[int] | None) -> tuple[int, ...] | None:
    return None if array is None else tuple(array)


async def too_short(npages: int, *arrays: list[int]) -> bool:
    """Stop the machine where the kernel would run past the end of an array."""
    for array in arrays:
        if len(array) < npages:
            await traps.oops(f"an array of {len(array)} migration entries is used for {npages} pages")
            return True
    return False


async def _malformed(kernel: Kernel, npages: int, *arrays: list[int]) -> bool:
    """As `too_short`, and where the kernel would take a page struct from nowhere."""
    if await too_short(npages, *arrays):
        return True
    for array in arrays:
        for entry in array[:npages]:
            pfn = migrate_pfn_to_pfn(entry)
            if pfn is not None and not kernel.has_frame(pfn):
                await traps.oops(f"the migration entry {entry:#x} names no page frame", pfn)
                return True
    return False


# ---- setup -----------------------------------------------------------------------------------------------------------


async def migrate_vma_setup(kernel: Kernel, args: MigrateVma) -> int:
    """Collect, lock and unmap the pages of a range. 0, also when nothing can migrate, or -EINVAL.

    Leaves in args.src an entry per page, in args.dst zeros, in args.cpages the number of entries with MIGRATE.
    """
    await traps.note(_setup_called(args))
    result = await _setup(kernel, args)
    src = _entries(args.src)
    await traps.note(SetupReturned(args.call, result, args.start, args.end, args.cpages, args.npages, src))
    return result


def _setup_called(args: MigrateVma) -> SetupCalled:
    return SetupCalled(
        args.call,
        args.vma.mm.number if args.vma else None,
        args.start,
        args.end,
        args.flags,
        args.pgmap_owner,
        args.fault_page.pfn if args.fault_page else None,
        None if args.src is None else len(args.src),
        None if args.dst is None else len(args.dst),
    )


def check_arguments(args: MigrateVma) -> int:
    """What setup refuses before it looks at anything but its arguments and the VMA, in the kernel's order."""
    vma = args.vma
    if vma is None or vma.flags & (VmFlags.HUGETLB | VM_SPECIAL | VmFlags.DAX):
        return -Errno.EINVAL
    if args.end - args.start <= 0:
        return -Errno.EINVAL
    if args.start < vma.start or args.start >= vma.end:
        return -Errno.EINVAL
    if args.end <= vma.start or args.end > vma.end:
        return -Errno.EINVAL
    return -Errno.EINVAL if args.src is None or args.dst is None else 0


async def _setup(kernel: Kernel, args: MigrateVma) -> int:
    result = kernel.generation.steps.check_arguments(args)
    if result or args.src is None or args.dst is None:
        return result
    nr_pages = args.end - args.start
    result = await kernel.generation.check_fault_page(kernel, args)
    if result or await too_short(nr_pages, args.src, args.dst):
        return result
    args.src[:nr_pages] = [0] * nr_pages
    args.cpages = 0
    args.npages = 0
    await kernel.generation.steps.collect(kernel, args)
    if args.cpages:
        args.cpages = await migrate_device_unmap(kernel, args.src, args.npages, args.fault_page)
    return 0


# ---- unmap -----------------------------------------------------------------------------------------------------------


async def migrate_device_unmap(kernel: Kernel, src: list[int], npages: int, fault_page: Folio | None) -> int:
    """Isolate and unmap the collected pages everywhere, restore those that are pinned; the number that still migrates."""
    unmapped = restore = i = 0
    allow_drain = True
    await swap.lru_add_drain(kernel)
    while i < npages:
        page = kernel.migrate_pfn_to_folio(src[i])
        if page is None:
            unmapped += kernel.generation.steps.count_empty(src[i])
            i += 1
            continue
        folio = await page_folio(kernel, page)
        nr = await folio_nr_pages(kernel, folio)
        src[i] |= MIGRATE_PFN_COMPOUND if nr > 1 else 0
        isolated = True
        if not kernel.is_zone_device(folio):
            allow_drain = await _drain_for(kernel, folio, allow_drain)
            isolated = await swap.folio_isolate_lru(kernel, folio)
            if isolated:
                await swap.folio_put(kernel, folio)
        if isolated and await _unmap_page(kernel, page, folio, fault_page):
            unmapped += 1
        else:
            src[i] &= ~MIGRATE_PFN_MIGRATE
            restore += 1
        i += nr
    if restore:
        await _restore(kernel, src, npages, fault_page)
    return unmapped


def _on_lru(f: FolioState) -> Outcome:
    return (f,), f.lru is Lru.ON, FolioRead(f.pfn, f.refcount, f.mapcount)


async def folio_test_lru(folio: Folio) -> bool:
    return bool(await traps.step(_on_lru, folio))


async def _drain_for(kernel: Kernel, folio: Folio, allow_drain: bool) -> bool:
    """One lru_add_drain_all for a folio that sits in some CPU's batch; answers whether one is still allowed.

    It waits for a work item on every CPU, with the folios collected so far locked (as the kernel does).
    """
    if not allow_drain or await folio_test_lru(folio):
        return allow_drain
    await swap.lru_add_drain_all(kernel)
    return False


async def _unmap_page(kernel: Kernel, page: Folio, folio: Folio, fault_page: Folio | None) -> bool:
    """Remove what mappings are left, and see whether anybody else holds the page; False with the page back on the LRU."""
    await kernel.generation.steps.unmap_all(kernel, folio)
    if await migrate_vma_check_page(kernel, page, folio, fault_page):
        return True
    if not kernel.is_zone_device(folio):
        await folio_get(folio)
        await swap.folio_putback_lru(kernel, folio)
    return False


def no_unexpected_references(f: FolioState, extra: int) -> bool:
    """migrate_vma_check_page. A zone-device page has one reference of slack, left from the days of 1-based counts.

    A page in the page cache or the swap cache has that cache's reference besides. What is still mapped is asked here, too
    (folio_mapped, in migrate_device_unmap).
    """
    cached = f.file is not None or f.swap is not None
    return not f.mapcount and f.refcount - (extra + f.is_zone_device + cached) <= 0


def _check(f: FolioState, good: Callable[[FolioState, int], bool], extra: int) -> Outcome:
    ok = good(f, extra)
    return (f,), ok, FolioChecked(f.pfn, f.refcount, f.mapcount, ok)


async def migrate_vma_check_page(kernel: Kernel, page: Folio, folio: Folio, fault_page: Folio | None) -> bool:
    """Whether the page is unmapped, and held by the migration (and its fault) alone, as far as this weak test can tell."""
    extra = 1 + (kernel.generation.fault_page_references if page == fault_page else 0)
    return bool(await traps.step(_check, folio, args=(kernel.generation.steps.check_page, extra)))


async def _restore(kernel: Kernel, src: list[int], npages: int, fault_page: Folio | None) -> None:
    """Map again, unlock and put what was collected and does not migrate."""
    fault_folio = await folio_of_fault(kernel, fault_page)
    for i in range(npages):
        page = kernel.migrate_pfn_to_folio(src[i])
        if page is None or src[i] & MIGRATE_PFN_MIGRATE:
            continue
        folio = await page_folio(kernel, page)
        await kernel.generation.steps.restore_mappings(kernel, folio, folio)
        src[i] = 0
        await kernel.generation.steps.unlock_restored(kernel, folio, fault_folio)
        await swap.folio_put(kernel, folio)


# ---- pages -----------------------------------------------------------------------------------------------------------


async def migrate_vma_pages(kernel: Kernel, args: MigrateVma) -> None:
    """Commit what can be committed; the driver must look at MIGRATE in args.src again afterwards."""
    await traps.note(PagesCalled(args.call, _entries(args.src), _entries(args.dst), vma=True))
    if args.src is not None and args.dst is not None and not await _malformed(kernel, args.npages, args.src, args.dst):
        await device_pages(kernel, args.src, args.dst, args.npages, args)
    await traps.note(PagesReturned(args.call, _entries(args.src)))


async def migrate_device_pages(kernel: Kernel, src: list[int], dst: list[int], npages: int, call: int = 0) -> None:
    await traps.note(PagesCalled(call, _entries(src), _entries(dst), vma=False))
    if not await _malformed(kernel, npages, src, dst):
        await device_pages(kernel, src, dst, npages, None)
    await traps.note(PagesReturned(call, _entries(src)))


# ---- finalize --------------------------------------------------------------------------------------------------------


async def migrate_vma_finalize(kernel: Kernel, args: MigrateVma) -> None:
    """Map what migrated, restore what did not, unlock and put both sides."""
    await traps.note(FinalizeCalled(args.call, _entries(args.src), _entries(args.dst), vma=True))
    if args.src is not None and args.dst is not None and not await _malformed(kernel, args.npages, args.src, args.dst):
        await _finalize(kernel, args.src, args.dst, args.npages, args.fault_page)
    await traps.note(FinalizeReturned(args.call))


async def migrate_device_finalize(kernel: Kernel, src: list[int], dst: list[int], npages: int, call: int = 0) -> None:
    await traps.note(FinalizeCalled(call, _entries(src), _entries(dst), vma=False))
    if not await _malformed(kernel, npages, src, dst):
        await _finalize(kernel, src, dst, npages, None)
    await traps.note(FinalizeReturned(call))


async def _finalize(kernel: Kernel, src: list[int], dst: list[int], npages: int, fault_page: Folio | None) -> None:
    fault_folio = await folio_of_fault(kernel, fault_page)
    for i in range(npages):
        page, newpage = kernel.migrate_pfn_to_folio(src[i]), kernel.migrate_pfn_to_folio(dst[i])
        newfolio = None if newpage is None else await page_folio(kernel, newpage)
        if page is None:
            if newfolio is not None:
                await _release_destination(kernel, newfolio)
            continue
        folio = await page_folio(kernel, page)
        if newfolio is None or not src[i] & MIGRATE_PFN_MIGRATE:
            if newfolio is not None:
                await _release_destination(kernel, newfolio)
            newfolio = folio
        await kernel.generation.steps.add_to_lru(kernel, folio, newfolio)
        await kernel.generation.steps.map_destination(kernel, folio, newfolio)
        await kernel.generation.steps.unlock_migrated(kernel, folio, fault_folio)
        await kernel.generation.steps.put_migrated(kernel, folio)
        if newfolio != folio:
            await _release_destination(kernel, newfolio)


async def _release_destination(kernel: Kernel, folio: Folio) -> None:
    """Unlock the driver's page and put the reference that it was allocated with."""
    await folio_unlock(folio)
    await swap.folio_put(kernel, folio)


async def unlock_unless_fault_page(kernel: Kernel, folio: Folio, fault_folio: Folio | None) -> None:
    if not locked_by_fault(folio, fault_folio):
        await folio_unlock(folio)


async def add_destination_to_lru(kernel: Kernel, src: Folio, dst: Folio) -> None:
    """What is mapped from now on goes on the LRU if it is a system page, a restored source included; what is freed does not."""
    if not kernel.is_zone_device(dst):
        await swap.folio_add_lru(kernel, dst)
