"""Faults that user space resolves: fs/userfaultfd.c, the side of those who wait (7.3).

Rules:
- An address space has one userfaultfd here, whose monitor (`userfaultfd_ioctl.py`) may be any task.
- A fault queues itself, looks at the entry once more, drops the lock of the address space, and sleeps: so a monitor that answers
  in between is not missed. Afterwards the access is made again from the start.
- A fault that may not drop that lock (FAULT_FLAG_ALLOW_RETRY is missing) cannot wait: SIGBUS.
- Whoever resolves a fault takes the waiters of that range from the queue. A message stays with its waiter, read or not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.traps import ME, Outcome
from migrate_vma_impl.mm.mm_types import FaultContext, FaultFlag, Mm, MmState, Userfault
from migrate_vma_impl.mm.mmap_lock import release_fault_lock
from migrate_vma_impl.mm.pgtable import pmd_trans_huge, pmdp_get, ptep_get
from migrate_vma_spec.events import DriverStep, UserfaultRaised, WaitBegan, WaitEnded
from migrate_vma_spec.records import evolve
from migrate_vma_spec.vocabulary import Pte, PteKind, VmFault, VmFlags

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel

QUEUE = "userfaultfd"


# ---- waiting ---------------------------------------------------------------------------------------------------------


def _queue(mm: MmState, task: str, addr: int, write_protected: bool) -> Outcome:
    waiting = (*mm.userfaults, Userfault(task, addr, write_protected))
    return (evolve(mm, userfaults=waiting),), None, UserfaultRaised(mm.number, addr, write_protected)


def _leave(mm: MmState, task: str) -> Outcome:
    left = tuple(each for each in mm.userfaults if each.task != task)
    return (evolve(mm, userfaults=left),), None, WaitEnded(QUEUE)


def _sleep(mm: MmState, task: str) -> Outcome:
    return None if any(each.task == task for each in mm.userfaults) else ((mm,), None, WaitEnded(QUEUE))


def must_wait(pte: Pte, write_protected: bool) -> bool:
    """userfaultfd_must_wait: nothing is there yet, or still nothing that can be written."""
    return pte.kind in (PteKind.NONE, PteKind.MARKER) or (write_protected and not pte.write)


async def userfaultfd_must_wait(kernel: Kernel, mm: Mm, addr: int, write_protected: bool) -> bool:
    """A leaf of the middle level is looked at in the place of the entry; nobody waits for one that is not present."""
    pmd = await pmdp_get(kernel, mm, addr)
    if pmd.kind is PteKind.TABLE:
        return must_wait(await ptep_get(mm, addr), write_protected)
    return pmd.kind is PteKind.NONE or (pmd_trans_huge(pmd) and must_wait(pmd, write_protected))


async def handle_userfault(kernel: Kernel, vmf: FaultContext, *, write_protected: bool) -> VmFault:
    """handle_userfault: tell the monitor, wait for it without the lock of the address space, and have the access made again."""
    if not vmf.flags & FaultFlag.ALLOW_RETRY:
        return VmFault.SIGBUS
    mm, addr = vmf.vma.mm, vmf.address
    await traps.step(_queue, mm, args=(ME, addr, write_protected))
    wait = await userfaultfd_must_wait(kernel, mm, addr, write_protected)
    await release_fault_lock(vmf)
    if wait:
        await traps.note(WaitBegan(QUEUE))
        await traps.sleep_until(_sleep, mm, args=(ME,))
    else:
        await traps.step(_leave, mm, args=(ME,))
    return VmFault.RETRY


def userfaultfd_missing(vmf: FaultContext) -> bool:
    return bool(vmf.vma.flags & VmFlags.UFFD_MISSING)


def vmf_orig_pte_uffd_wp(vmf: FaultContext) -> bool:
    """Whether a marker said that the page that comes is guarded."""
    return vmf.orig_pte.kind is PteKind.MARKER and bool(vmf.vma.flags & VmFlags.UFFD_WP)


def userfaultfd_pte_wp(vmf: FaultContext, pte: Pte) -> bool:
    """Whether a store to this entry is one that the monitor wants to hear of."""
    return bool(vmf.vma.flags & VmFlags.UFFD_WP) and pte.uffd_wp


# ---- forks -----------------------------------------------------------------------------------------------------------


def _queue_fork(mm: MmState, task: str) -> Outcome:
    return (evolve(mm, userfaults=(*mm.userfaults, Userfault(task, None))),), None, WaitBegan(QUEUE)


async def dup_userfaultfd_complete(mm: Mm) -> None:
    """UFFD_EVENT_FORK: fork waits, without any lock, until the monitor has read that there is a child."""
    await traps.step(_queue_fork, mm, args=(ME,))
    await traps.sleep_until(_sleep, mm, args=(ME,))


# ---- waking ----------------------------------------------------------------------------------------------------------


def _wake(mm: MmState, start: int, end: int) -> Outcome:
    left = tuple(each for each in mm.userfaults if each.addr is None or not start <= each.addr < end)
    return (evolve(mm, userfaults=left),), None, DriverStep(QUEUE, f"mm {mm.number}", f"wake [{start}, {end})")


async def wake_userfault(mm: Mm, start: int, end: int) -> None:
    """wake_userfault: those who wait for pages of [start, end) make their accesses again."""
    await traps.step(_wake, mm, args=(start, end))


def _read(mm: MmState) -> Outcome:
    """The first message that nobody has read; a fork's waiter goes when it is."""
    message = next((each for each in mm.userfaults if not each.told), None)
    if message is None:
        return None if mm.users else ((mm,), None, WaitEnded(QUEUE))
    told = (evolve(message, told=True),) if message.addr is not None else ()
    place = mm.userfaults.index(message)
    left = (*mm.userfaults[:place], *told, *mm.userfaults[place + 1 :])
    return (evolve(mm, userfaults=left),), message, DriverStep(QUEUE, f"mm {mm.number}", f"read {message.task}'s message")


async def userfaultfd_ctx_read(mm: Mm) -> Userfault | None:
    """read() of the userfaultfd: the next message, waited for; None once the address space has ended."""
    return await traps.sleep_until(_read, mm)  # type: ignore[no-any-return]
