"""The base class: constants after the factory, operations as system calls, and what a scenario may ask."""

from __future__ import annotations

import pytest

from migrate_vma_impl.driver import Driver, FrozenDriverError, Load, UnsupportedLoadError
from migrate_vma_impl.drivers import DRIVERS
from migrate_vma_impl.generations import WAITING
from migrate_vma_impl.kernel import Kernel
from migrate_vma_impl.machine.local_state import Canon
from migrate_vma_spec.events import NotifierSubscribed, OperationBegan, OperationEnded, PointPassed
from migrate_vma_spec.vocabulary import Point
from tests.impl.stage import A, FakeDriver, Stage


class Forgetful(FakeDriver):
    """Changes itself while it runs."""

    def __init__(self, kernel: Kernel, name: str) -> None:
        super().__init__(kernel, name)
        self.faults = 0

    async def evict(self) -> int:
        self.faults += 1
        return 0


class Hoarder(FakeDriver):
    def __init__(self, kernel: Kernel, name: str) -> None:
        super().__init__(kernel, name)
        self.pages = []


def test_a_driver_that_changes_itself_is_told_what_to_declare():
    stage = Stage(WAITING, Forgetful)
    with pytest.raises(FrozenDriverError, match=r"sets self\.faults = 1.*state = shared\(faults=Cell\(\.\.\.\)\)"):
        stage.run(stage.driver.evict)


def test_nor_may_an_attribute_go():
    stage = Stage(WAITING, Forgetful)
    with pytest.raises(FrozenDriverError, match=r"deletes self\.faults"):
        del stage.driver.faults


def test_an_attribute_that_can_change_by_itself_is_refused_at_once():
    with pytest.raises(FrozenDriverError, match=r"Hoarder\.pages is a list.*or keep a tuple"):
        Stage(WAITING, Hoarder)


def test_until_it_is_attached_a_driver_may_set_itself_up():
    driver = Forgetful(Kernel(WAITING), "dev0")
    driver.faults = 3
    assert driver.faults == 3


def test_a_driver_is_a_constant_of_a_local_state():
    driver = FakeDriver(Kernel(WAITING), "dev0")
    assert Canon().value(driver) == Canon().value(driver)
    assert Canon().value(driver) != Canon().value(FakeDriver(Kernel(WAITING), "dev0"))


def test_an_operation_is_a_system_call_in_the_trace():
    stage = Stage(WAITING, Forgetful)
    before = len(stage.trace)
    stage.touch(0, write=True)
    stage.to_device()
    said = stage.said(OperationBegan, before) + stage.trace[-2:]
    assert said[1:] == [
        OperationBegan("dev0.to_device", (0, 0, 1)),
        PointPassed(Point.USER),
        OperationEnded("dev0.to_device", 1),
    ]


def test_loads_are_the_operations_that_a_class_or_its_bases_define():
    class More(FakeDriver):
        async def release(self) -> int:
            return 0

    assert FakeDriver.loads == {Load.TO_DEVICE, Load.EVICT}
    assert More.loads == {Load.TO_DEVICE, Load.EVICT, Load.RELEASE}


def test_an_operation_of_a_base_is_told_in_the_trace_once():
    class More(FakeDriver):
        pass

    stage = Stage(WAITING, More)
    stage.to_device()
    assert len(stage.said(OperationEnded)) == 2  # mmap, to_device


@pytest.mark.parametrize("load", sorted(set(Load) - FakeDriver.loads, key=lambda load: load.value))
def test_an_operation_that_a_driver_lacks_is_the_scenarios_mistake(load):
    stage = Stage(WAITING)
    ranges = dict.fromkeys((Load.TO_SYSTEM, Load.SNAPSHOT, Load.EXCLUSIVE), (A, 0, 1))
    arguments = {**ranges, Load.RELEASE: ()}.get(load, (A, 0))
    with pytest.raises(UnsupportedLoadError, match=f"dev0 is asked for {load.value}.*FakeDriver defines evict, to_device"):
        stage.run(getattr(stage.driver, load.value), *arguments)


def test_a_driver_needs_its_two_callbacks():
    class Half(Driver):
        async def folio_free(self, folio) -> None:
            pass

    with pytest.raises(TypeError, match="migrate_to_ram"):
        Half(Kernel(WAITING), "dev0")


def test_opening_subscribes():
    stage = Stage(WAITING)
    stage.run(stage.driver.open, A)
    assert stage.trace[-1] == NotifierSubscribed("dev0", 0)
    assert stage.slots[A].subscriptions == ("dev0",)


@pytest.mark.parametrize("name", DRIVERS)
def test_the_drivers_that_come_with_the_kernel_attach(name):
    kernel = Kernel(WAITING)
    driver = DRIVERS[name](kernel)
    kernel.attach(driver)
    assert kernel.devices == {driver.name: driver}
    assert Load.TO_DEVICE in driver.loads
