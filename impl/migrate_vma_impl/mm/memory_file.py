"""Faults on mapped files and shared memory: mm/memory.c:do_fault and below (7.3).

Rules:
- The page comes from the file locked and with a reference; the reference becomes the mapping's, the lock is dropped when the
  entry is set.
- A write to a private mapping goes to an anonymous copy, which is in the VMA's anon_vma; a read of it maps the file's own page,
  read-only.
- A file with a name hears of the first write to each page (page_mkwrite, which makes the page dirty) before the entry allows it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from migrate_vma_impl.machine.locks import spin_unlock
from migrate_vma_impl.mm import memcontrol, swap
from migrate_vma_impl.mm.filemap import filemap_fault, folio_in_cache, has_name, unlock_and_put
from migrate_vma_impl.mm.folio import folio_get, folio_lock, folio_unlock
from migrate_vma_impl.mm.highmem import copy_highpage
from migrate_vma_impl.mm.memory_lock import lock_if_same
from migrate_vma_impl.mm.migrate_device_pages import folio_mark_uptodate
from migrate_vma_impl.mm.mm_types import FaultContext, Folio, Vma
from migrate_vma_impl.mm.page_alloc import alloc_page
from migrate_vma_impl.mm.pgtable import flush_cache_page, mk_pte, pte_alloc, pte_mkdirty, set_pte_at
from migrate_vma_impl.mm.rmap import folio_add_anon_rmap, folio_add_new_anon_rmap, folio_mark_dirty
from migrate_vma_impl.mm.shmem import shmem_fault
from migrate_vma_impl.mm.userfaultfd import vmf_orig_pte_uffd_wp
from migrate_vma_spec.records import evolve
from migrate_vma_spec.vocabulary import VmFault, VmFlags

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel


async def do_fault(kernel: Kernel, vmf: FaultContext) -> VmFault:
    """A fault on an empty entry of a mapped file. A driver that maps its own pages has no more of them to give."""
    if vmf.vma.file is None:
        return VmFault.SIGBUS
    if not vmf.write:
        return await do_read_fault(kernel, vmf)
    if not vmf.vma.flags & VmFlags.SHARED:
        return await do_cow_fault(kernel, vmf)
    return await do_shared_fault(kernel, vmf)


def _place(vmf: FaultContext) -> tuple[int, int]:
    """The file and its page that the fault is about."""
    if vmf.vma.file is None:
        raise ValueError(f"{vmf.vma} maps no file")
    return vmf.vma.file, vmf.vma.index_of(vmf.address)


async def _do_fault(kernel: Kernel, vmf: FaultContext) -> Folio | VmFault:
    """__do_fault: the page of the file, locked and with a reference, or why there is none."""
    file, index = _place(vmf)
    if index >= kernel.config.file_pages:
        return VmFault.SIGBUS
    if not has_name(kernel, file):
        return await shmem_fault(kernel, vmf, file, index)
    folio = await filemap_fault(kernel, file, index)
    return VmFault.OOM if folio is None else folio


async def finish_fault(kernel: Kernel, vmf: FaultContext, folio: Folio, *, copied: bool = False) -> VmFault:
    """Map the page if the entry is still the one of the fault; NOPAGE if it is not. `copied`: it is an anonymous copy."""
    vma, addr = vmf.vma, vmf.address
    await pte_alloc(kernel, vma.mm, addr)
    if not await lock_if_same(vmf):
        return VmFault.NOPAGE
    if copied:
        await folio_add_new_anon_rmap(folio, vma, addr)
        await swap.folio_add_lru(kernel, folio)
        dirty = False
    else:
        dirty = await folio_add_anon_rmap(folio, vma, addr, exclusive=False)
    pte = mk_pte(folio)
    if vmf.write:
        pte = pte_mkdirty(evolve(pte, write=True))
    elif prot_allows_write(kernel, vma):
        pte = evolve(pte, write=True)
        pte = pte_mkdirty(pte) if dirty else pte
    if vmf_orig_pte_uffd_wp(vmf):
        pte = evolve(pte, write=False, uffd_wp=True)
    await set_pte_at(vma.mm, addr, pte)
    await spin_unlock(vma.mm.ptl)
    return VmFault.NONE


def prot_allows_write(kernel: Kernel, vma: Vma) -> bool:
    """vma->vm_page_prot of a shared mapping that nobody needs to hear of the first write to (vma_wants_writenotify)."""
    shared = VmFlags.SHARED | VmFlags.WRITE
    return vma.flags & shared == shared and vma.file is not None and not has_name(kernel, vma.file)


async def do_read_fault(kernel: Kernel, vmf: FaultContext) -> VmFault:
    folio = await _do_fault(kernel, vmf)
    if not isinstance(folio, Folio):
        return folio
    result = await finish_fault(kernel, vmf, folio)
    await folio_unlock(folio)
    if result is VmFault.NOPAGE:
        await swap.folio_put(kernel, folio)
    return result


async def do_cow_fault(kernel: Kernel, vmf: FaultContext) -> VmFault:
    """The copy's page is allocated first, for nothing may be waited for with the file's page locked."""
    copy = await alloc_page(kernel, "a page for a private write to a file")
    if copy is None:
        return VmFault.OOM
    await memcontrol.mem_cgroup_charge(kernel, copy)
    folio = await _do_fault(kernel, vmf)
    result = folio if not isinstance(folio, Folio) else await _map_copy(kernel, vmf, folio, copy)
    if result is not VmFault.NONE:
        await swap.folio_put(kernel, copy)
    return result


async def _map_copy(kernel: Kernel, vmf: FaultContext, folio: Folio, copy: Folio) -> VmFault:
    await copy_highpage(copy, folio)
    await folio_mark_uptodate(copy)
    result = await finish_fault(kernel, vmf, copy, copied=True)
    await unlock_and_put(kernel, folio)
    return result


async def do_shared_fault(kernel: Kernel, vmf: FaultContext) -> VmFault:
    folio = await _do_fault(kernel, vmf)
    if not isinstance(folio, Folio):
        return folio
    file, index = _place(vmf)
    if has_name(kernel, file):
        await folio_unlock(folio)
        if not await do_page_mkwrite(folio, file, index):
            await swap.folio_put(kernel, folio)
            return VmFault.NOPAGE
    result = await finish_fault(kernel, vmf, folio)
    if result is VmFault.NONE:
        await fault_dirty_shared_page(folio)
    else:
        await unlock_and_put(kernel, folio)
    return result


async def do_page_mkwrite(folio: Folio, file: int, index: int) -> bool:
    """filemap_page_mkwrite: the page locked and dirty; False, unlocked, where the file has lost it."""
    await folio_lock(folio)
    if not await folio_in_cache(folio, file, index):
        await folio_unlock(folio)
        return False
    await folio_mark_dirty(folio)
    return True


async def fault_dirty_shared_page(folio: Folio) -> None:
    """The entry may write now: the page is dirty from here on, whoever cleaned it in between. Drops its lock."""
    await folio_mark_dirty(folio)
    await folio_unlock(folio)


# ---- a write to a page that is mapped read-only ----------------------------------------------------------------------


async def wp_page_shared(kernel: Kernel, vmf: FaultContext, folio: Folio) -> VmFault:
    """do_wp_page of a shared mapping: entered with the page-table lock held, and leaves without it."""
    file, index = _place(vmf)
    await folio_get(folio)
    result = VmFault.NONE
    if has_name(kernel, file):
        await spin_unlock(vmf.vma.mm.ptl)
        result = await _finish_mkwrite_fault(vmf, folio, file, index)
    else:
        await wp_page_reuse(vmf)
        await folio_lock(folio)
    if result is VmFault.NONE:
        await fault_dirty_shared_page(folio)
    await swap.folio_put(kernel, folio)
    return result


async def _finish_mkwrite_fault(vmf: FaultContext, folio: Folio, file: int, index: int) -> VmFault:
    """Tell the file, then make the entry writable if it is still the same, with the page locked; NOPAGE, unlocked, if not."""
    if not await do_page_mkwrite(folio, file, index):
        return VmFault.NOPAGE
    if await lock_if_same(vmf):
        await wp_page_reuse(vmf)
        return VmFault.NONE
    await folio_unlock(folio)
    return VmFault.NOPAGE


async def wp_page_reuse(vmf: FaultContext) -> None:
    """The page of the entry may be written where it is. Drops the page-table lock."""
    await flush_cache_page(vmf.vma.mm, vmf.address)
    await set_pte_at(vmf.vma.mm, vmf.address, pte_mkdirty(evolve(vmf.orig_pte, write=True, young=True)))
    await spin_unlock(vmf.vma.mm.ptl)
