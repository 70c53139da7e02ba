"""A machine for the builder: programs that only seem to compile, and a source of a few files in the place of a kernel's."""

from __future__ import annotations

import io
import shutil
import tarfile
from pathlib import Path

from attrs import frozen

from migrate_vma_conformance.kernel.building.build import Outcome, builder
from migrate_vma_conformance.kernel.building.tools import COMPILING, FETCHING
from migrate_vma_conformance.kernel.guests import KINDS

KIND = KINDS["6.1"]

MODULE = """static void dmirror_first(void)
{
	entry = page;
}

static int dmirror_do_fault(void)
{
	entry = page;
	return 0;
}
"""
SOURCE = {
    "lib/test_hmm.c": MODULE,
    "lib/test_hmm_uapi.h": "/* what the module understands */\n",
    "mm/gup_test.h": "/* what the test of pinning understands */\n",
    "tools/testing/selftests/vm/hmm-tests.c": "int main(void) { return 0; }\n",
}

_MAKE = """
for word; do
    case $word in O=*) tree=${word#O=} ;; M=*) beside=${word#M=} ;; esac
    case $word in allnoconfig|bzImage|headers|modules) targets="$targets $word" ;; esac
done
for target in $targets; do
    say "make $target${beside:+ beside}"
    [ -f "$box/hang-$target" ] && { echo $$ > "$box/hanging"; sleep 600; }
    [ -f "$box/fail-$target" ] && { cat "$box/fail-$target"; exit 2; }
    case $target in
    allnoconfig) cp "$KCONFIG_ALLCONFIG" "$tree/.config" ;;
    bzImage)
        mkdir -p "$tree/arch/x86/boot" "$tree/include/config"
        echo "  CC      mm/memory.o"
        echo a kernel > "$tree/arch/x86/boot/bzImage"
        echo 6.1.0-fake > "$tree/include/config/kernel.release"
        [ -f "$box/ignores" ] && echo > "$tree/.config" ;;
    modules)
        if [ "$beside" ]; then cp "$beside/test_hmm.c" "$beside/test_hmm.ko"
        else mkdir -p "$tree/lib"; echo a module > "$tree/lib/test_hmm.ko"; fi ;;
    esac
done
exit 0
"""
_GCC = """
case $* in
*--version*) echo "gcc (fake) 1.0"; exit 0 ;;
*-print-file-name*) echo /usr/lib/libc.a; exit 0 ;;
*-fsyntax-only*) exit 0 ;;
esac
[ -f "$box/fail-gcc" ] && { cat "$box/fail-gcc"; exit 1; }
while [ $# -gt 0 ]; do case $1 in -o) out=$2 ;; *.c) sources="$sources $1" ;; esac; shift; done
say "gcc ${out##*/}"
cat $sources > "$out"
"""
_QUERY = "printf 6.1.0-1\n"
_FETCH = """
[ -f "$box/unreachable" ] && { echo "E: Failed to fetch http://deb.debian.org/ Could not connect"; exit 100; }
case $* in *download*) echo "E: Unable to locate package linux-source-6.1"; exit 100 ;; esac
exit 0
"""


@frozen
class Toolbox:
    """Where the programs are, what they said that they were asked, and the cache that a build works in."""

    place: Path
    cache: Path
    installed: Path

    def build(self, *, again: bool = False) -> Outcome:
        with builder(self.cache, again=again) as with_it:
            return with_it.build(KIND)

    def asked(self) -> list[str]:
        """What the programs were asked since the last call."""
        calls = self.place / "calls"
        said = calls.read_text().splitlines() if calls.exists() else []
        calls.unlink(missing_ok=True)
        return said

    def fails(self, target: str, says: str) -> None:
        (self.place / f"fail-{target}").write_text(f"{says}\n")

    def mends(self, target: str) -> None:
        (self.place / f"fail-{target}").unlink()


def make_toolbox(directory: Path) -> Toolbox:
    """Programs, a source and an empty cache."""
    box = Toolbox(directory / "bin", directory / "cache", directory / "src")
    for place in (box.place, box.installed):
        place.mkdir(parents=True)
    scripts = {"make": _MAKE, "gcc": _GCC, "dpkg-query": _QUERY, "apt-get": _FETCH}
    for name in {*COMPILING, *FETCHING, "strip", *scripts}:
        _write_script(box.place, name, scripts.get(name, "exit 0\n"))
    for name in ("tar", "mkdir", "cp", "cat", "sleep"):
        (box.place / name).unlink(missing_ok=True)
        (box.place / name).symlink_to(shutil.which(name) or name)
    _write_source(box.installed / f"{KIND.package}.tar.xz")
    return box


def _write_script(place: Path, name: str, body: str) -> None:
    path = place / name
    path.write_text(f'#!/bin/sh\nbox={place}\nsay() {{ echo "$1" >> "$box/calls"; }}\n{body}')
    path.chmod(0o755)


def _write_source(path: Path) -> None:
    """Not compressed: tar sees that by itself, and no other program is needed."""
    with tarfile.open(path, "w") as archive:
        for name, text in SOURCE.items():
            member = tarfile.TarInfo(f"{KIND.package}/{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))


