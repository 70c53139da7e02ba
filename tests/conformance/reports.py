"""Reports made by hand, for the tests of what is done with them."""

from __future__ import annotations

from attrs import evolve

from migrate_vma_conformance.options import Fairness
from migrate_vma_conformance.verdict import Counterexample, Finding, GenerationReport, Replay, Report, ScenarioEvidence, conclude
from migrate_vma_impl.machine.system import Preemption
from migrate_vma_spec.events import (
    CallbackEntered,
    FaultBegan,
    FolioGot,
    FolioMoved,
    FrameAdded,
    LockDropped,
    LockTaken,
    PteRead,
    SetupReturned,
    Step,
)
from migrate_vma_spec.registry import Clause, Level, Party
from migrate_vma_spec.vocabulary import PTE_NONE, Capability, LockMode, Memory, migrate_pfn

TOKEN = "mv1.eJyLVkrLz1eyUlBKSixSiq0FAC7nBQ0.1a2b3c4d"
NAMES = ("unreferenced", "referenced", "trylocked", "waiting", "entry-first", "entry-first+adapted")

_CALLERS = ("cpu_touch", "handle_mm_fault", "do_swap_page")
_ROUND = (
    (FaultBegan(0, 0, write=False), _CALLERS[:2]),
    (LockTaken("ptl:0", LockMode.SPIN), (*_CALLERS, "spin_lock", "spin_lock_step")),
    (PteRead(0, 0, PTE_NONE), (*_CALLERS, "ptep_get", "step")),
    (FolioGot(8, 2), (*_CALLERS, "folio_get", "step")),
    (LockDropped("ptl:0", LockMode.SPIN), (*_CALLERS, "spin_unlock", "spin_unlock_step")),
    (CallbackEntered(8, 0, 0), _CALLERS),
    (SetupReturned(0, 0, 0, 1, 1, 1, (migrate_pfn(8) | 2,)), (*_CALLERS, "migrate_to_ram", "migrate_vma_setup")),
    (FolioMoved(8, 4, 3, 2, moved=False), (*_CALLERS, "migrate_to_ram", "migrate_vma_pages", "folio_migrate_mapping")),
)


def trace(cpus=2, rounds=1):
    """A prologue of one step, then each CPU's round in turn; and the stacks of it all."""
    steps = [Step("init", 0, FrameAdded(8, Memory.DEVICE_PRIVATE, "hmm"))]
    stacks = [("_boot",)]
    for _ in range(rounds):
        for cpu in range(cpus):
            steps += [Step(f"cpu{cpu}", cpu, event) for event, _ in _ROUND]
            stacks += [stack for _, stack in _ROUND]
    return tuple(steps), tuple(stacks)


def scenario(name="fault-2", *, complete=True, reached=True, preemption=Preemption.FULL, states=1234, note=""):
    executions = 5_000_000_000 if complete else 400
    return ScenarioEvidence(name, ("cpu0", "cpu1"), preemption, Fairness.STRONG, states, executions, complete, reached, note)


def example(clause="C41", *, cpus=2, cycle=None, token=TOKEN, switches=1, sentence="page 8 has refcount 0 at the callback"):
    steps, stacks = trace(cpus)
    fairness = None if cycle is None else Fairness.STRONG
    return Counterexample(clause, token, sentence, steps, stacks, cycle, fairness, "fault-2", switches, 1)


def finding(counterexample=None, *, failure="", holds_under=None, **about):
    return Finding(scenario(**about), counterexample, failure, holds_under)


def clause(number, *, level=Level.MUST, name="reference before callback"):
    sentence = f"Rule {number}: vmf->page MUST be referenced, under the page-table lock, before migrate_to_ram and until its end."
    source = "Linux 6.1, mm/memory.c:do_swap_page"
    return Clause(number, name, sentence, Party.FAULT, level, source, "use after free", __name__, (), frozenset())


CLAUSES = {number: clause(number) for number in ("C01", "C02", "C03", "C31", "C41", "C50", "C84", "C94")} | {
    "C85": clause("C85", level=Level.SHOULD, name="the loser of the page lock does not spin")
}


