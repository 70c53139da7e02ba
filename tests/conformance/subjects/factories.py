"""Factories of a third party that are none, and factories that do not make a driver."""

from __future__ import annotations

from migrate_vma_impl.driver import Driver
from migrate_vma_impl.drivers.wide import Wide
from migrate_vma_spec.vocabulary import VmFault


def takes_no_argument():
    return None


def returns_nothing(kernel):
    return None


def returns_a_class(kernel):
    return Wide


def raises(kernel):
    raise OSError("no such device")


async def is_async(kernel):
    return Wide(kernel, "mine")


_one = []


def always_the_same(kernel):
    if not _one:
        _one.append(Wide(kernel, "mine"))
    return _one[0]


class Unfinished(Driver):
    async def migrate_to_ram(self, vmf):
        return VmFault.SIGBUS


def is_abstract(kernel):
    return Unfinished(kernel, "mine")


def named_by_a_number(kernel):
    return Wide(kernel, 7)


class Unprintable:
    def __repr__(self):
        raise RuntimeError("not even that")


def returns_the_unprintable(kernel):
    return Unprintable()
