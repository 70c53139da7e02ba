"""How a trace is recorded on somebody's own machine: what to write to tracefs, and scripts for trace-cmd and bpftrace.

Rules:
- What is printed sets up what is read: each probe has the name and the fields that `probes.py` knows.
- Nothing here runs anything. The scripts want root, and undo what they set up.
- The clock is one that all CPUs share: what two of them did can be compared.

Sources: struct migrate_vma, page, vm_fault and vm_area_struct (6.1.192, 7.3.4; x86-64); Documentation/trace/kprobetrace.rst;
arguments in return probes: Linux 6.9.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Iterator

from attrs import frozen

from migrate_vma_conformance.errors import UsageError, listed
from migrate_vma_conformance.kernel.traces.lines import OURS
from migrate_vma_conformance.kernel.traces.probes import DRIVERS, Driver

GROUP = "migrate_vma"
"""Of the probe events in tracefs."""
ENTRIES = 8
"""Entries of src and dst that a probe shows: calls for more pages are judged without their arrays."""
RETURN_ARGUMENTS = (6, 9)
"""The first kernel whose return probes see the arguments of the call."""
INSTANCES = 256
"""Calls that a return probe follows at once."""

_PAGE = "pgfl=+0({0}):x64 ref=+52({0}):s32"
_RANGE = "args=$arg1:x64 st=+40($arg1):x64 en=+48($arg1):x64 fl=+64($arg1):x64 cp=+24($arg1):u64 np=+32($arg1):u64"
_OWNER = "ow=+56($arg1):x64 fp=+72($arg1):x64 vma=+0($arg1):x64 mm=+16(+0($arg1)):x64"
_FAULT_PAGE = _PAGE.format("+72($arg1)")
_SRC = f"src=+0(+16($arg1)):x64[{ENTRIES}]"
_DST = f"dst=+0(+8($arg1)):x64[{ENTRIES}]"
_FAULT = "vma=+0($arg1):x64 mm=+16(+0($arg1)):x64 addr=+24($arg1):x64 ff=+40($arg1):u32 pg=+80($arg1):x64"


class Tool(enum.Enum):
    TRACEFS = "tracefs"
    TRACE_CMD = "trace-cmd"
    BPFTRACE = "bpftrace"


@frozen
class Wanted:
    """What is to be recorded: which driver's callbacks, on which kernel (its version's first two numbers)."""

    driver: Driver
    release: tuple[int, int]


def wanted(driver: str, release: str, source: str = "--release") -> Wanted:
    """What these words mean.

    Args:
        driver: a driver that is known here, or the name of a migrate_to_ram.
        release: a kernel's version.
        source: where that was given, for the message.

    Raises:
        UsageError: they mean nothing.
    """
    found = re.match(r"v?(\d+)\.(\d+)", release)
    if found is None:
        raise UsageError(release, source, "it is no version of a kernel", "a version, such as 6.1 or 7.3")
    if driver not in DRIVERS and not re.fullmatch(r"[A-Za-z_]\w*", driver):
        raise UsageError(driver, "--driver", "it names no function", f"the name of a migrate_to_ram, or one of {listed(DRIVERS)}")
    return Wanted(DRIVERS.get(driver) or Driver(driver, "", (driver,), ()), (int(found[1]), int(found[2])))


def probes(release: tuple[int, int], callback: str, free: str | None) -> list[str]:
    """The definitions of the probes, line by line, for tracefs's kprobe_events.

    Args:
        release: the kernel's.
        callback: the driver's migrate_to_ram.
        free: its page_free or folio_free, where it is known.
    """
    sees = release >= RETURN_ARGUMENTS
    returned, state = f"r{INSTANCES}:{GROUP}", f"{_RANGE} {_OWNER} {_FAULT_PAGE}"
    lines = [
        f"p:{GROUP}/setup migrate_vma_setup {state}",
        f"{returned}/setup_ret migrate_vma_setup ret=$retval:s32{f' {_RANGE} {_FAULT_PAGE} {_SRC}' if sees else ''}",
        f"p:{GROUP}/pages migrate_vma_pages {state} {_SRC} {_DST}",
        *([f"{returned}/pages_ret migrate_vma_pages {_RANGE} {_SRC}"] if sees else []),
        f"p:{GROUP}/fin migrate_vma_finalize {_RANGE} {_SRC} {_DST}",
        f"p:{GROUP}/dsp do_swap_page vmf=$arg1:x64",
        f"p:{GROUP}/fault {callback} {_FAULT} {_PAGE.format('+80($arg1)')}",
        f"{returned}/fault_ret {callback} ret=$retval:x32",
    ]
    return [*lines, *([f"p:{GROUP}/freepg {free} pg=$arg1:x64 {_PAGE.format('$arg1')}"] if free else [])]


def header(kernel: str, page_size: str, installed: Iterable[str]) -> str:
    """The first line of a recording of ours: what its events do not say. `installed` are lines of `probes`."""
    names = [line.partition("/")[2].partition(" ")[0] for line in installed]
    return f"{OURS} kernel={kernel} page_size={page_size} probes={','.join(names)}"


def _header(installed: Iterable[str]) -> str:
    return header("$(uname -r)", "$(getconf PAGESIZE)", installed)


def script(tool: Tool, what: Wanted) -> list[str]:
    """The script that records with this tool."""
    body = {Tool.TRACEFS: _tracefs, Tool.TRACE_CMD: _trace_cmd, Tool.BPFTRACE: _bpftrace}[tool]
    return list(body(what))


# ---- tracefs and trace-cmd ---------------------------------------------------------------------------------------------


def _shell(tool: str) -> Iterator[str]:
    yield "#!/bin/sh"
    yield f"# Records the calls of migrate_vma_* with {tool}, for `migrate-vma trace check FILE`. Wants root."
    yield "# Usage: record.sh FILE [COMMAND...]: while COMMAND runs, or until Ctrl-C."
    yield "set -eu"
    yield "file=$1; shift"


def _probes_in_shell(what: Wanted) -> Iterator[str]:
    newest = what.release >= RETURN_ARGUMENTS
    yield "tracing=/sys/kernel/tracing"
    yield "[ -e $tracing/trace ] || mount -t tracefs tracefs $tracing"
    yield "# The first of these names that the running kernel has; a module's functions are there once it is loaded."
    yield 'first() { for name; do if grep -qw "$name" /proc/kallsyms; then echo "$name"; return; fi; done; }'
    yield f"callback=$(first {' '.join(what.driver.callbacks)})"
    missing = f"no {' or '.join(what.driver.callbacks)}: is the driver loaded?"
    yield f'[ -n "$callback" ] || {{ echo "{missing}" >&2; exit 1; }}'
    yield f"free=$(first {' '.join(what.driver.frees)})" if what.driver.frees else "free="
    yield f"# Offsets of x86-64, Linux 6.1 to 7.3; return probes {'see' if newest else 'do not see'} arguments (Linux 6.9 does)."
    yield "# Where the kernel carries BTF, `pahole migrate_vma` and `pahole vm_fault` say whether they are right."
    yield "echo 0 > $tracing/tracing_on"
    yield "echo mono > $tracing/trace_clock"
    yield "echo > $tracing/trace"
    yield "cat >> $tracing/kprobe_events <<END"
    for line in probes(what.release, "$callback", None):
        yield line.replace("$arg", "\\$arg").replace("$retval", "\\$retval")
    yield "END"
    freed = probes(what.release, "", "$free")[-1].replace("$arg1", "\\$arg1")
    yield f'[ -z "$free" ] || echo "{freed}" >> $tracing/kprobe_events'
    yield f"clean() {{ echo 0 > $tracing/events/{GROUP}/enable; grep -o '{GROUP}/[a-z_]*' $tracing/kprobe_events |"
    yield '    while read -r name; do echo "-:$name"; done >> $tracing/kprobe_events; }'
    yield f'echo "{_header(probes(what.release, "", "$free"))}" > "$file"'


def _tracefs(what: Wanted) -> Iterator[str]:
    yield from _shell("tracefs alone")
    yield from _probes_in_shell(what)
    yield "echo 16384 > $tracing/buffer_size_kb"
    yield f"echo 1 > $tracing/events/{GROUP}/enable"
    yield "echo 1 > $tracing/tracing_on"
    yield "trap : INT"
    yield "# What is read while it is recorded says where events were lost."
    yield 'cat $tracing/trace_pipe >> "$file" & reader=$!'
    yield 'if [ $# -gt 0 ]; then "$@" || true; else sleep infinity || true; fi'
    yield "echo 0 > $tracing/tracing_on; sleep 2; kill $reader || true; clean"


def _trace_cmd(what: Wanted) -> Iterator[str]:
    yield from _shell("trace-cmd")
    yield from _probes_in_shell(what)
    yield "trap : INT"
    yield f'trace-cmd record -C mono -b 16384 -o "$file.dat" -e {GROUP} "$@" || true'
    yield 'trace-cmd report -i "$file.dat" >> "$file"'
    yield "clean"


# ---- bpftrace ----------------------------------------------------------------------------------------------------------

_SHOWN = 4
"""Entries of src and dst that the bpftrace script shows."""
_RETURNS = "returns <- "


def _print(event: str, function: str, fields: dict[str, str], caller: str = "") -> list[str]:
    """A line as tracefs would write it."""
    head = f"%s-%d [%03d] ..... %llu.%09llu: {event}: ({caller}{function}+0x0/0x0)"
    return [
        "    $t = nsecs;",
        f'    printf("{head} {" ".join(fields)}\\n",',
        f"        comm, tid, cpu, $t / 1000000000, $t % 1000000000, {', '.join(fields.values())});",
    ]


def _hex(**fields: str) -> dict[str, str]:
    return {f"{name}=0x%llx": f"(uint64){value}" for name, value in fields.items()}


def _entries(*names: str) -> dict[str, str]:
    places = ",".join(["0x%llx"] * _SHOWN)
    shown = {name: ", ".join(f"(uint64)*($m->{name} + {at})" for at in range(_SHOWN)) for name in names}
    return {f"{name}={{{places}}}": values for name, values in shown.items()}


def _page_of(page: str) -> dict[str, str]:
    """Its flags and its count, by the offsets of struct page: BTF has both behind unions, whose names change."""
    return {"pgfl=0x%llx": f"{page} ? *(uint64 *){page} : 0", "ref=%d": f"{page} ? *(int32 *)({page} + 52) : 0"}


def _state() -> dict[str, str]:
    fields = _hex(args="$m", st="$m->start", en="$m->end", fl="$m->flags", cp="$m->cpages", np="$m->npages")
    rest = _hex(ow="$m->pgmap_owner", fp="$m->fault_page", vma="$m->vma", mm="$m->vma->vm_mm")
    return fields | rest | _page_of("$p")


def _call(function: str, event: str, *arrays: str) -> Iterator[str]:
    """The entry of a call and, with the arguments that it was given, its return."""
    arguments = ["    $m = (struct migrate_vma *){};", "    $p = (uint64)$m->fault_page;"]
    yield f"kprobe:{function} {{"
    yield arguments[0].format("arg0")
    yield from [arguments[1], *_print(event, function, _state() | _entries(*arrays)), f"    @{event}[tid] = arg0;", "}"]
    yield f"kretprobe:{function} /@{event}[tid]/ {{"
    yield arguments[0].format(f"@{event}[tid]")
    result = {"ret=%d": "(int32)retval"}
    yield from [arguments[1], *_print(f"{event}_ret", function, result | _state() | _entries("src"), _RETURNS)]
    yield from [f"    delete(@{event}[tid]);", "}"]


def _bpftrace(what: Wanted) -> Iterator[str]:
    callback, frees = what.driver.callbacks[0], what.driver.frees
    yield "#!/usr/bin/env bpftrace"
    yield "/* Records the calls of migrate_vma_*, for `migrate-vma trace check FILE`. Wants root, and a kernel with BTF. Usage:"
    yield f' * {{ echo "{_header(probes(RETURN_ARGUMENTS, "", "any"))}"; bpftrace record.bt 2>&1; }} > FILE'
    yield " * What the functions of a driver are called differs between kernels; these may stand in their place:"
    yield f" * {', '.join((*what.driver.callbacks, *frees))}. */"
    yield from _call("migrate_vma_setup", "setup")
    yield from _call("migrate_vma_pages", "pages", "src", "dst")
    yield from ["kprobe:migrate_vma_finalize {", "    $m = (struct migrate_vma *)arg0;", "    $p = (uint64)$m->fault_page;"]
    yield from [*_print("fin", "migrate_vma_finalize", _state() | _entries("src", "dst")), "}"]
    yield from ["kprobe:do_swap_page {", *_print("dsp", "do_swap_page", _hex(vmf="arg0")), "}"]
    yield from [f"kprobe:{callback} {{", "    $f = (struct vm_fault *)arg0;", "    $p = (uint64)$f->page;"]
    fault = _hex(vma="$f->vma", mm="$f->vma->vm_mm", addr="$f->address", ff="$f->flags", pg="$p")
    yield from [*_print("fault", callback, fault | _page_of("$p")), "}"]
    yield from [f"kretprobe:{callback} {{", *_print("fault_ret", callback, _hex(ret="retval"), _RETURNS), "}"]
    if frees:
        yield from [f"kprobe:{frees[0]} {{", "    $p = (uint64)arg0;"]
        yield from [*_print("freepg", frees[0], _hex(pg="$p") | _page_of("$p")), "}"]