def verdict(number, *findings, **about):
    level = CLAUSES[number].level if number in CLAUSES else Level.MUST
    return conclude(number, level, findings or (finding(),), **about)


def generation(name, **verdicts):
    """Every clause holds, but for those given."""
    return GenerationReport(name, {number: verdicts.get(number) or verdict(number) for number in CLAUSES})


def the_mail(command="migrate-vma check --generation all"):
    """The report that the project exists for, in short."""
    no_lock = {"C31": verdict("C31", missing={Capability.FAULT_LOCK})}
    broken = {"C41": verdict("C41", finding(example())), "C50": verdict("C50", finding(example("C50")))}
    parts = (
        generation("unreferenced", **broken, **no_lock),
        generation("referenced", C84=verdict("C84", finding(example("C84", cycle=3)), progress=True), **no_lock),
        generation(
            "trylocked",
            C84=verdict("C84", finding(holds_under=Fairness.STRONG), finding(holds_under=Fairness.WEAK), progress=True),
            C85=verdict("C85", finding(example("C85", cycle=3), preemption=Preemption.VOLUNTARY)),
        ),
        generation("waiting", C84=verdict("C84", finding(holds_under=Fairness.WEAK), progress=True)),
        generation("entry-first", C94=verdict("C94", finding(example("C94"))), **no_lock),
        generation("entry-first+adapted", C03=verdict("C03", finding(complete=False)), **no_lock),
    )
    return Report("test_hmm", parts, 12.25, 0, command, ("weak memory order, interrupts", "more CPUs than the scenarios name"))


def broken_twice(simpler="referenced"):
    """One clause that two generations break, in one of them with fewer forced switches."""
    steps, stacks = trace(3)
    short = evolve(example(switches=0, token="mv1.simpler.00000000"), steps=steps, stacks=stacks)
    parts = (
        generation("unreferenced", C41=verdict("C41", finding(example()))),
        generation(simpler, C41=verdict("C41", finding(short))),
    )
    return Report("test_hmm", parts, 1.0, 0, "migrate-vma check", ())


def broken_alike():
    """Two clauses that two generations break by the same steps; which one is the simpler is decided by the token alone."""
    tokens = {("referenced", "C41"): "a", ("referenced", "C50"): "d", ("trylocked", "C41"): "b", ("trylocked", "C50"): "c"}

    def broken(name, number):
        return verdict(number, finding(example(number, token=f"mv1.{tokens[name, number]}.00000000")))

    parts = (
        generation(name, **{number: broken(name, number) for number in ("C41", "C50")}) for name in ("referenced", "trylocked")
    )
    return Report("test_hmm", tuple(parts), 1.0, 0, "migrate-vma check", ())


def broken_on_the_way():
    """Two clauses that one execution breaks, one after the other."""
    whole = example("C50")
    part = evolve(example("C41"), steps=whole.steps[:5], stacks=whole.stacks[:5])
    broken = {"C41": verdict("C41", finding(part)), "C50": verdict("C50", finding(whole))}
    return Report("test_hmm", (generation("waiting", **broken),), 1.0, 0, "migrate-vma check", ())


def with_a_driver_of_its_own():
    """A violation in a scenario that is played with its own driver, whatever driver is checked."""
    broken = verdict("C41", finding(evolve(example(), scenario="drain")))
    return Report("test_hmm", (generation("waiting", C41=broken),), 1.0, 0, "migrate-vma check", ())


def holding():
    return Report("test_hmm", (generation("waiting"),), 1.0, 0, "migrate-vma check", ("weak memory order",))


def unknown():
    parts = (generation("waiting", C31=verdict("C31", finding(failure="the driver raised ValueError: 3", complete=False))),)
    return Report("mine:make", parts, 1.0, 0, "migrate-vma check mine:make", ())


def only_should():
    parts = (generation("trylocked", C85=verdict("C85", finding(example("C85", cycle=3)))),)
    return Report("test_hmm", parts, 1.0, 0, "migrate-vma check", ())


def replayed(clause="C41"):
    found = verdict(clause, finding(example(clause), complete=False))
    steps, stacks = trace()
    return Replay(TOKEN, "test_hmm", "unreferenced", found, steps, stacks, None, 1, ("folio 8: refcount 0, free",))
