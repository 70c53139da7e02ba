"""Drivers of a third party, each with one thing wrong with it, or with something about it that the kit has to bear.

Written against the names that docs/writing-a-driver.md gives. Each class is its own factory's driver: `NAME = factory_of(Class)`.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
import sys
import types

from migrate_vma_impl.driver import Driver
from migrate_vma_impl.drivers.test_hmm import AdaptedDmirror, Dmirror
from migrate_vma_impl.drivers.wide import Wide
from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.containers import Lock, shared
from migrate_vma_impl.mm.mm_types import Folio, MigrateVma
from migrate_vma_impl.mm.mmap_lock import find_vma
from migrate_vma_spec.vocabulary import MIGRATE_PFN_MIGRATE, Select, VmFault


def factory_of(kind):
    def make(kernel):
        return kind(kernel, "mine")

    return make


sound = factory_of(Wide)

with_variant = factory_of(Dmirror)
with_variant.adapted = factory_of(AdaptedDmirror)

# ---- it raises -------------------------------------------------------------------------------------------------------


class RaisesInFault(Wide):
    async def migrate_to_ram(self, vmf):
        await traps.might_sleep()
        raise ValueError("the copy engine is on fire")


class RaisesInToDevice(Wide):
    async def to_device(self, mm, start, end):
        raise KeyError("no such range")


class RaisesInFree(Wide):
    async def folio_free(self, folio):
        raise ZeroDivisionError("division by zero")


class RaisesInInvalidate(Wide):
    async def invalidate(self, range_):
        raise RuntimeError("lost the mirror")


class RaisesWhileOthersSpin(Wide):
    """Raises with a lock held for which the other faulter tries for ever: no word on the progress of the protocol."""

    state = shared(**Wide.state.fields, busy=Lock())

    async def migrate_to_ram(self, vmf):
        while not await self.state.busy.trylock():
            await traps.cond_resched()
        raise ValueError("left it locked")


class Exits(Wide):
    async def migrate_to_ram(self, vmf):
        sys.exit("enough")


class Dies(Wide):
    async def migrate_to_ram(self, vmf):
        os._exit(7)


class IsKilled(Wide):
    async def migrate_to_ram(self, vmf):
        os.kill(os.getpid(), signal.SIGKILL)


class Hoards(Wide):
    async def migrate_to_ram(self, vmf):
        held = []
        while True:
            held.append(bytes(1 << 28))


class Unsayable(Exception):
    def __str__(self):
        raise RuntimeError("not even that")


class RaisesTheUnsayable(Wide):
    async def migrate_to_ram(self, vmf):
        raise Unsayable


class RaisesAtLength(Wide):
    async def migrate_to_ram(self, vmf):
        raise ValueError("no " * 1_000_000)


class IsCancelled(Wide):
    async def migrate_to_ram(self, vmf):
        raise asyncio.CancelledError


class Recurses(Wide):
    async def migrate_to_ram(self, vmf):
        return await self.migrate_to_ram(vmf)


class CatchesEverything(Wide):
    async def migrate_to_ram(self, vmf):
        while True:
            try:
                await traps.cond_resched()
            except BaseException:  # noqa: BLE001, S112
                continue


# ---- it does nothing -------------------------------------------------------------------------------------------------


class NeverAwaits(Wide):
    async def migrate_to_ram(self, vmf):
        return VmFault.NONE

    async def to_device(self, mm, start, end):
        return 0


class FaultsAtOnce(Wide):
    """Goes to the device as it should; a fault comes back at once, with nothing done."""

    async def migrate_to_ram(self, vmf):
        return VmFault.NONE


class OffersNothing(Driver):
    async def migrate_to_ram(self, vmf):
        return VmFault.SIGBUS

    async def folio_free(self, folio):
        pass


# ---- it forgets an await ---------------------------------------------------------------------------------------------


class ForgetsAwaitInFree(Wide):
    """Silent otherwise: the page never comes back to the free list, and nobody misses it."""

    async def folio_free(self, folio):
        self.state.free.push(folio)


class ForgetsAwaitInFault(Wide):
    async def migrate_to_ram(self, vmf):
        self.look_at(vmf.page)
        return await super().migrate_to_ram(vmf)

    async def look_at(self, page):
        await self.kernel.zone_device_data(page)


class KeepsACoroutine(Wide):
    """Awaits later what it called before: no fault of its own, though the machine may abandon it in between."""

    async def migrate_to_ram(self, vmf):
        later = traps.might_sleep()
        await traps.might_sleep()
        await later
        return await super().migrate_to_ram(vmf)


# ---- it returns nonsense ---------------------------------------------------------------------------------------------


def returning(result):
    class Returns(Wide):
        async def migrate_to_ram(self, vmf):
            await super().migrate_to_ram(vmf)
            return result

    return factory_of(Returns)


returns_none, returns_word, returns_17, returns_errno, returns_true = map(returning, (None, "done", 17, -16, True))


class ReturnsZero(Wide):
    """The plain number is as good as the flag."""

    async def migrate_to_ram(self, vmf):
        return int(await super().migrate_to_ram(vmf))


class ReturnsNoCount(Wide):
    async def to_device(self, mm, start, end):
        await super().to_device(mm, start, end)


class PlainFunction(Wide):
    def migrate_to_ram(self, vmf):
        return VmFault.NONE


@types.coroutine
def pause():
    yield


class YieldsNoTrap(Wide):
    async def migrate_to_ram(self, vmf):
        await pause()


class TouchesNothing(Wide):
    async def migrate_to_ram(self, vmf):
        await self.kernel.folio_lock(Folio(999))


# ---- it does not keep to its state -----------------------------------------------------------------------------------


class KeepsStateOnSelf(Wide):
    def __init__(self, kernel, name):
        super().__init__(kernel, name)
        self.faults = 0

    async def migrate_to_ram(self, vmf):
        self.faults += 1
        return await super().migrate_to_ram(vmf)


class KeepsAList(Wide):
    def __init__(self, kernel, name):
        super().__init__(kernel, name)
        self.seen = []


_turns = itertools.count()


class TakesTurns(Wide):
    """Every second fault does something else."""

    async def migrate_to_ram(self, vmf):
        if next(_turns) % 2:
            await traps.might_sleep()
        return await super().migrate_to_ram(vmf)


class ThrowsDice(Wide):
    async def migrate_to_ram(self, vmf):
        for _ in range(random.randrange(8)):
            await traps.might_sleep()
        return await super().migrate_to_ram(vmf)


class SharesAGlobal(Wide):
    """What one task leaves behind for the other decides, and no state shows it."""

    async def migrate_to_ram(self, vmf):
        _left_behind.append(vmf.write)
        await traps.might_sleep()
        return VmFault.SIGBUS if len(_left_behind) > 3 else await super().migrate_to_ram(vmf)


_left_behind: list[bool] = []


class HoldsAFile(Wide):
    """What cannot be compared is in its locals: slower, and as sound as before."""

    async def migrate_to_ram(self, vmf):
        with open(os.devnull) as held:  # noqa: PTH123
            await traps.might_sleep()
            return await super().migrate_to_ram(vmf) if not held.closed else VmFault.SIGBUS


# ---- it breaks the contract, or says too much ------------------------------------------------------------------------


class ForgetsFinalize(Wide):
    async def to_device(self, mm, start, end):
        vma = find_vma(await self.kernel.mmap_read_lock(mm), start)
        src, dst = [0] * (end - start), [0] * (end - start)
        args = MigrateVma(vma, start, end, src, dst, self.owner, Select.SYSTEM)
        if not await self.kernel.migrate_vma_setup(args):
            if src[0] & MIGRATE_PFN_MIGRATE:
                await self._fill_from_device(dst, 0, src[0])
            await self.kernel.migrate_vma_pages(args)
        await self.kernel.mmap_read_unlock(mm)
        return 0


class Prints(Wide):
    async def migrate_to_ram(self, vmf):
        print("a fault!")  # noqa: T201
        os.write(1, b"and past Python's buffer\n")
        return await super().migrate_to_ram(vmf)


raises_in_fault = factory_of(RaisesInFault)
raises_in_to_device = factory_of(RaisesInToDevice)
raises_in_free = factory_of(RaisesInFree)
raises_in_invalidate = factory_of(RaisesInInvalidate)
raises_while_others_spin = factory_of(RaisesWhileOthersSpin)
exits = factory_of(Exits)
dies = factory_of(Dies)
is_killed = factory_of(IsKilled)
hoards = factory_of(Hoards)
raises_the_unsayable = factory_of(RaisesTheUnsayable)
raises_at_length = factory_of(RaisesAtLength)
is_cancelled = factory_of(IsCancelled)
recurses = factory_of(Recurses)
catches_everything = factory_of(CatchesEverything)
never_awaits = factory_of(NeverAwaits)
faults_at_once = factory_of(FaultsAtOnce)
offers_nothing = factory_of(OffersNothing)
forgets_await_in_free = factory_of(ForgetsAwaitInFree)
forgets_await_in_fault = factory_of(ForgetsAwaitInFault)
keeps_a_coroutine = factory_of(KeepsACoroutine)
returns_zero = factory_of(ReturnsZero)
returns_no_count = factory_of(ReturnsNoCount)
plain_function = factory_of(PlainFunction)
yields_no_trap = factory_of(YieldsNoTrap)
touches_nothing = factory_of(TouchesNothing)
keeps_state_on_self = factory_of(KeepsStateOnSelf)
keeps_a_list = factory_of(KeepsAList)
takes_turns = factory_of(TakesTurns)
throws_dice = factory_of(ThrowsDice)
shares_a_global = factory_of(SharesAGlobal)
holds_a_file = factory_of(HoldsAFile)
forgets_finalize = factory_of(ForgetsFinalize)
prints = factory_of(Prints)
