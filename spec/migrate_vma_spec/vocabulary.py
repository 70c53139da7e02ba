"""The words that the contract, a core, a driver and a trace share: entry flags, errnos, fault results, page-table entries.

Values are the kernel's own, so that a real trace and a simulated one read alike. Nothing here computes.
Sources: include/linux/migrate.h, include/linux/mm_types.h, include/linux/mm.h (Linux 6.1.192 and 7.3.4).
"""

from __future__ import annotations

import enum

from migrate_vma_spec.records import frozen


class Word(enum.Enum):
    """An enumeration whose members hash as what they are, single objects: enum's own hash is that of the name, and slower."""

    __hash__ = object.__hash__


MIGRATE_PFN_VALID = 1 << 0
MIGRATE_PFN_MIGRATE = 1 << 1
MIGRATE_PFN_WRITE = 1 << 3
MIGRATE_PFN_COMPOUND = 1 << 4
MIGRATE_PFN_SHIFT = 6


def migrate_pfn(pfn: int) -> int:
    """The entry of a page: its frame number shifted over the flags, and VALID (include/linux/migrate.h:migrate_pfn)."""
    return (pfn << MIGRATE_PFN_SHIFT) | MIGRATE_PFN_VALID


def migrate_pfn_to_pfn(mpfn: int) -> int | None:
    """The frame number that an entry names, or None where VALID is clear (migrate_pfn_to_page gives NULL)."""
    return mpfn >> MIGRATE_PFN_SHIFT if mpfn & MIGRATE_PFN_VALID else None


class Select(enum.IntFlag):
    """migrate_vma.flags: which pages a migration takes (enum migrate_vma_direction)."""

    SYSTEM = 1 << 0
    DEVICE_PRIVATE = 1 << 1
    DEVICE_COHERENT = 1 << 2
    COMPOUND = 1 << 3


class VmFault(enum.IntFlag):
    """vm_fault_t, the bits that the device-private path can give."""

    NONE = 0
    OOM = 0x1
    SIGBUS = 0x2
    MAJOR = 0x4
    HWPOISON = 0x10
    SIGSEGV = 0x40
    NOPAGE = 0x100
    RETRY = 0x400
    FALLBACK = 0x800


class VmFlags(enum.IntFlag):
    """vm_area_struct.vm_flags, the bits that the contract reads. HUGETLB and DAX stand for the kernel's own predicates."""

    NONE = 0
    READ = 0x1
    WRITE = 0x2
    SHARED = 0x8
    UFFD_MISSING = 0x200
    PFNMAP = 0x400
    UFFD_WP = 0x1000
    LOCKED = 0x2000
    IO = 0x4000
    DONTEXPAND = 0x40000
    HUGETLB = 0x400000
    SOFTDIRTY = 0x8000000
    MIXEDMAP = 0x10000000
    HUGEPAGE = 0x20000000
    NOHUGEPAGE = 0x40000000
    DAX = 1 << 40


VM_SPECIAL = VmFlags.IO | VmFlags.DONTEXPAND | VmFlags.PFNMAP | VmFlags.MIXEDMAP


class Errno(enum.IntEnum):
    """Kernel errnos are data here, and positive; calls return them negated."""

    EPERM = 1
    ENOENT = 2
    EINTR = 4
    EAGAIN = 11
    ENOMEM = 12
    EACCES = 13
    EFAULT = 14
    EBUSY = 16
    EEXIST = 17
    EINVAL = 22
    ENOSPC = 28
    EOPNOTSUPP = 95


class Memory(Word):
    """What a page frame is: ordinary memory or one of the zone-device kinds (enum memory_type)."""

    SYSTEM = "system"
    DEVICE_PRIVATE = "device-private"
    DEVICE_COHERENT = "device-coherent"


class PteKind(Word):
    """What a page-table entry holds. TABLE is for the middle level alone: a page table hangs there, and no leaf.

    MARKER is a pte marker that keeps uffd-wp where no page is. ZERO at the middle level is the huge zero page.
    """

    NONE = "none"
    PRESENT = "present"
    ZERO = "zero"
    MIGRATION = "migration"
    DEVICE_PRIVATE = "device-private"
    EXCLUSIVE = "device-exclusive"
    SWAP = "swap"
    MARKER = "marker"
    HWPOISON = "hwpoison"
    TABLE = "table"


@frozen
class Pte:
    """One page-table entry, or the entry of the middle level (a PMD). A bit that the entry's kind cannot carry is False.

    `write` is the present entry's permission, or writable for a migration, device-private or device-exclusive entry;
    `exclusive` is the readable-exclusive migration entry or the swap entry's exclusive marker (include/linux/swapops.h), and
    False elsewhere: a present page's exclusivity is the page's own flag. `young` and `dirty` are carried by present and
    migration entries only. `pfn` is the page's own frame, the first one of a leaf at the middle level. `swap` is the swap slot
    that a swap entry names, which names no frame.
    """

    kind: PteKind = PteKind.NONE
    pfn: int | None = None
    write: bool = False
    exclusive: bool = False
    young: bool = False
    dirty: bool = False
    soft_dirty: bool = False
    uffd_wp: bool = False
    swap: int | None = None


PTE_NONE = Pte()


class LockMode(Word):
    """How a lock other than a page lock is held."""

    SPIN = "spin"
    SLEEP = "sleep"
    READ = "read"
    WRITE = "write"


class Lru(Word):
    """Where a system folio is with respect to the LRU: nowhere, in a CPU's batch, on a list, or isolated by a migration."""

    OFF = "off"
    BATCHED = "batched"
    ON = "on"
    ISOLATED = "isolated"


class NotifyReason(Word):
    """enum mmu_notifier_event, the ones that the contract meets."""

    UNMAP = "unmap"
    CLEAR = "clear"
    PROTECTION = "protection"
    MIGRATE = "migrate"
    PROTECTION_PAGE = "protection of a page"
    SOFT_DIRTY = "soft-dirty"
    RELEASE = "release"
    EXCLUSIVE = "exclusive"


class Point(Word):
    """Where a task may lose its CPU under voluntary preemption."""

    COND_RESCHED = "cond_resched"
    MIGHT_SLEEP = "might_sleep"
    USER = "return to user space"


class Capability(Word):
    """What a generation offers; a clause that requires one which the subject lacks is not applicable, never passed."""

    FAULT_PAGE = "fault_page argument of struct migrate_vma"
    FAULT_LOCK = "the fault handler holds the fault page's lock and the library leaves it locked"
    REFILL = "the fault handler hands over its page, with a migration entry installed"
    COMPOUND = "device-private folios larger than a page"
    COHERENT = "device-coherent memory"
