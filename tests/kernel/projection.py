"""What probes would show of an execution of the simulated kernel: its events, as lines of a tracer.

The shapes are those of three tools. Frames, address spaces and addresses get addresses as on x86-64 without randomisation.
"""

from __future__ import annotations

import enum

from migrate_vma_spec import events as ev
from migrate_vma_spec.objects import World
from migrate_vma_spec.world import fold

STRUCT_PAGES, MMS, OWNERS = 0xFFFFEA0000000000, 0xFFFF888000000000, 0xFFFFFFFFA0000000


class Shape(enum.Enum):
    TRACEFS = "tracefs"
    TRACE_CMD = "trace-cmd"
    BPFTRACE = "bpftrace"


FUNCTIONS = {
    "setup": "migrate_vma_setup",
    "pages": "migrate_vma_pages",
    "fin": "migrate_vma_finalize",
    "fault": "dmirror_devmem_fault",
    "freepg": "dmirror_devmem_free",
    "dsp": "do_swap_page",
}


def line(event, number, *, pid=100, cpu=0, shape=Shape.TRACEFS, comm="task", **fields):
    """One line: the event of a probe, its time in microseconds, the thread, and what it shows. Integers are in hex."""
    told = " ".join(f"{name}={_shown(name, value)}" for name, value in fields.items())
    name, returns = event.removesuffix("_ret"), event.endswith("_ret")
    place = FUNCTIONS[name] if shape is not Shape.TRACE_CMD else "ffffffff81234560"
    place = f"({'caller+0x98/0xe0 <- ' if returns else ''}{place}{'' if returns or shape is Shape.TRACE_CMD else '+0x4/0x80'})"
    seconds, fraction = divmod(number, 1_000_000)
    flags = "" if shape is Shape.TRACE_CMD else "....."
    digits = "000" if shape is Shape.BPFTRACE else ""
    return f"{comm:>16}-{pid:<7} [{cpu:03}] {flags} {seconds:5}.{fraction:06}{digits}: {event}: {place} {told}"


def _shown(name, value):
    if isinstance(value, tuple):
        return "{" + ",".join(map(hex, value)) + "}"
    return str(value) if name in {"ret", "ref"} else hex(value)


def page(pfn):
    return 0 if pfn is None else STRUCT_PAGES + 64 * pfn


class Projection:
    """The lines of one execution. `returns`: return probes see arguments, as from Linux 6.9 on."""

    def __init__(self, capabilities, *, returns=True, shape=Shape.TRACEFS):
        self.world = World(capabilities=capabilities)
        self.returns = returns
        self.shape = shape
        self.lines = []
        self.owners = {}
        self.tasks = {}
        self.writes = {}
        self.calls = {}
        self.time = 1_000_000

    def take(self, steps):
        for step in steps:
            self.time += 7
            show = SHOWN.get(type(step.event))
            before = self.world
            self.world = fold(before, step)
            if show is not None:
                show(self, step, step.event, before)
        return self

    def _add(self, step, event, **fields):
        pid = 100 + self.tasks.setdefault(step.task, len(self.tasks))
        comm = "gpu worker" if step.task.startswith("gpu") else "task"
        self.lines.append(line(event, self.time, pid=pid, cpu=step.cpu, shape=self.shape, comm=comm, **fields))

    def _look(self, pfn, world):
        if pfn is None:
            return {"pgfl": 0, "ref": 0}
        frame = world.folio(pfn)
        return {"pgfl": 0x2000 | bool(frame.locked), "ref": frame.refcount or 0}

    def fault_began(self, step, event, _before):
        self.writes[step.task] = event.write

    def callback_entered(self, step, event, before):
        fields = {"mm": MMS + event.mm, "addr": event.addr << 12, "ff": 0x254 | self.writes[step.task], "pg": page(event.pfn)}
        self._add(step, "fault", **fields, **self._look(event.pfn, before))

    def callback_returned(self, step, event, _before):
        self._add(step, "fault_ret", ret=int(event.result))

    def free_callback(self, step, event, before):
        self._add(step, "freepg", pg=page(event.pfn), **self._look(event.pfn, before))

    def _state(self, step, event, before):
        asked, cpages, npages = self.calls[step.task, event.call]
        owner = OWNERS + 64 * self.owners.setdefault(asked.owner, len(self.owners) + 1) if asked.owner else 0
        return {
            "args": MMS + 0x10000 * (1 + self.tasks[step.task]) + 0x100 * event.call,
            "st": asked.start << 12,
            "en": asked.end << 12,
            "fl": int(asked.select),
            "cp": cpages,
            "np": npages,
            "ow": owner,
            "fp": page(asked.fault_page),
            "mm": MMS + asked.mm,
            **self._look(asked.fault_page, before),
        }

    def setup_called(self, step, event, before):
        if event.mm is None:
            return
        self.tasks.setdefault(step.task, len(self.tasks))
        self.calls[step.task, event.call] = event, 0, 0
        self._add(step, "setup", **self._state(step, event, before))

    def setup_returned(self, step, event, before):
        if (step.task, event.call) not in self.calls:
            return
        asked, *_ = self.calls[step.task, event.call]
        moved = ev.SetupCalled(
            asked.call, asked.mm, event.start, event.end, asked.select, asked.owner, asked.fault_page, asked.nsrc, asked.ndst
        )
        self.calls[step.task, event.call] = moved, event.cpages, event.npages
        state = {**self._state(step, event, before), "src": event.src or (0,)} if self.returns else {}
        self._add(step, "setup_ret", ret=event.result, **state)

    def pages_called(self, step, event, before):
        if event.vma:
            self._add(step, "pages", **self._state(step, event, before), src=event.src or (0,), dst=event.dst or (0,))

    def pages_returned(self, step, event, before):
        call = before.task(step.task).calls.get(event.call)
        if self.returns and call is not None and call.vma and (step.task, event.call) in self.calls:
            self._add(step, "pages_ret", **self._state(step, event, before), src=event.src or (0,))

    def finalize_called(self, step, event, before):
        if event.vma:
            self._add(step, "fin", **self._state(step, event, before), src=event.src or (0,), dst=event.dst or (0,))


SHOWN = {
    ev.FaultBegan: Projection.fault_began,
    ev.CallbackEntered: Projection.callback_entered,
    ev.CallbackReturned: Projection.callback_returned,
    ev.FreeCallback: Projection.free_callback,
    ev.SetupCalled: Projection.setup_called,
    ev.SetupReturned: Projection.setup_returned,
    ev.PagesCalled: Projection.pages_called,
    ev.PagesReturned: Projection.pages_returned,
    ev.FinalizeCalled: Projection.finalize_called,
}
"""What probes see of the events, event by event."""
