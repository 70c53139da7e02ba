"""How many executions an exhausted graph stands for.

An execution that goes round a cycle is counted once for each way into and out of the cycle: the maximal paths of the graph whose
strongly connected sets are drawn together. The number is exact and often astronomical; it says what enumeration would have cost.
"""

from __future__ import annotations

from migrate_vma_conformance.explore.graph import Graph


def executions(graph: Graph) -> int:
    """The number of executions of a complete graph."""
    part_of: dict[int, int] = {}
    counts: list[int] = []
    for part in graph.parts():
        number = len(counts)
        part_of.update(dict.fromkeys(part, number))
        ways = [part_of[target] for state in part for _, target in graph.out[state] or () if part_of[target] != number]
        counts.append(sum(counts[way] for way in ways) or 1)
    return counts[part_of[0]]
