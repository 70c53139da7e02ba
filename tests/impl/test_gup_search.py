"""Pins and device-exclusive pages against fork, faults and migrations, on every interleaving, judged by the clauses."""

import pytest
from attrs import evolve

from migrate_vma_conformance.catalogue import clauses_by_id
from migrate_vma_conformance.explore.graph import explore
from migrate_vma_conformance.explore.product import Product
from migrate_vma_conformance.scenarios import SCENARIOS, Actor, build
from migrate_vma_impl.generations import WAITING
from migrate_vma_impl.machine.space import Space
from migrate_vma_impl.machine.system import Preemption
from migrate_vma_impl.mm import syscalls, syscalls_pin
from tests.impl.pages_stage import PIN, WRITE, Taker
from tests.impl.stage import A, B


async def pin_fast(kernel, _driver):
    pages = await syscalls_pin.take_user_pages(kernel, A, 0, 1, PIN | WRITE, fast=True)
    await syscalls_pin.drop_user_pages(kernel, pages, PIN)


async def fork(kernel, _driver):
    await syscalls.fork(kernel, A, B)


async def store(kernel, _driver):
    await syscalls.touch(kernel, A, 0, True)


async def take_for_device(_kernel, driver):
    await driver.exclusive(A, 0, 1)


def graph_of(*actors):
    """Every interleaving of the actors, each on a CPU of its own, over one page that is written."""
    base = SCENARIOS["migrate-pin"]
    config = evolve(base.config, mms=2, system_frames=4, gup_fast=True)
    players = tuple(Actor(f"t{number}", number, actor) for number, actor in enumerate(actors))
    system = build(evolve(base, config=config, actors=players), WAITING, lambda kernel: Taker(kernel, "taker"))
    clauses = [clause for clause in clauses_by_id().values() if clause.applies(WAITING.capabilities)]
    return explore(Space(system, Preemption.FULL), Product(clauses, WAITING.capabilities), max_states=40_000)


@pytest.mark.parametrize(
    "actors",
    [(pin_fast, fork), (take_for_device, store), (take_for_device, fork)],
    ids=["pin-fork", "exclusive-store", "exclusive-fork"],
)
def test_no_interleaving_breaks_a_clause_or_stops_the_kernel(actors):
    graph = graph_of(*actors)
    assert graph.complete
    assert (dict(graph.breaks), dict(graph.errors), graph.deadlocks) == ({}, {}, [])
