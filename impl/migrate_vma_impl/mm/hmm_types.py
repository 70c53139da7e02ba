"""What a driver asks of hmm_range_fault and what it gets: include/linux/hmm.h."""

from __future__ import annotations

import enum

from attrs import define, field, frozen

from migrate_vma_impl.mm.mm_types import Folio, Mm, Vma


class HmmRequest(enum.IntFlag):
    """What is asked of one page: HMM_PFN_REQ_FAULT and HMM_PFN_REQ_WRITE. WRITE without FAULT asks for nothing."""

    NONE = 0
    FAULT = 1
    WRITE = 2


@frozen
class HmmPfn:
    """What hmm_range_fault reports of one page.

    `valid` says that it can be used, `error` that it never can be (no mapping, or one that devices may not use). `folio` is the
    page's own frame, None for the zero page. `order` is that of the entry which maps it: the frames around it, aligned to
    1 << order, are mapped alike, whatever the size of their folio.
    """

    valid: bool = False
    write: bool = False
    folio: Folio | None = None
    error: bool = False
    order: int = 0


@define
class HmmRange:
    """struct hmm_range: what is asked of [start, end) and what was found.

    `fault` and `write` are default_flags, asked of every page. `requests` is hmm_pfns on the way in, one for each page; of it
    only what `pfn_flags_mask` lets through counts. `vmas` is what mmap_read_lock answered (hmm_range_fault_unlocked takes the
    lock itself). `hmm_pfns` is the result, one for each page; it counts if the call returned 0.
    """

    device: str
    mm: Mm
    vmas: tuple[Vma, ...]
    start: int
    end: int
    fault: bool = True
    write: bool = False
    dev_private_owner: str | None = None
    hmm_pfns: list[HmmPfn] = field(factory=list[HmmPfn])
    requests: tuple[HmmRequest, ...] = ()
    pfn_flags_mask: HmmRequest = HmmRequest.NONE

    def request(self, addr: int) -> HmmRequest:
        """What is asked of the page at `addr`, by default and of it alone."""
        asked = (HmmRequest.FAULT if self.fault else HmmRequest.NONE) | (HmmRequest.WRITE if self.write else HmmRequest.NONE)
        return asked | (self.requests[addr - self.start] & self.pfn_flags_mask if self.requests else HmmRequest.NONE)
