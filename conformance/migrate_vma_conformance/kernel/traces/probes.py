"""The probes that a trace can be of: at which functions they sit, what they are called, and what their fields mean.

Rules:
- A probe is known by the function at which it sits, where the line names it; else by its own name, as the set-ups of `setups.py`
  give it.
- What a field is called differs between set-ups; here each has one name.

Sources: mm/migrate_device.c, mm/memory.c:do_swap_page; the `dev_pagemap_ops` of the drivers (6.1.192, 7.3.4).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType

from attrs import frozen


class Point(enum.Enum):
    """Where a probe sits; the value is the name of its event in our own set-ups."""

    SETUP = "setup"
    SETUP_RETURN = "setup_ret"
    PAGES = "pages"
    PAGES_RETURN = "pages_ret"
    FINALIZE = "fin"
    CALLBACK = "fault"
    CALLBACK_RETURN = "fault_ret"
    FREE = "freepg"
    SWAP_FAULT = "dsp"


@frozen
class Driver:
    """A driver of device-private memory: its migrate_to_ram, and what is called when one of its pages is freed.

    The newest name stands first; `module` is where the functions are, empty for one that is built in.
    """

    name: str
    module: str
    callbacks: tuple[str, ...]
    frees: tuple[str, ...]


_DRIVERS = (
    Driver("test_hmm", "test_hmm", ("dmirror_devmem_fault",), ("dmirror_devmem_free",)),
    Driver("nouveau", "nouveau", ("nouveau_dmem_migrate_to_ram",), ("nouveau_dmem_folio_free", "nouveau_dmem_page_free")),
    Driver("amdgpu", "amdgpu", ("svm_migrate_to_ram",), ("svm_migrate_folio_free", "svm_migrate_page_free")),
    Driver(
        "xe",
        "drm_gpusvm_helper",
        ("drm_pagemap_migrate_to_ram", "drm_gpusvm_migrate_to_ram"),
        ("drm_pagemap_folio_free", "drm_pagemap_page_free", "drm_gpusvm_page_free"),
    ),
    Driver("nvidia-uvm", "nvidia_uvm", ("devmem_fault_entry",), ("devmem_folio_free", "devmem_page_free")),
)
DRIVERS: Mapping[str, Driver] = MappingProxyType({driver.name: driver for driver in _DRIVERS})
"""The drivers whose functions are known here."""

CORE = MappingProxyType({
    "migrate_vma_setup": (Point.SETUP, Point.SETUP_RETURN),
    "migrate_vma_pages": (Point.PAGES, Point.PAGES_RETURN),
    "migrate_vma_finalize": (Point.FINALIZE, None),
    "do_swap_page": (Point.SWAP_FAULT, None),
})  # fmt: skip
"""The functions of the kernel itself: the points at their entry and at their return."""

ENTRY_BYTES = 8
"""A probe at most so far into a function is at its entry: behind an `endbr64`, or at the call that ftrace put there."""


def points_of(callbacks: tuple[str, ...] = ()) -> dict[str, tuple[Point | None, Point | None]]:
    """The points at the entry and the return of each function, those of a caller's own migrate_to_ram among them."""
    known: dict[str, tuple[Point | None, Point | None]] = dict(CORE)
    for driver in DRIVERS.values():
        known |= dict.fromkeys(driver.callbacks, (Point.CALLBACK, Point.CALLBACK_RETURN))
        known |= dict.fromkeys(driver.frees, (Point.FREE, None))
    return known | dict.fromkeys(callbacks, (Point.CALLBACK, Point.CALLBACK_RETURN))


BY_NAME = MappingProxyType({point.value: point for point in Point})

_ALIASES = {
    "start": ("st",),
    "end": ("en",),
    "flags": ("fl",),
    "cpages": ("cp",),
    "npages": ("np",),
    "owner": ("ow", "pgmap_owner"),
    "fault_page": ("fp",),
    "page_flags": ("pgfl",),
    "refs": ("ref", "refcount"),
    "src": ("src0",),
    "dst": ("dst0",),
    "page": ("pg",),
    "address": ("addr",),
    "fault_flags": ("ff",),
    "result": ("ret", "retval"),
    "args": (),
    "vma": (),
    "mm": (),
}
FIELDS = MappingProxyType({alias: name for name, others in _ALIASES.items() for alias in (name, *others)})
"""What a field of a line is, by what the line calls it."""
