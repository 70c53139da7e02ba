"""The operation language: what one asks of a guest, and of everything that is compared with it.

Rules:
- Addresses are page indices in an arena, which every process has at the same virtual address. Processes and devices are small
  numbers.
- A command is a value: its class says the verb, its fields in order are the arguments; `protocol.py` writes and reads them.
- After `Reset` there is process 0 alone, without mappings and without open devices. `Fork` makes the others.
- A store writes one byte at the beginning of a page, a load reads it. A device reads and writes whole pages; that byte is told.
"""

from __future__ import annotations

import enum
from typing import ClassVar

from attrs import field, frozen
from attrs.validators import ge, le, lt

ARENA_PAGES = 1 << 14
"""Pages of the arena: 32 times what one middle-level entry maps. A large mapping begins at a multiple of 512."""
PROCESSES = 16
"""Process numbers are below this."""
DEVICES = 2
"""The devices that the module makes of device-private memory."""
MOST_PAGES = 1024
"""Pages of one device access: the bytes that it tells fit into one answer."""


class Protection(enum.Enum):
    NONE = "none"
    READ = "read"
    WRITE = "write"
    """Readable and writable."""


class Kind(enum.Enum):
    """What is mapped. A file has the arena's page indices as its offsets, and is empty again after `Reset`."""

    PRIVATE = "private"
    SHARED = "shared"
    FILE = "file"
    FILE_PRIVATE = "file-private"
    HUGE = "huge"
    """Private anonymous memory that asks for large folios; the others get none."""


class Advice(enum.Enum):
    DONTNEED = "dontneed"
    FREE = "free"
    COLD = "cold"
    PAGEOUT = "pageout"
    HUGEPAGE = "hugepage"
    NOHUGEPAGE = "nohugepage"
    COLLAPSE = "collapse"
    POPULATE_READ = "populate-read"
    POPULATE_WRITE = "populate-write"
    DONTFORK = "dontfork"


class Module(enum.Enum):
    """Which test_hmm a guest loads: as its kernel shipped it, or with its known defect mended."""

    STOCK = "stock"
    MENDED = "mended"


_PROCESS = [ge(0), lt(PROCESSES)]
_DEVICE = [ge(0), lt(DEVICES)]
_PAGE = [ge(0), lt(ARENA_PAGES)]
_COUNT = [ge(0), le(ARENA_PAGES)]
_ACCESSED = [ge(0), le(MOST_PAGES)]
_BYTE = [ge(0), le(255)]


@frozen
class Command:
    """One line to a guest."""

    verb: ClassVar[str]


# ---- the guest ---------------------------------------------------------------------------------------------------------


@frozen
class Hello(Command):
    """Asks who is there. Its answer's text names the kernel; it must be of the same version of the protocol."""

    verb = "hello"
    version: int


@frozen
class Reset(Command):
    """Ends every process, and begins process 0 afresh. -110: one does not end."""

    verb = "reset"


@frozen
class Limit(Command):
    """How long a process may take for a command, in milliseconds, before its answer is `hung`."""

    verb = "limit"
    milliseconds: int = field(validator=ge(1))


@frozen
class UseModule(Command):
    """Loads this test_hmm in the place of the one that is loaded (which no process may have open)."""

    verb = "module"
    module: Module


@frozen
class ReadFile(Command):
    """Reads a file of the guest, as far as it goes without waiting. Its answer has a text; -27: the file is longer."""

    verb = "read-file"
    path: str


@frozen
class WriteFile(Command):
    """Writes a text to a file of the guest, which must exist, in the place of what is there, in one write."""

    verb = "write-file"
    path: str
    text: str


@frozen
class AppendFile(Command):
    """As `WriteFile`, behind what is there: how a probe is added to those that tracefs has."""

    verb = "append-file"
    path: str
    text: str


@frozen
class Execute(Command):
    """Runs a program of the guest, at most so many seconds. Its result is the status or minus the signal, its text the output."""

    verb = "execute"
    seconds: int = field(validator=ge(1))
    words: tuple[str, ...]


# ---- processes and mappings --------------------------------------------------------------------------------------------


@frozen
class Fork(Command):
    """Makes process `child` of process `process`."""

    verb = "fork"
    process: int = field(validator=_PROCESS)
    child: int = field(validator=_PROCESS)


@frozen
class Exit(Command):
    verb = "exit"
    process: int = field(validator=_PROCESS)


