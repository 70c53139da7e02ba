"""The scenarios that a driver is judged in: an address space, a device, and the tasks that race on it.

Rules:
- A scenario asks for nothing but the public operations of a driver and the system calls of the simulated kernel.
- The prologue builds the first state alone and is not searched; the actors are.
- An exhausted scenario is a bound that a verdict states: so many tasks, these operations, one page.
- `progress` names the progress clauses that the scenario is meant for: a cycle is judged in every scenario, but that there is
  none counts as evidence only where the clause could have been broken.

`scenario.py` says what a scenario is; `prologues.py` and `acts.py` have what they are made of; the others hold them by what they
are for.
"""

from __future__ import annotations

from migrate_vma_conformance.scenarios import faults, large, lives, migrations, special
from migrate_vma_conformance.scenarios.acts import touch
from migrate_vma_conformance.scenarios.prologues import CHILD, PARENT, READ_WRITE
from migrate_vma_conformance.scenarios.scenario import Act, Actor, MakeCore, Scenario, build

__all__ = ["CHILD", "PARENT", "READ_WRITE", "SCENARIOS", "Act", "Actor", "MakeCore", "Scenario", "build", "touch"]

SCENARIOS = {
    scenario.name: scenario
    for scenario in (*faults.SCENARIOS, *migrations.SCENARIOS, *special.SCENARIOS, *lives.SCENARIOS, *large.SCENARIOS)
}
