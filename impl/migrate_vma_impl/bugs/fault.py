"""Faults of the fault path: do_swap_page's claim on the page, the loser of the page lock, letting go.

A claim that is wrong in one generation is mostly another generation's right one; the bugs of that kind take the part from there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import evolve

from migrate_vma_impl import fault_page
from migrate_vma_impl.bugs.bug import Bug
from migrate_vma_impl.generations import REFERENCED, TRYLOCKED, WAITING
from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.locks import SpinLock, spin_unlock
from migrate_vma_impl.machine.traps import ME, Outcome
from migrate_vma_impl.mm import swap
from migrate_vma_impl.mm.folio import (
    folio_get,
    folio_lock,
    folio_put_testzero,
    folio_unlock,
    queue_on_page_lock,
    sleep_on_page_lock,
)
from migrate_vma_impl.mm.memory_lock import lock_if_same
from migrate_vma_impl.mm.migrate import queue_then_drop_ptl
from migrate_vma_impl.mm.mm_types import FaultContext, Folio, FolioState, MigrateVma, Waiter, WaitMode
from migrate_vma_spec.events import WaitBegan
from migrate_vma_spec.vocabulary import VmFault

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel


async def put_then_unlock(kernel: Kernel, folio: Folio) -> None:
    await swap.folio_put(kernel, folio)
    await folio_unlock(folio)


async def put_only(kernel: Kernel, folio: Folio) -> None:
    await swap.folio_put(kernel, folio)


async def accept_unlocked(kernel: Kernel, args: MigrateVma) -> int:
    return 0


def ignore_result(result: VmFault) -> VmFault:
    return VmFault.NONE


async def wait_with_reference(folio: Folio, ptl: SpinLock) -> bool:
    """As before v5.17: the waiter keeps the page by a reference while it sleeps."""
    await folio_get(folio)
    await spin_unlock(ptl)
    if await queue_on_page_lock(folio):
        await sleep_on_page_lock(folio)
    await folio_put_testzero(folio)
    return True


async def put_and_wait(folio: Folio, ptl: SpinLock) -> bool:
    """The loser puts a reference that only the winner took."""
    await folio_put_testzero(folio)
    return await queue_then_drop_ptl(folio, ptl)


async def wait_and_unlock_twice(folio: Folio, ptl: SpinLock) -> bool:
    """The helper has dropped the page-table lock, and its caller drops it again."""
    queued = await queue_on_page_lock(folio)
    await spin_unlock(ptl)
    if queued:
        await sleep_on_page_lock(folio)
    await spin_unlock(ptl)
    return queued


def _queue_blindly(f: FolioState, task: str) -> Outcome:
    return (evolve(f, queue=(*f.queue, Waiter(task, WaitMode.TOLD))),), None, WaitBegan("PG_locked", f.pfn)


async def unlock_then_queue(folio: Folio, ptl: SpinLock) -> bool:
    """The loser queues after it dropped the page-table lock, and sleeps whatever it finds: an unlock in between is missed."""
    await spin_unlock(ptl)
    await traps.step(_queue_blindly, folio, args=(ME,))
    await sleep_on_page_lock(folio)
    return True


async def blocking_claim(kernel: Kernel, vmf: FaultContext, folio: Folio) -> bool:
    """The page lock is taken with folio_lock, which sleeps, under the page-table lock."""
    if not await lock_if_same(vmf):
        return False
    await folio_lock(folio)
    await folio_get(folio)
    await spin_unlock(vmf.vma.mm.ptl)
    return True


BUGS = (
    Bug(
        "B01",
        "the driver is called for a page that nothing holds",
        "The entry is read, nothing is locked or held; another CPU migrates and frees the page, and the callback runs on it.",
        ("C41", "C50"),
        evolve(
            REFERENCED,
            claim_fault_page=fault_page.claim_nothing,
            release_fault_page=fault_page.release_nothing,
            fault_page_references=0,
        ),
        commit="16ce101db85d",
        year=2022,
        kernels="before v6.1",
    ),
    Bug(
        "B03",
        "the callback's result is dropped",
        "SIGBUS of the driver is lost, and the task faults for ever.",
        ("C80",),
        WAITING.with_steps(fault_result=ignore_result),
        commit="4a955bed882e",
        year=2022,
        kernels="before v6.1",
    ),
    Bug(
        "B05",
        "every faulter takes a reference",
        "Each holds one while it tries, so the exact count never holds and nobody migrates the page.",
        ("C84",),
        evolve(
            TRYLOCKED,
            claim_fault_page=fault_page.claim_reference,
            release_fault_page=fault_page.release_reference,
            check_fault_page=fault_page.demand_device_private,
            fault_page_locked=False,
        ),
        commit="1afaeb8293c9",
        year=2025,
        kernels="v6.1 to v6.14",
    ),
    Bug(
        "B06",
        "waiters hold a reference",
        "Who waits on the locked page takes a reference, and so makes the migration fail that it waits for.",
        ("C83",),
        WAITING.with_steps(wait_on_locked=wait_with_reference),
        commit="ffa65753c431",
        year=2021,
        kernels="before v5.17",
    ),
    Bug(
        "B07",
        "put before unlock",
        "The last put frees the page, then the unlock touches it.",
        ("C36",),
        evolve(WAITING, release_fault_page=put_then_unlock),
        commit="v1 and v2 of 1afaeb8293c9",
        year=2024,
        kernels="none",
    ),
    Bug(
        "B08",
        "the loser of the page lock spins",
        "It faults again and again, and the holder waits for a work item on its CPU.",
        ("C85",),
        evolve(WAITING, lose_page_lock=fault_page.lose_by_retry),
        commit="a69d1ab971a6",
        year=2026,
        kernels="v6.15 to v6.19",
    ),
    Bug(
        "B25",
        "the page-table lock is dropped twice",
        "The wait helper has dropped it already when its caller does.",
        ("C37",),
        WAITING.with_steps(wait_on_locked=wait_and_unlock_twice),
        commit="mm/migrate_device: fix double unlock",
        year=2026,
        kernels="none",
    ),
    Bug(
        "loser_puts",
        "the loser of the page lock puts a reference",
        "It took none, and the page is freed while the winner's driver migrates it.",
        ("C50",),
        WAITING.with_steps(wait_on_locked=put_and_wait),
    ),
    Bug(
        "setup_takes_unlocked_fault_page",
        "setup does not look whether the fault page is locked",
        "A fault page that nobody locked is collected as if the fault handler had.",
        ("C30",),
        evolve(WAITING, check_fault_page=accept_unlocked),
    ),
    Bug(
        "fault_lock_leaked",
        "the fault handler forgets to unlock",
        "The page stays locked when the fault is over; whoever waits for it waits for ever.",
        ("C44", "C82"),
        evolve(WAITING, release_fault_page=put_only),
    ),
    Bug(
        "wake_up_lost",
        "the loser queues too late",
        "It drops the page-table lock before it queues, so an unlock in between wakes nobody.",
        ("C82",),
        WAITING.with_steps(wait_on_locked=unlock_then_queue),
    ),
    Bug(
        "sleeps_under_ptl",
        "the page lock is waited for under the page-table lock",
        "folio_lock sleeps in atomic context.",
        ("C34",),
        evolve(WAITING, claim_fault_page=blocking_claim),
    ),
)