@frozen
class Map(Command):
    """mmap at this place, over whatever is there."""

    verb = "map"
    process: int = field(validator=_PROCESS)
    first: int = field(validator=_PAGE)
    count: int = field(validator=_COUNT)
    protection: Protection = field(default=Protection.WRITE)
    kind: Kind = field(default=Kind.PRIVATE)


@frozen
class Unmap(Command):
    verb = "unmap"
    process: int = field(validator=_PROCESS)
    first: int = field(validator=_PAGE)
    count: int = field(validator=_COUNT)


@frozen
class Protect(Command):
    verb = "protect"
    process: int = field(validator=_PROCESS)
    first: int = field(validator=_PAGE)
    count: int = field(validator=_COUNT)
    protection: Protection


@frozen
class Advise(Command):
    verb = "advise"
    process: int = field(validator=_PROCESS)
    first: int = field(validator=_PAGE)
    count: int = field(validator=_COUNT)
    advice: Advice


@frozen
class Remap(Command):
    """mremap to another place of the arena, over whatever is there."""

    verb = "remap"
    process: int = field(validator=_PROCESS)
    first: int = field(validator=_PAGE)
    count: int = field(validator=_COUNT)
    to: int = field(validator=_PAGE)


@frozen
class Load(Command):
    """Reads a byte. Its answer has a value, or the signal that the access got."""

    verb = "load"
    process: int = field(validator=_PROCESS)
    page: int = field(validator=_PAGE)


@frozen
class Store(Command):
    verb = "store"
    process: int = field(validator=_PROCESS)
    page: int = field(validator=_PAGE)
    value: int = field(validator=_BYTE)


@frozen
class Pin(Command):
    """Takes a reference to the page for reading (vmsplice to a pipe). -17: the page has one."""

    verb = "pin"
    process: int = field(validator=_PROCESS)
    page: int = field(validator=_PAGE)


@frozen
class Unpin(Command):
    """Drops the reference. Its answer has the value that the page held meanwhile. -2: no pin."""

    verb = "unpin"
    process: int = field(validator=_PROCESS)
    page: int = field(validator=_PAGE)


# ---- devices -----------------------------------------------------------------------------------------------------------


@frozen
class Open(Command):
    """Opens a device: from here on it mirrors the process."""

    verb = "open"
    process: int = field(validator=_PROCESS)
    device: int = field(validator=_DEVICE)


@frozen
class Close(Command):
    verb = "close"
    process: int = field(validator=_PROCESS)
    device: int = field(validator=_DEVICE)


@frozen
class DeviceAccess(Command):
    """An operation of a device on a range. A process that does not have it open is told -9."""

    process: int = field(validator=_PROCESS)
    device: int = field(validator=_DEVICE)
    first: int = field(validator=_PAGE)
    count: int = field(validator=_ACCESSED)


@frozen
class DeviceRead(DeviceAccess):
    """The device reads; a byte for each page."""

    verb = "read"


@frozen
class DeviceWrite(DeviceAccess):
    """The device writes `value` to the first page, `value + 1` to the next, ... (modulo 256)."""

    verb = "write"
    value: int = field(validator=_BYTE)


@frozen
class ToDevice(DeviceAccess):
    """Migrates to the device; a byte for each page, as the device then has it."""

    verb = "to-device"


@frozen
class ToSystem(DeviceAccess):
    """Migrates back. The count in its answer is of pages that moved."""

    verb = "to-system"


@frozen
class Snapshot(DeviceAccess):
    """What the CPU's page tables hold, a byte for each page (HMM_DMIRROR_PROT_*), without faulting."""

    verb = "snapshot"


@frozen
class Exclusive(DeviceAccess):
    """Makes the pages exclusive to the device."""

    verb = "exclusive"


@frozen
class CheckExclusive(DeviceAccess):
    """0 if no page of the range is exclusive any longer, else -1."""

    verb = "check-exclusive"


@frozen
class Release(DeviceAccess):
    """Gives up all of the device's memory, as at its removal; the range says nothing."""

    verb = "release"


@frozen
class Flags(Command):
    """Sets the flags of the module for this process. -22: this version of the module has none."""

    verb = "flags"
    process: int = field(validator=_PROCESS)
    device: int = field(validator=_DEVICE)
    value: int = field(validator=ge(0))


# ---- together ----------------------------------------------------------------------------------------------------------


@frozen
class Race(Command):
    """These commands at once, each in a thread of its process, started by one barrier. Its answer has one part for each.

    What cannot be raced (the guest's own commands, another race, exit) is refused.
    """

    verb = "race"
    commands: tuple[Command, ...]
