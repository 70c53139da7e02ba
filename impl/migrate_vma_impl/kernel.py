"""The simulated kernel of one system: its generation, its size, its devices, and the calls that drivers and workloads make.

Rules:
- A Kernel is built, given its devices with `attach`, and not changed any more when it boots. It holds no shared state: that is
  in the slots, whose first values it names.
- What a page frame is (system, or which device's) follows from its number: system frames from 1, device frames from 100, 200, ...
- Drivers call kernel functions as methods; the functions themselves live in `mm` and take the kernel first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from attrs import define, field, frozen

from migrate_vma_impl.generations import Generation
from migrate_vma_impl.machine import traps
from migrate_vma_impl.machine.locks import RwSem, SpinLock
from migrate_vma_impl.machine.traps import Key
from migrate_vma_impl.mm import (
    device_exclusive,
    filemap,
    gup_seq,
    highmem,
    hmm,
    memory,
    memremap,
    migrate_device,
    migrate_device_by_pfn,
    mmap,
    mmap_lock,
    mmu_notifier,
    page_alloc,
    swap,
    swapfile,
)
from migrate_vma_impl.mm.folio import (
    folio_get,
    folio_lock,
    folio_nr_pages,
    folio_try_get,
    folio_trylock,
    folio_unlock,
    page_folio,
)
from migrate_vma_impl.mm.mm_types import (
    AnonVma,
    FaultContext,
    Folio,
    FolioState,
    FreePages,
    MigrateVma,
    Mm,
    MmState,
    PageTables,
    PmdSlot,
    PteSlot,
    Tlb,
)
from migrate_vma_spec.events import FrameAdded, MmCreated
from migrate_vma_spec.vocabulary import PTE_NONE, Capability, Memory, migrate_pfn_to_pfn

if TYPE_CHECKING:
    from migrate_vma_impl.driver import Driver

DEVICE_FRAMES = 100
"""Device number i (from 0) has the frames from 100 * (i + 1) on."""


@frozen
class Config:
    """How large the system is. `processes` address spaces live at boot, the rest of `mms` are free for fork.

    What is 0 is not there, and costs no state: `pmd_order` (a leaf of the middle level maps 1 << pmd_order pages), `swap_slots`,
    `files` of `file_pages` pages each. `vma_locks`: faults try the VMA's own lock first, without mmap_lock.
    `gup_fast`: get_user_pages_fast tries without any lock first, and fork tells it of itself. `tlb_batch`: reclaim puts off its
    TLB flushes, and makes one for many pages.
    """

    cpus: int = 2
    system_frames: int = 4
    addresses: int = 4
    mms: int = 2
    processes: int = 1
    pmd_order: int = 0
    swap_slots: int = 0
    files: int = 0
    file_pages: int = 4
    vma_locks: bool = False
    gup_fast: bool = False
    tlb_batch: bool = False


@define(eq=False)
class Kernel:
    """A kernel: what its code may know without asking shared state."""

    canonical_constant: ClassVar[bool] = True

    generation: Generation
    config: Config = Config()
    devices: dict[str, Driver] = field(factory=dict[str, "Driver"], init=False, repr=False)
    _memory: dict[int, tuple[Memory, str | None]] = field(factory=dict[int, "tuple[Memory, str | None]"], init=False, repr=False)
    _folios: dict[str, tuple[Folio, ...]] = field(factory=dict[str, "tuple[Folio, ...]"], init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self._memory.update((pfn, (Memory.SYSTEM, None)) for pfn in self.system_pfns)

    def attach(self, driver: Driver) -> None:
        """Add a device, with the next range of device frames. Its driver is a constant from here on.

        Raises:
            ValueError: a device of this name is attached, or this one has too many frames.
        """
        if driver.name in self.devices:
            raise ValueError(f"a device called {driver.name!r} is attached already")
        if not 0 < driver.frames <= DEVICE_FRAMES:
            raise ValueError(f"the device {driver.name!r} has {driver.frames} page frames; it may have 1 to {DEVICE_FRAMES}")
        first = DEVICE_FRAMES * (len(self.devices) + 1)
        self.devices[driver.name] = driver
        self._folios[driver.name] = tuple(Folio(pfn) for pfn in range(first, first + driver.frames))
        self._memory.update((folio.pfn, (driver.memory, driver.owner)) for folio in self._folios[driver.name])
        driver.freeze()

    # ---- what is fixed -----------------------------------------------------------------------------------------------

    @property
    def system_pfns(self) -> range:
        return range(1, self.config.system_frames + 1)

    def device_folios(self, device: Driver | str) -> tuple[Folio, ...]:
        """The page frames of a device that is attached, in order; the device by its driver or its name."""
        return self._folios[device if isinstance(device, str) else device.name]

    def has_frame(self, pfn: int) -> bool:
        return pfn in self._memory

    @property
    def thp_migration_supported(self) -> bool:
        """Whether large folios migrate whole to and from device memory."""
        return self.config.pmd_order > 0 and Capability.COMPOUND in self.generation.capabilities

    def is_zone_device(self, folio: Folio) -> bool:
        return self._memory[folio.pfn][0] is not Memory.SYSTEM

    def is_device_private(self, folio: Folio) -> bool:
        return self._memory[folio.pfn][0] is Memory.DEVICE_PRIVATE

    def is_device_coherent(self, folio: Folio) -> bool:
        return self._memory[folio.pfn][0] is Memory.DEVICE_COHERENT

    def owner_of(self, folio: Folio) -> str | None:
        """page->pgmap->owner of a device page, None for a system page."""
        return self._memory[folio.pfn][1]

    def driver_of(self, folio: Folio) -> Driver:
        """The driver whose device page this is."""
        number = folio.pfn // DEVICE_FRAMES - 1
        if not self.is_zone_device(folio):
            raise ValueError(f"frame {folio.pfn} is no device page")
        return tuple(self.devices.values())[number]

    def migrate_pfn_to_folio(self, entry: int) -> Folio | None:
        """migrate_pfn_to_page: the page of a src or dst entry, None where VALID is clear."""
        pfn = migrate_pfn_to_pfn(entry)
        return None if pfn is None else Folio(pfn)

    # ---- the first state ---------------------------------------------------------------------------------------------

    def slots(self) -> dict[Key, Any]:
        """Every slot of shared state with its first value."""
        slots: dict[Key, Any] = {Folio(pfn): FolioState(pfn, *kind) for pfn, kind in self._memory.items()}
        slots[FreePages()] = tuple(self.system_pfns)
        for number in range(self.config.mms):
            slots.update(self._mm_slots(Mm(number)))
        slots.update((Tlb(cpu), ()) for cpu in range(self.config.cpus))
        slots.update(swap.slots(self.config.cpus))
        slots.update(mmu_notifier.slots(self.config.mms))
        slots.update(filemap.slots(self.config.files, self.config.file_pages))
        slots.update(swapfile.slots(self.config.swap_slots))
        if self.config.gup_fast:
            slots.update(gup_seq.slots(self.config.mms))
        for driver in self.devices.values():
            slots.update(memremap.slots(driver.name))
            slots.update(driver.slots())
        return slots

    def _mm_slots(self, mm: Mm) -> dict[Key, Any]:
        tree = AnonVma(mm.number)
        return {
            mm: MmState(mm.number, users=int(mm.number < self.config.processes)),
            mm.mmap_lock: RwSem.free,
            mm.ptl: SpinLock.free,
            tree: (),
            tree.rwsem: RwSem.free,
            **{PteSlot(mm.number, addr): PteSlot.empty for addr in range(self.config.addresses)},
            **self._pmd_slots(mm),
        }

    def _pmd_slots(self, mm: Mm) -> dict[Key, Any]:
        """The middle level of the page table, if leaves of it may map large folios: empty at first."""
        if not self.config.pmd_order:
            return {}
        starts = range(0, self.config.addresses, 1 << self.config.pmd_order)
        return {PageTables(mm.number): 0, **{PmdSlot(mm.number, addr): PTE_NONE for addr in starts}}

    async def boot(self) -> None:
        """Say in the trace what exists: the page frames, all free, and the address spaces that live."""
        for pfn, (memory_kind, owner) in self._memory.items():
            await traps.note(FrameAdded(pfn, memory_kind, owner))
        for number in range(self.config.processes):
            await traps.note(MmCreated(number))

    # ---- the kernel's interface --------------------------------------------------------------------------------------

    migrate_vma_setup = migrate_device.migrate_vma_setup
    migrate_vma_pages = migrate_device.migrate_vma_pages
    migrate_vma_finalize = migrate_device.migrate_vma_finalize
    migrate_device_range = migrate_device_by_pfn.migrate_device_range
    migrate_device_pfns = migrate_device_by_pfn.migrate_device_pfns
    migrate_device_pages = migrate_device.migrate_device_pages
    migrate_device_finalize = migrate_device.migrate_device_finalize
    handle_mm_fault = memory.handle_mm_fault
    cpu_access = memory.cpu_access
    hmm_range_fault = hmm.hmm_range_fault
    hmm_range_fault_unlocked = hmm.hmm_range_fault_unlocked
    make_device_exclusive = device_exclusive.make_device_exclusive
    make_device_exclusive_range = device_exclusive.make_device_exclusive_range
    folio_alloc = page_alloc.folio_alloc
    alloc_page = page_alloc.alloc_page
    alloc_page_nofail = page_alloc.alloc_page_nofail
    folio_put = swap.folio_put
    folio_add_lru = swap.folio_add_lru
    lru_add_drain = swap.lru_add_drain
    lru_add_drain_all = swap.lru_add_drain_all
    zone_device_page_init = memremap.zone_device_page_init
    zone_device_data = memremap.zone_device_data
    memunmap_pages = memremap.memunmap_pages
    mmget_not_zero = mmap.mmget_not_zero
    mmput = mmap.mmput
    mmu_interval_notifier_insert = mmu_notifier.mmu_interval_notifier_insert
    mmu_interval_read_begin = mmu_notifier.mmu_interval_read_begin
    mmu_interval_read_retry = mmu_notifier.mmu_interval_read_retry
    mmu_interval_check_retry = mmu_notifier.mmu_interval_check_retry
    mmu_interval_set_seq = mmu_notifier.mmu_interval_set_seq
    page_folio = page_folio
    folio_nr_pages = folio_nr_pages
    folio_get = staticmethod(folio_get)
    folio_try_get = staticmethod(folio_try_get)
    folio_lock = staticmethod(folio_lock)
    folio_trylock = staticmethod(folio_trylock)
    folio_unlock = staticmethod(folio_unlock)
    copy_highpage = staticmethod(highmem.copy_highpage)
    clear_highpage = staticmethod(highmem.clear_highpage)
    find_vma = staticmethod(mmap_lock.find_vma)
    mmap_read_lock = staticmethod(mmap_lock.mmap_read_lock)
    mmap_read_unlock = staticmethod(mmap_lock.mmap_read_unlock)

    async def refill_fault_entry(self, args: MigrateVma, vmf: FaultContext) -> None:
        """After setup in migrate_to_ram: put the fault page into args.src where the generation leaves that to the driver."""
        await self.generation.refill_fault_entry(self, args, vmf)
