"""The drivers that come with the simulated kernel, by name. A third party's driver is written against the same names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from migrate_vma_impl.driver import Driver
from migrate_vma_impl.drivers.test_hmm import make_test_hmm, make_test_hmm_adapted, make_test_hmm_coherent
from migrate_vma_impl.drivers.wide import make_wide

if TYPE_CHECKING:
    from migrate_vma_impl.kernel import Kernel

DRIVERS: Mapping[str, Callable[[Kernel], Driver]] = MappingProxyType(
    {
        "test_hmm": make_test_hmm,
        "test_hmm_adapted": make_test_hmm_adapted,
        "test_hmm_coherent": make_test_hmm_coherent,
        "wide": make_wide,
    }
)
