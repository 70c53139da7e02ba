"""A guest as a process of QEMU: started, listened to, ended. Nothing here knows the language that is spoken on its line.

Rules:
- No shell: a command is a list of words. The guest has no network and no disk; it sees its kernel, its initrd and two lines.
- The process belongs to a `Process`; whoever ends a `Process` leaves neither a child nor a file behind.
- A panic ends the machine (`panic=-1` with -no-reboot), so an oops is over at once, and its whole text is on the console.
- Hardware virtualisation may be there and not work: `start` gives up after its limit, and the caller tries the next machine.
"""

from __future__ import annotations

import contextlib
import enum
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from attrs import define, field, frozen

from migrate_vma_conformance.errors import SubjectError
from migrate_vma_conformance.kernel.commands import Module
from migrate_vma_conformance.kernel.witness.console import last_lines

PROGRAM = "qemu-system-x86_64"
PORT = "migrate-vma"
"""The name of the virtio port; guest/guest.c says the same."""

_KERNEL_LINE = (
    "console=ttyS0 loglevel=5 panic=-1 oops=panic panic_on_warn=1 kasan.fault=panic nokaslr mitigations=off no_timer_check"
)
"""Any report ends the guest, so that it is the answer to one command. The timer is not checked: a busy host delays interrupts."""

MakeCommand = Callable[[Path, Path], Sequence[str]]
"""From the socket that the machine must connect to, and the file of its console, to the command that runs it."""


class Accelerator(enum.Enum):
    KVM = "kvm"
    TCG = "tcg,thread=multi"
    """Emulation. One thread for each CPU: with a single one the races vanish."""


class NotBooted(SubjectError):
    """A guest that does not come up: QEMU is missing or fails, or nobody answers (exit code 3)."""

    def __init__(self, subject: str, problem: str, console: str = "") -> None:
        super().__init__(subject, problem)
        self.args = (subject, problem, console)
        self.console = console

    def __str__(self) -> str:
        said = last_lines(self.console)
        return super().__str__() + (f" Its console ends with:\n{said}" if said else " Its console is empty.")


class Transport(enum.Enum):
    """What the line is, on the guest's side."""

    VIRTIO = "virtio"
    SERIAL = "serial"
    """The second serial line, for a kernel without virtio: the agent takes it where there is no port. It is slower."""


@frozen
class Machine:
    """What to run, as a `MakeCommand`.

    Attributes:
        memory: megabytes.
        module: the test_hmm that the agent loads at the start.
        parameters: of the kernel, behind ours.
    """

    kernel: Path
    initrd: Path
    accelerator: Accelerator = Accelerator.TCG
    memory: int = 768
    cpus: int = 2
    module: Module = Module.MENDED
    parameters: tuple[str, ...] = ()
    transport: Transport = Transport.VIRTIO

    def __call__(self, wire: Path, console: Path) -> list[str]:
        kernel_line = " ".join((_KERNEL_LINE, f"agent.module={self.module.value}", *self.parameters))
        return [
            *(PROGRAM, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-nic", "none"),
            *("-accel", self.accelerator.value, "-cpu", "host" if self.accelerator is Accelerator.KVM else "max"),
            *("-m", str(self.memory), "-smp", str(self.cpus)),
            *("-kernel", str(self.kernel), "-initrd", str(self.initrd), "-append", kernel_line),
            *("-serial", f"file:{console}"),
            *("-chardev", f"socket,id=wire,path={wire}"),
            *self._line(),
        ]

    def _line(self) -> tuple[str, ...]:
        if self.transport is Transport.SERIAL:
            return ("-serial", "chardev:wire")
        return ("-device", "virtio-serial-pci", "-device", f"virtserialport,chardev=wire,name={PORT}")


def qemu_missing() -> str | None:
    """Why no guest can run here, in words; None if one can."""
    return None if shutil.which(PROGRAM) else f"{PROGRAM} is not installed (Debian: qemu-system-x86)"


def accelerators() -> tuple[Accelerator, ...]:
    """What can be tried here, the fastest first."""
    usable = os.access("/dev/kvm", os.R_OK | os.W_OK)
    return (Accelerator.KVM, Accelerator.TCG) if usable else (Accelerator.TCG,)


@define
class Process:
    """A machine that runs, and the line to it. Closed, it is ended and leaves nothing behind."""

    child: subprocess.Popen[bytes]
    wire: socket.socket
    directory: Path
    console_file: Path
    complaints: Path
    _closed: bool = field(default=False, init=False)

    def console(self) -> str:
        """What the guest has printed so far, and then what QEMU itself complained of."""
        texts = [path.read_bytes().decode(errors="replace") for path in (self.console_file, self.complaints) if path.exists()]
        return "".join(texts).replace("\r\n", "\n")

    def ended(self, within: float) -> bool:
        """Whether the machine has ended by itself; waits for it that long."""
        try:
            self.child.wait(timeout=within)
        except subprocess.TimeoutExpired:
            return False
        return True

    def close(self) -> None:
        """Ends it, whatever it is doing."""
        if self._closed:
            return
        self._closed = True
        self.child.kill()
        self.child.wait()
        self.wire.close()
        shutil.rmtree(self.directory, ignore_errors=True)


def start(name: str, command: MakeCommand, limit: float) -> Process:
    """Starts a machine and waits until it has connected its line, which it does before its kernel runs.

    Raises:
        NotBooted: it cannot be started, ended at once, or did not connect within `limit` seconds.
    """
    directory = Path(tempfile.mkdtemp(prefix="migrate-vma-"))
    console, complaints, path = directory / "console", directory / "complaints", directory / "wire"
    with contextlib.ExitStack() as undo, socket.socket(socket.AF_UNIX) as listening:
        undo.callback(shutil.rmtree, directory, ignore_errors=True)
        listening.bind(str(path))
        listening.listen(1)
        words = list(command(path, console))
        try:
            with complaints.open("wb") as errors:
                child = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors)  # noqa: S603  (no shell)
        except OSError as error:
            raise NotBooted(name, f"{words[0]} cannot be started: {error}") from error
        undo.callback(child.wait)
        undo.callback(child.kill)
        wire = _accept(listening, child, time.monotonic() + limit)
        if wire is None:
            why = f"ended with status {child.returncode}" if child.returncode is not None else f"did not connect in {limit:g} s"
            raise NotBooted(name, f"{words[0]} {why}", complaints.read_text(errors="replace"))
        undo.pop_all()
    return Process(child, wire, directory, console, complaints)


def _accept(listening: socket.socket, child: subprocess.Popen[bytes], end: float) -> socket.socket | None:
    listening.settimeout(0.1)
    while child.poll() is None and time.monotonic() < end:
        with contextlib.suppress(TimeoutError):
            return listening.accept()[0]
    return None
