"""Results: what a system call, or an access, may answer, by its name.

They follow from the VMAs: where they allow what is asked the call succeeds, where they do not it has the errno that the
kernel gives first; in a race with a change of VMAs, either. Memory that runs short, and nothing else, gives ENOMEM besides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from attrs import frozen

from migrate_vma_spec.model.contents import DISCARD, FREE, MOVE, PUNCH, SERVE, USER_COPY
from migrate_vma_spec.model.state import ModelState, Scope, Seen, access, is_granted
from migrate_vma_spec.objects import VmaRange, World
from migrate_vma_spec.vocabulary import VM_SPECIAL, Errno, PteKind, VmFault, VmFlags

SIGBUS, SIGSEGV = 7, 11
ENXIO, EHWPOISON = 6, 133
KILLED = {
    VmFault.SIGSEGV: -SIGSEGV,
    VmFault.SIGBUS: -SIGBUS,
    VmFault.HWPOISON: -SIGBUS,
    VmFault.OOM: -Errno.ENOMEM,
}
ACCESSES = {"read": False, "write": True, "pin": True}
TAKES = frozenset({"get_user_pages", "get_user_pages_fast", "pin_user_pages", "pin_user_pages_fast"})
FOLL_WRITE, FOLL_LONGTERM, FOLL_PIN = 1 << 0, 1 << 8, 1 << 19
WATCHES = VmFlags.UFFD_MISSING | VmFlags.UFFD_WP


@frozen
class Case:
    """An operation that ended: what was known before its last step, what it had open, and what was seen meanwhile."""

    state: ModelState
    world: World
    scope: Scope
    seen: Seen
    result: int

    @property
    def arguments(self) -> tuple[int, ...]:
        return self.scope.arguments

    def vmas(self) -> Iterator[VmaRange]:
        """The VMAs that the operation's range touches."""
        mm, start, end = self.arguments[:3]
        return (vma for vma in self.world.mms.get(mm, ()) if vma.start < end and start < vma.end)

    def granted(self, refused: set[int]) -> set[int]:
        """0 where VMAs covered the range, one of `refused` where they did not; both where both was so at some time."""
        return ({0} if Seen.GRANTED in self.seen else set[int]()) | (refused if Seen.DENIED in self.seen else set[int]())


Results = Callable[[Case], "set[int]"]


# ---- accesses --------------------------------------------------------------------------------------------------------


def _access(case: Case) -> set[int]:
    if case.scope.fault:
        return {KILLED[kind] for kind in KILLED if kind & case.scope.fault}
    if Seen.ACCESSED in case.seen:
        return {0}
    return {-SIGSEGV} if Seen.DENIED in case.seen else set()


def _pin(case: Case) -> set[int]:
    fault = case.scope.fault
    results = {0} if Seen.GRANTED in case.seen and not fault else set[int]()
    if Seen.DENIED in case.seen or fault & (VmFault.SIGBUS | VmFault.SIGSEGV | VmFault.HWPOISON):
        results.add(-Errno.EFAULT)
    if Seen.FAILED in case.seen or fault & VmFault.OOM:
        results.add(-Errno.ENOMEM)
    return results


def _take_pages(case: Case) -> set[int]:
    """get_user_pages and its kin: the pages up to one that may not be had; an errno where that is the first."""
    mm, start, end, flags = case.arguments[:4]
    wanted = access(bool(flags & FOLL_WRITE))
    if flags & FOLL_LONGTERM and not flags & FOLL_PIN:
        return {-Errno.EINVAL}
    had = next(
        (addr - start for addr in range(start, end) if not is_granted(case.world, (mm, addr, addr + 1, wanted))), end - start
    )
    results = {had or -Errno.EFAULT}
    if had < end - start:
        results |= {-Errno.EFAULT, -Errno.EINVAL} if not had else set[int]()
    if case.scope.fault or Seen.FAILED in case.seen or not case.scope.quiet:
        results |= {-Errno.EFAULT, -Errno.ENOMEM, -EHWPOISON, *range(1, end - start + 1)}
    return results if case.scope.quiet else results | {-Errno.EBUSY, -Errno.EAGAIN}


