"""Building a guest, with programs that only seem to compile."""

from __future__ import annotations

import pytest

from migrate_vma_conformance.errors import UsageError
from migrate_vma_conformance.kernel.building import recipe
from migrate_vma_conformance.kernel.building.build import Done, builder
from migrate_vma_conformance.kernel.building.stages import PRODUCTS, STAGES
from migrate_vma_conformance.kernel.guests import NotBuilt, built_guests, find_guest, kind_named
from tests.kernel.toolbox import KIND

ALL = ["make allnoconfig", "make bzImage", "make modules", "make headers", "make modules beside", "gcc hmm-tests", "gcc agent"]


def scratch(box):
    return sorted(path.name for path in (box.cache / "build").iterdir())


def test_a_build_makes_every_product_in_its_order(box):
    outcome = box.build()
    assert (outcome.done, box.asked()) == (Done.GUEST, ALL)
    assert {path.name for path in outcome.guest.directory.iterdir()} == {*PRODUCTS, "manifest.json"}
    assert (outcome.guest.release, outcome.guest.generation, outcome.guest.stale) == ("6.1.0-fake", "referenced", ())


def test_a_second_build_asks_no_program(box):
    box.build()
    box.asked()
    assert (box.build().done, box.asked()) == (Done.NOTHING, [])


def test_again_builds_from_nothing_what_is_built(box):
    box.build()
    box.asked()
    assert (box.build(again=True).done, box.asked()) == (Done.GUEST, ALL)


def test_nothing_large_is_left(box):
    box.build()
    assert scratch(box) == []


def test_another_agent_makes_only_the_initrd_again(box, tmp_path, monkeypatch):
    before = box.build().guest.initrd.read_bytes()
    box.asked()
    change_agent(tmp_path, monkeypatch)
    assert find_guest("6.1", box.cache).stale == ("agent.c",)
    outcome = box.build()
    assert (outcome.done, box.asked(), scratch(box)) == (Done.INITRD, ["gcc agent"], [])
    assert outcome.guest.initrd.read_bytes() != before
    assert outcome.guest.stale == ()


def change_agent(tmp_path, monkeypatch):
    sources = tmp_path / "guest"
    sources.mkdir()
    for path in recipe.SOURCES.iterdir():
        (sources / path.name).write_bytes(path.read_bytes())
    with (sources / "agent.c").open("a") as agent:
        agent.write("/* another one */\n")
    monkeypatch.setattr(recipe, "SOURCES", sources)


def test_another_configuration_makes_all_again(box, monkeypatch):
    box.build()
    box.asked()
    monkeypatch.setattr(recipe, "settings", lambda fragments: {"CONFIG_SMP": "y"})
    assert find_guest("6.1", box.cache).stale == ("configuration",)
    assert (box.build().done, box.asked()) == (Done.GUEST, ALL)


@pytest.mark.parametrize("product", [name for name in PRODUCTS if name != "initrd"])
def test_a_damaged_product_makes_all_again(box, product):
    guest = box.build().guest
    path = guest.directory / product
    path.write_bytes(bytes(len(path.read_bytes())))
    assert box.build().done is Done.GUEST


def test_a_damaged_initrd_is_made_again_alone(box):
    guest = box.build().guest
    guest.initrd.write_bytes(bytes(guest.initrd.stat().st_size))
    assert box.build().done is Done.INITRD


def test_a_product_that_is_cut_short_is_no_guest(box):
    box.build().guest.kernel.write_text("a ker")
    with pytest.raises(NotBuilt, match=r"guest 6\.1: it is damaged: kernel has 5 bytes where 9 were built"):
        find_guest("6.1", box.cache)
    assert built_guests(box.cache) == ()


def test_what_is_not_built_is_told_with_the_command(tmp_path):
    with pytest.raises(NotBuilt, match=r"not built in .*; `migrate-vma kernel build 7\.3` builds it"):
        find_guest("7.3", tmp_path)


def test_a_guest_that_nobody_knows_is_the_callers_mistake():
    with pytest.raises(UsageError, match=r"argument GUEST `5\.4`: there is no such guest\. Expected: one of 6\.1, 7\.3,"):
        kind_named("5.4")


def test_the_module_is_mended_beside_the_stock_one(box):
    directory = box.build().guest.directory
    assert (directory / "test_hmm.ko").read_text() == "a module\n"
    assert (directory / "test_hmm-mended.ko").read_text().count("zone_device_data") == 1


def test_the_log_says_every_command(box):
    box.build()
    log = (box.cache / "6.1.log").read_text()
    assert [line.split()[1] for line in log.splitlines() if line.startswith("+ ")][:3] == ["dpkg-query", "tar", "make"]


def test_progress_tells_stages_in_order_and_the_file_at_work(box):
    told = []
    with builder(box.cache, tell=told.append) as with_it:
        with_it.build(KIND)
    assert [step.number for step in told] == sorted(step.number for step in told)
    assert {step.stage for step in told} >= {"source", "configuration", "kernel", "mended module", "hmm-tests", "initrd"}
    assert ("kernel", "mm/memory.o", 1) in {(step.stage, step.detail, step.done) for step in told}


def test_the_manifest_says_what_each_stage_took(box):
    manifest = box.build().guest.manifest
    assert set(manifest.seconds) == set(manifest.processor_seconds) == set(STAGES)
    assert min(manifest.seconds.values()) >= 0
