"""The driver that docs/writing-a-driver.md prints works as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from migrate_vma_impl.driver import Driver, Load
from migrate_vma_impl.generations import WAITING
from migrate_vma_impl.machine import containers
from migrate_vma_impl.mm import mmu_notifier
from migrate_vma_spec.vocabulary import PteKind
from tests.impl.stage import Stage

GUIDE = (Path(__file__).parents[2] / "docs" / "writing-a-driver.md").read_text(encoding="utf-8")


@pytest.fixture
def printed():
    names: dict = {}
    exec(compile(re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)[0], "writing-a-driver.md", "exec"), names)  # noqa: S102
    return names


def test_the_printed_driver_goes_to_the_device_and_back(printed):
    stage = Stage(WAITING, printed["MyDriver"])
    stage.touch(0, write=True)
    assert stage.to_device(0, 2) == 2
    assert stage.pte(0).kind is PteKind.DEVICE_PRIVATE
    assert stage.touch(0, write=True) == 0
    assert stage.pte(0).kind is PteKind.PRESENT


def test_its_factory_makes_a_driver(printed):
    driver = printed["factory"](Stage(WAITING).kernel)
    assert isinstance(driver, Driver)
    assert driver.loads == {Load.TO_DEVICE}


def test_the_guide_names_every_container():
    kinds = [name for name, kind in vars(containers).items() if isinstance(kind, type) and issubclass(kind, containers.Container)]
    assert [name for name in kinds if name != "Container" and f"`{name}(" not in GUIDE] == []


@pytest.mark.parametrize("name", [*(load.value for load in Load), "migrate_to_ram", "folio_free", "invalidate", "open"])
def test_the_guide_names_every_method_that_is_called(name):
    assert f"`{name}(" in GUIDE
    assert hasattr(Driver, name)


def test_the_guide_names_what_an_invalidation_tells():
    told = [each.name for each in mmu_notifier.NotifierRange.__attrs_attrs__]
    assert told == ["mm", "start", "end", "reason", "owner"]
    assert ", ".join(f"`{name}`" for name in told) in GUIDE
