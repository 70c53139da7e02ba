"""The initrd of a guest: an archive in cpio's new format.

Source: Documentation/driver-api/early-userspace/buffer-format.rst of the kernel.

Rules:
- The same contents give the same bytes: no times, no owners, no order but the given one.
"""

from __future__ import annotations

import gzip
import stat
from collections.abc import Iterable

from attrs import frozen

_MAGIC = "070701"
_END = "TRAILER!!!"
_DIRECTORY = stat.S_IFDIR | 0o755
_PROGRAM = stat.S_IFREG | 0o755
_DEVICE = stat.S_IFCHR | 0o600


@frozen
class Entry:
    """A file of the archive. `device` is the major and minor number of a device file."""

    name: str
    mode: int
    contents: bytes = b""
    device: tuple[int, int] = (0, 0)


def directory(name: str) -> Entry:
    return Entry(name, _DIRECTORY)


def program(name: str, contents: bytes) -> Entry:
    """A file that can be run; nothing here minds that a module can be, too."""
    return Entry(name, _PROGRAM, contents)


def device(name: str, major: int, minor: int) -> Entry:
    return Entry(name, _DEVICE, b"", (major, minor))


def archive(entries: Iterable[Entry]) -> bytes:
    """The entries as a compressed archive. A directory must stand before what is in it."""
    written = [_entry(number, entry) for number, entry in enumerate((*entries, Entry(_END, 0)), start=1)]
    return gzip.compress(b"".join(written), compresslevel=6, mtime=0)


def _entry(number: int, entry: Entry) -> bytes:
    name = entry.name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (number, entry.mode, 0, 0, links, 0, len(entry.contents), 0, 0, *entry.device, len(name), 0)
    header = (_MAGIC + "".join(f"{value:08X}" for value in fields)).encode()
    return _padded(header + name) + _padded(entry.contents)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