def _reference(case: Case) -> set[int]:
    """EAGAIN where there was no reference to add to: the trace shows that it was missed, or that the frame is free at the end."""
    if Seen.LOST in case.seen:
        return {-Errno.EAGAIN}
    free = case.arguments[:1] and case.world.folio(case.arguments[0]).refcount == 0
    return {0, -Errno.EAGAIN} if free else {0}


# ---- address spaces --------------------------------------------------------------------------------------------------


def _succeeds(_case: Case) -> set[int]:
    return {0}


def _allocates(case: Case) -> set[int]:
    return {0, -Errno.ENOMEM} if Seen.FAILED in case.seen else {0}


def _mprotect(case: Case) -> set[int]:
    return case.granted({-Errno.ENOMEM}) | ({-Errno.ENOMEM} if Seen.FAILED in case.seen else set[int]())


def _mremap(case: Case) -> set[int]:
    """What is moved must be mapped, before v6.17 by one VMA, and must not overlap where it goes."""
    start, end, to = case.arguments[1:4]
    if to < end and start < to + end - start:
        return {-Errno.EINVAL}
    results = case.granted({-Errno.EFAULT})
    changed = Seen.GRANTED in case.scope.seen  # VMAs changed meanwhile
    if changed or len(list(case.vmas())) > 1:
        results.add(-Errno.EFAULT)
    if Seen.FAILED in case.seen:
        results.add(-Errno.ENOMEM)
    return results


def _advice(forbidden: VmFlags, *, anonymous: bool = False) -> Results:
    """madvise: ENOMEM for what is not mapped, EINVAL for a VMA that the advice is not for, whichever comes first."""

    def results(case: Case) -> set[int]:
        odd = any(vma.flags & forbidden or (anonymous and not vma.anonymous) for vma in case.vmas())
        found = case.granted({-Errno.ENOMEM})
        if odd or (not case.scope.quiet and Seen.DENIED in case.seen):
            found.add(-Errno.EINVAL)
        if odd and case.scope.quiet:
            found.discard(0)
        return found

    return results


# ---- userfaultfd -----------------------------------------------------------------------------------------------------


def _uffd_register(case: Case) -> set[int]:
    """Some VMA must be there; holes between them do not matter. Of files only those without a name can be watched."""
    if not case.scope.quiet:
        return {0, -Errno.EINVAL, -Errno.ENOMEM, -Errno.EBUSY}
    vmas = list(case.vmas())
    if not any(not vma.flags & VM_SPECIAL for vma in vmas):
        return {-Errno.EINVAL}
    return {0} if all(vma.anonymous for vma in vmas) else {0, -Errno.EINVAL}  # whether a file has a name is not told


def _uffd_fill(case: Case) -> set[int]:
    """Into a watched VMA, where no page is. Such a call says EEXIST of a page, and ENOENT where nobody watches."""
    if not case.scope.quiet:
        return {0, -Errno.EEXIST, -Errno.ENOENT, -Errno.EAGAIN, -Errno.ENOMEM, -Errno.EFAULT}
    vma = case.world.vma(*case.arguments[:2])
    if vma is None or not vma.flags & WATCHES:
        return {-Errno.ENOENT}
    if not vma.anonymous:
        # what of a file can be filled, and what of it is there, is not told
        short = {-Errno.ENOMEM} if Seen.FAILED in case.seen else set[int]()
        return {0, -Errno.EEXIST, -Errno.EINVAL, -Errno.ENOENT} | short
    results = {-Errno.EEXIST} if Seen.INDIRECT in case.seen else {0}
    if case.arguments[1:2] == case.arguments[2:3]:
        results.add(-Errno.EEXIST)  # to read the page brings it
    return results | ({-Errno.ENOMEM} if Seen.FAILED in case.seen else set[int]())


