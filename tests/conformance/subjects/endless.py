"""Drivers of a third party that do not end: they spin, wait or count for ever, or leave a thread behind."""

from __future__ import annotations

import itertools
import os
import threading
import time
from pathlib import Path

from migrate_vma_impl.drivers.wide import Wide
from migrate_vma_impl.machine import traps
from migrate_vma_spec.events import PointPassed
from migrate_vma_spec.vocabulary import Point
from tests.conformance.subjects.drivers import factory_of


def loops_in_factory(kernel):
    while True:
        pass


class SpinsInFault(Wide):
    async def migrate_to_ram(self, vmf):
        while True:
            pass


class SpinsInToDevice(Wide):
    async def to_device(self, mm, start, end):
        while True:
            time.sleep(3600)


class SpinsAndSwallows(Wide):
    """Nothing that is raised in it ends it."""

    async def migrate_to_ram(self, vmf):
        while True:
            try:
                sum(range(1000))
            except BaseException:  # noqa: BLE001, S112
                continue


class YieldsForEver(Wide):
    async def migrate_to_ram(self, vmf):
        while True:
            await traps.cond_resched()


class YieldsForEverInToDevice(Wide):
    async def to_device(self, mm, start, end):
        while True:
            await traps.cond_resched()


class CountsForEver(Wide):
    """As above, and no state ever comes back."""

    async def migrate_to_ram(self, vmf):
        for _ in itertools.count():
            await traps.cond_resched()


class CountsForEverInToDevice(Wide):
    async def to_device(self, mm, start, end):
        for _ in itertools.count():
            await traps.cond_resched()


class NotesForEver(Wide):
    async def migrate_to_ram(self, vmf):
        while True:
            await traps.note(PointPassed(Point.USER))


class TakesItsTime(Wide):
    """Says who it is, and then takes a hundred seconds over very many short steps."""

    async def to_device(self, mm, start, end):
        Path(os.environ["SUBJECT_PID_FILE"]).write_text(str(os.getpid()))
        while True:
            time.sleep(0.01)
            await traps.cond_resched()


class LeavesAThread(Wide):
    """The driver is sound; the thread that it starts never ends."""

    def __init__(self, kernel, name):
        super().__init__(kernel, name)
        threading.Thread(target=threading.Event().wait).start()


spins_in_fault = factory_of(SpinsInFault)
spins_in_to_device = factory_of(SpinsInToDevice)
spins_and_swallows = factory_of(SpinsAndSwallows)
yields_for_ever = factory_of(YieldsForEver)
yields_for_ever_in_to_device = factory_of(YieldsForEverInToDevice)
counts_for_ever = factory_of(CountsForEver)
counts_for_ever_in_to_device = factory_of(CountsForEverInToDevice)
notes_for_ever = factory_of(NotesForEver)
takes_its_time = factory_of(TakesItsTime)
leaves_a_thread = factory_of(LeavesAThread)
