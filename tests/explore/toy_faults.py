"""N tasks fault one page: the three protocols of the fault path at their smallest, with cells for state."""

from __future__ import annotations

from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.system import System, Task
from migrate_vma_spec.events import DrainEnded, PointPassed
from migrate_vma_spec.vocabulary import Point
from tests.machine.toy import Cell, add, nothing, read, write

PTL, PAGE_LOCK, PTE, REFS, MAPS = Cell("ptl"), Cell("page lock"), Cell("pte"), Cell("refs"), Cell("maps")


def _take(held):
    return None if held else ((True,), True, DrainEnded())


def _try(held):
    return (True,), not held, DrainEnded()


def _until_free(held):
    return None if held else ((held,), None, PointPassed(Point.USER))


async def take(cell):
    await traps.step(_take, cell)


async def trylock(cell):
    return await traps.step(_try, cell)


async def release(cell):
    await write(cell, False)


async def collect(page_is_locked):
    await take(PTL)
    if await read(PTE) != "device":
        await release(PTL)
        return False
    await add(REFS, 1)
    if not page_is_locked and not await trylock(PAGE_LOCK):
        await add(REFS, -1)
        await release(PTL)
        return False
    await write(PTE, "migration")
    await add(MAPS, -1)
    await add(REFS, -1)
    await release(PTL)
    return True


async def finish(page_is_locked, to):
    await take(PTL)
    await write(PTE, to)
    if to == "device":
        await add(MAPS, 1)
        await add(REFS, 1)
    await release(PTL)
    if not page_is_locked:
        await release(PAGE_LOCK)
    await add(REFS, -1)


async def migrate(page_is_locked):
    if await collect(page_is_locked):
        ours = 2
        await finish(page_is_locked, "system" if await read(REFS) == ours else "device")


async def fault(protocol):
    while True:
        await take(PTL)
        pte = await read(PTE)
        if pte == "system":
            await release(PTL)
            return
        if pte == "migration":
            await release(PTL)
            await traps.sleep_until(_until_free, PAGE_LOCK)
            continue
        locks = protocol != "referenced"
        if locks and not await trylock(PAGE_LOCK):
            await release(PTL)
            if protocol == "waiting":
                await traps.sleep_until(_until_free, PAGE_LOCK)
            continue
        await add(REFS, 1)
        await release(PTL)
        await migrate(locks)
        if locks:
            await release(PAGE_LOCK)
        await add(REFS, -1)


def faulting(protocol: str, cpus: int) -> System:
    slots = {PTL: False, PAGE_LOCK: False, PTE: "device", REFS: 1, MAPS: 1}
    tasks = tuple(Task(f"t{cpu + 1}", cpu, fault, (protocol,)) for cpu in range(cpus))
    return System(slots, Task("init", 0, nothing), tasks, cpus)


async def allocate():
    while await traps.choose("an allocation"):
        await read(PTE)


def retrying() -> System:
    """A task that tries an allocation again for ever."""
    toy = faulting("waiting", 0)
    return System(toy.slots, toy.prologue, (Task("t1", 0, allocate),), 1, fallible=True)


async def hog():
    while await read(PTE) == "device":
        pass


async def mend():
    await write(PTE, "system")


def hogging() -> System:
    """A task that polls for what only the other task of its CPU can bring about."""
    toy = faulting("waiting", 0)
    return System(toy.slots, toy.prologue, (Task("t1", 0, hog), Task("t2", 0, mend)), 1)
