"""Edits that make a wrong trace of a correct one."""

from __future__ import annotations

from attrs import evolve

from migrate_vma_spec.events import Event
from tests.spec.parts import by


def _place(trace, event, nth):
    places = [place for place, step in enumerate(trace) if step.event == event]
    assert len(places) > nth, f"no {event} (number {nth}) in the trace"
    return places[nth]


def without(trace, *events, nth=0):
    """The trace less the first (or n-th) step of each of these events."""
    for event in events:
        place = _place(trace, event, nth)
        trace = trace[:place] + trace[place + 1 :]
    return trace


def put(trace, event, *instead, nth=0, task=None):
    """The trace with these events in the place of one."""
    place = _place(trace, event, nth)
    return trace[:place] + by(task or trace[place].task, *instead) + trace[place + 1 :]


def before(trace, event, *extra, nth=0, task=None):
    """The trace with these events, by the same task or by another, ahead of one."""
    place = _place(trace, event, nth)
    return trace[:place] + by(task or trace[place].task, *extra) + trace[place:]


def after(trace, event, *extra, nth=0, task=None):
    place = _place(trace, event, nth)
    return trace[: place + 1] + by(task or trace[place].task, *extra) + trace[place + 1 :]


def later(trace, event, anchor, nth=0):
    """The trace with one step moved to just after another."""
    place = _place(trace, event, nth)
    step = trace[place]
    return after(trace[:place] + trace[place + 1 :], anchor, event, task=step.task)


def up_to(trace, event, nth=0):
    """The trace up to and with this event."""
    return trace[: _place(trace, event, nth) + 1]


def the(trace, kind: type[Event], nth=0, **changes):
    """(the n-th event of this kind, the same with these changes)."""
    event = [step.event for step in trace if type(step.event) is kind][nth]
    return event, evolve(event, **changes)


def change(trace, kind, nth=0, **changes):
    """The trace with fields of its n-th event of this kind changed."""
    places = [place for place, step in enumerate(trace) if type(step.event) is kind]
    step = trace[places[nth]]
    return [*trace[: places[nth]], evolve(step, event=evolve(step.event, **changes)), *trace[places[nth] + 1 :]]
