"""Large device-private folios as a capability that a generation can carry."""

from __future__ import annotations

import attrs
import pytest

from migrate_vma_impl.as_shipped import AS_SHIPPED
from migrate_vma_impl.generations import (
    COMPOUND_GENERATIONS,
    ENTRY_FIRST,
    GENERATIONS,
    REFERENCED,
    TRYLOCKED,
    UNREFERENCED,
    WAITING,
    find_generation,
    with_compound,
)
from migrate_vma_impl.kernel import Config, Kernel
from migrate_vma_impl.steps import Steps
from migrate_vma_spec.vocabulary import Capability


@pytest.mark.parametrize("generation", [TRYLOCKED, WAITING, ENTRY_FIRST], ids=lambda each: each.name)
def test_the_records_with_a_page_lock_in_the_fault_path_can_carry_it(generation):
    carrying = with_compound(generation)
    assert carrying.capabilities == generation.capabilities | {Capability.COMPOUND}
    assert find_generation(f"{generation.name}+compound") is COMPOUND_GENERATIONS[carrying.name]


@pytest.mark.parametrize("generation", [UNREFERENCED, REFERENCED], ids=lambda each: each.name)
def test_the_older_ones_cannot(generation):
    with pytest.raises(ValueError, match=f"{generation.name} cannot have large device-private folios"):
        with_compound(generation)


def test_it_changes_what_is_done_with_large_folios_and_nothing_else():
    before, after = WAITING, with_compound(WAITING)
    changed = {field.name for field in attrs.fields(type(before)) if getattr(before, field.name) != getattr(after, field.name)}
    assert changed == {"name", "aliases", "capabilities", "collect_huge_pmd", "collect_large_folio"}


@pytest.mark.parametrize(
    ("version", "small", "large"),
    [
        ("v6.1", "referenced", "referenced"),
        ("v6.18", "trylocked", "trylocked"),
        ("v6.19", "trylocked", "trylocked+compound"),
        ("v7.3", "waiting", "waiting+compound"),
        ("v7.2.13", "waiting", "waiting+compound"),
        ("waiting", "waiting", "waiting"),
        ("waiting+compound", "waiting+compound", "waiting+compound"),
    ],
)
def test_a_version_has_it_since_v6_19_where_there_is_a_middle_level(version, small, large):
    assert find_generation(version).name == small
    assert find_generation(version, pmd_order=2).name == large


def test_a_kernel_migrates_large_folios_whole_with_the_capability_and_a_middle_level():
    carrying = COMPOUND_GENERATIONS["waiting+compound"]
    kernels = [Kernel(each, Config(pmd_order=order)) for each in (WAITING, carrying) for order in (0, 2)]
    assert [kernel.thp_migration_supported for kernel in kernels] == [False, False, False, True]


def test_a_kernel_as_shipped_differs_from_its_generation_in_steps_alone():
    bases = {"v6.1": REFERENCED, "v6.12": REFERENCED, "v7.2": with_compound(WAITING), "v7.3": with_compound(WAITING)}
    assert AS_SHIPPED.keys() == bases.keys()
    for version, shipped in AS_SHIPPED.items():
        base = bases[version]
        differing = {f.name for f in attrs.fields(type(base)) if getattr(base, f.name) != getattr(shipped, f.name)}
        assert differing - {"aliases", "patch_levels", "compound_aliases"} == {"name", "steps"}
        assert shipped.name == f"{base.name}@{version}"
        steps = [f.name for f in attrs.fields(Steps) if getattr(shipped.steps, f.name) is not getattr(base.steps, f.name)]
        assert steps
        assert [name for name in steps if f"{version[:3]}" not in (getattr(shipped.steps, name).__doc__ or "")] == []


def test_no_name_is_given_twice():
    names = [each.name for each in (*GENERATIONS.values(), *COMPOUND_GENERATIONS.values(), *AS_SHIPPED.values())]
    assert len(names) == len(set(names))
