"""The kernel's own test driver, lib/test_hmm.c: device-private and device-coherent memory of a pretended device.

`test_hmm_access` has its accesses, `test_hmm_migrate` its migrations page by page (6.1), `test_hmm_compound` those of large
folios (7.3), `test_hmm_ioctl` its ioctls. In a kernel that has large device folios the driver is the one that uses them.

Rules and liberties:
- A device page holds its own contents. In the kernel a backing system page does, whose allocation can fail too.
- zone_device_data names the address space that a page was migrated for, which the kernel finds through the backing page.

What it does wrong stays, for `check` to report:
- migrate_to_ram returns 0 when it had no memory, so the fault is tried for ever while memory stays short (C79, 6.1);
- migrating to the device leaves the mirror's entry for the system page in place while that is copied, for it ignores its own
  notification, so a store of the device in between is lost (C77, C71);
- release evicts once: what a racing fault holds locked is still mapped when memunmap_pages begins, which waits for it (C88).

One fault of the module is not here. Where hmm_range_fault reports a page of the device itself, dmirror_do_fault (6.1 to 7.3) puts
the device page into the mirror, and not the page that backs it; the next READ there reads through a struct page without memory,
and the kernel oopses. Here a device page has contents, and the mirror names it in either case, so the read is right (C71, C90).
`test_hmm_shipped` has the module with that fault as well, and what else two versions of it do differently.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from migrate_vma_impl.driver import Driver
from migrate_vma_impl.drivers.test_hmm_compound import DmirrorCompound
from migrate_vma_impl.drivers.test_hmm_ioctl import DmirrorIoctl
from migrate_vma_spec.vocabulary import Memory

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel


class Dmirror(DmirrorIoctl):
    """One device of the module, with device-private memory."""


class AdaptedDmirror(Dmirror):
    """The same driver with the change that `entry-first` asks of drivers: the fault entry is filled in after setup."""

    adapted: ClassVar[bool] = True


class CoherentDmirror(Dmirror):
    """A device whose memory CPUs reach without a fault; the module makes it of special-purpose memory."""

    memory: ClassVar[Memory] = Memory.DEVICE_COHERENT


class CompoundDmirror(DmirrorCompound):
    """One device of the module, with device-private memory of which folios may be large."""


class AdaptedCompoundDmirror(CompoundDmirror):
    """The same change to it."""

    adapted: ClassVar[bool] = True


class CoherentCompoundDmirror(CompoundDmirror):
    """The same with memory that CPUs reach without a fault."""

    memory: ClassVar[Memory] = Memory.DEVICE_COHERENT


def make_test_hmm(kernel: Kernel, name: str = "test_hmm") -> Driver:
    return CompoundDmirror(kernel, name) if kernel.thp_migration_supported else Dmirror(kernel, name)


def make_test_hmm_adapted(kernel: Kernel, name: str = "test_hmm") -> Driver:
    return AdaptedCompoundDmirror(kernel, name) if kernel.thp_migration_supported else AdaptedDmirror(kernel, name)


def make_test_hmm_coherent(kernel: Kernel, name: str = "test_hmm") -> Driver:
    return CoherentCompoundDmirror(kernel, name) if kernel.thp_migration_supported else CoherentDmirror(kernel, name)