def _uffd_writeprotect(case: Case) -> set[int]:
    if not case.scope.quiet:
        return {0, -Errno.ENOENT, -Errno.EAGAIN, -Errno.ENOMEM}
    found = list(case.vmas())
    allowed = {0} if found and all(vma.flags & VmFlags.UFFD_WP for vma in found) else {-Errno.ENOENT}
    return allowed | ({-Errno.ENOMEM} if Seen.FAILED in case.seen else set[int]())


def _uffd_serve(_case: Case) -> set[int]:
    """The monitor answers a fault that another task has raised, which may have gone away since: always a race."""
    return {0, -Errno.EEXIST, -Errno.ENOENT, -Errno.EAGAIN, -Errno.ENOMEM, -Errno.EFAULT}


# ---- memory ----------------------------------------------------------------------------------------------------------


def _counts_one(_case: Case) -> set[int]:
    """A page of a file: it had to be done, or not."""
    return {0, 1}


def _poison(_case: Case) -> set[int]:
    """Memory of a device, and what somebody holds on to, is not given up."""
    return {0, -Errno.EBUSY, -Errno.EOPNOTSUPP, -Errno.EINVAL, -Errno.EAGAIN, -ENXIO}


def _maps_file(case: Case) -> set[int]:
    """There may be no such file, or no room for one more."""
    return _allocates(case) | {-Errno.EINVAL, -Errno.ENOMEM, -Errno.ENOSPC}


def _pagemap(case: Case) -> set[int]:
    """The bits of the entry that a reader of /proc/pid/pagemap is told; the others are not judged, nor is a race."""
    if not case.scope.quiet or case.result < 0:
        return {case.result}
    pte = case.world.pte(*case.arguments[:2])
    bits = PM_PRESENT * (pte.kind in _SHOWN) | PM_SWAP * (pte.kind in _SWAPPED) | PM_UFFD_WP * pte.uffd_wp
    return {case.result & ~(PM_PRESENT | PM_SWAP | PM_UFFD_WP) | bits}


PM_UFFD_WP, PM_SWAP, PM_PRESENT = 1 << 2, 1 << 7, 1 << 8
"""Bits 57, 62 and 63 of a pagemap entry, of which the operation answers the bits from 55 on."""
_SHOWN = frozenset({PteKind.PRESENT, PteKind.ZERO})
_SWAPPED = frozenset(PteKind) - _SHOWN - {PteKind.NONE, PteKind.TABLE}

_UNADVISABLE = VmFlags.LOCKED | VmFlags.PFNMAP | VmFlags.HUGETLB

RESULTS: dict[str, Results] = {
    "read": _access,
    "write": _access,
    "pin": _pin,
    **dict.fromkeys(TAKES, _take_pages),
    "unpin": _succeeds,
    "put_user_pages": _succeeds,
    "unpin_user_pages": _succeeds,
    "speculative_reference": _reference,
    "mmap": _allocates,
    "munmap": _allocates,
    "mprotect": _mprotect,
    MOVE: _mremap,
    "fork": _allocates,
    "execve": _allocates,
    "exit": _allocates,
    DISCARD: _advice(_UNADVISABLE),
    FREE: _advice(VmFlags.NONE, anonymous=True),
    "madvise_cold": _advice(_UNADVISABLE),
    "madvise_pageout": _advice(_UNADVISABLE),
    "madvise_hugepage": _advice(VM_SPECIAL | VmFlags.HUGETLB),
    "clear_refs": _succeeds,
    "uffd_register": _uffd_register,
    "uffd_unregister": _uffd_register,
    USER_COPY: _uffd_fill,
    "uffd_zeropage": _uffd_fill,
    "uffd_writeprotect": _uffd_writeprotect,
    SERVE: _uffd_serve,
    "pageout": _advice(_UNADVISABLE),
    "mmap_file": _maps_file,
    "mmap_shared": _maps_file,
    "mmap_device": _maps_file,
    "mmap_hugetlb": _maps_file,
    "write_back": _counts_one,
    "drop_page": _counts_one,
    PUNCH: _succeeds,
    "poison": _poison,
    "pagemap": _pagemap,
    "refused setups": _succeeds,
}
"""Every operation that is no device's."""
