# SPDX-License-Identifier: LGPL-2.1-or-later
"""x86-64: paging with 4 and 5 levels, and the bounds that the kernel fixes at compile time.

Mirrors ``arch/x86/include/asm/pgtable_64_types.h``, ``page_64_types.h`` and ``pgtable_types.h``; the table
for people is ``Documentation/arch/x86/x86_64/mm.rst``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Sequence, Tuple

from kvintro.model import AddressRange

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT
PTRS_PER_TABLE = 512
P4D_SHIFT = 39
PUD_SHIFT = 30
PMD_SHIFT = 21
ALL = (1 << 64) - 1

# arch/x86/include/asm/pgtable_types.h
PRESENT = 1 << 0
RW = 1 << 1
USER = 1 << 2
PWT = 1 << 3
PCD = 1 << 4
ACCESSED = 1 << 5
DIRTY = 1 << 6
PSE = 1 << 7
PAT = 1 << 7
GLOBAL = 1 << 8
PROTNONE = 1 << 8
PAT_LARGE = 1 << 12
NX = 1 << 63

# The entry of the root's second page, which PTI gives to user mode (arch/x86/include/asm/pgtable.h:
# kernel_to_user_pgdp).
PTI_USER_ROOT_BIT = 1 << PAGE_SHIFT

# arch/x86/include/asm/page_64_types.h and pgtable_64_types.h: the same with 4 and 5 levels.
START_KERNEL_MAP = 0xFFFF_FFFF_8000_0000
CPU_ENTRY_AREA_BASE = (-4 << P4D_SHIFT) & ALL
ESPFIX_BASE = (-2 << P4D_SHIFT) & ALL
EFI_VA_START = (-4 << 30) & ALL  # the top: the kernel hands out EFI addresses downwards
EFI_VA_END = (-68 << 30) & ALL
MODULES_END = 0xFFFF_FFFF_FF00_0000
# arch/x86/include/asm/sparsemem.h, on all 64-bit kernels.
SECTION_SIZE_BITS = 27
VSYSCALL_ADDR = (-10 << 20) & ALL
# round_up(VSYSCALL_ADDR + PAGE_SIZE, 1 << PMD_SHIFT) - PAGE_SIZE: the address of slot 0.
FIXADDR_TOP = 0xFFFF_FFFF_FF7F_F000
TOP_HOLE = (-2 << 20) & ALL
KASAN_SHADOW_OFFSET = 0xDFFF_FC00_0000_0000
LDT_SLOT_STRIDE = 8192 * 8  # LDT_ENTRIES * LDT_ENTRY_SIZE
# CONFIG_PHYSICAL_START and CONFIG_PHYSICAL_ALIGN: both defaults, and of every distribution we know.
DEFAULT_TEXT = START_KERNEL_MAP + 0x100_0000


@dataclass(frozen=True)
class X86Geometry:
    """Page-table geometry; see :class:`kvintro.arch.Geometry`.

    :ivar levels: 4 or 5.
    :ivar physical_mask: the kernel's ``physical_mask``: which bits of an entry hold the address. Memory
        encryption takes bits from it, so it is read, never assumed.
    """

    levels: int
    physical_mask: int

    @property
    def pfn_mask(self) -> int:
        """Bits of an entry that hold a physical address (PTE_PFN_MASK)."""
        return self.physical_mask & ~(PAGE_SIZE - 1) & ((1 << 52) - 1)

    @property
    def flags_mask(self) -> int:
        """All other bits of an entry (PTE_FLAGS_MASK) save those above the address mask up to bit 51."""
        return 0xFFF | 0xFFF << 52

    def shift(self, level: int) -> int:
        """log2 of the bytes that one entry at ``level`` spans: 12, 21, 30, 39, 48."""
        return PAGE_SHIFT + 9 * (level - 1)

    def large_levels(self) -> Sequence[int]:
        """2M pages at level 2 and 1G pages at level 3."""
        return (2, 3)

    def large_bit(self) -> int:
        """_PAGE_PSE."""
        return PSE

    def reserved_bits(self, level: int) -> int:
        """Bits that make the processor refuse a present entry that maps a page, or has PSE where none can.

        Those above the processor's own width of physical addresses are reserved too, but nothing in the
        kernel's memory says for certain how wide that is.
        """
        if level == 1:
            return 0
        if level in self.large_levels():
            return (1 << self.shift(level)) - 1 & ~0x1FFF & self.pfn_mask
        return PSE

    def sign_extend(self, address: int) -> int:
        """The canonical form of an address given by its low 48 or 57 bits."""
        bits = self.shift(self.levels) + 9
        address &= (1 << bits) - 1
        return (address | ALL << bits) & ALL if address >> (bits - 1) else address

    def is_canonical(self, address: int) -> bool:
        """Whether the processor accepts the address at all."""
        return self.sign_extend(address) == address

    def index(self, address: int, level: int) -> int:
        """Which of its table's 512 entries translates the address at ``level``."""
        return address >> self.shift(level) & (PTRS_PER_TABLE - 1)

    # The bounds below depend on the number of levels alone.

    @property
    def pgdir_shift(self) -> int:
        """PGDIR_SHIFT: 39 or 48."""
        return self.shift(self.levels)

    @property
    def user(self) -> AddressRange:
        """User half; the kernel leaves its last page unused (TASK_SIZE_MAX)."""
        return AddressRange(0, (1 << (self.pgdir_shift + 8)) - 1)

    @property
    def non_canonical(self) -> AddressRange:
        """Addresses that the processor refuses."""
        return AddressRange(self.user.end + 1, ALL - (1 << (self.pgdir_shift + 8)))

    @property
    def guard_hole(self) -> AddressRange:
        """GUARD_HOLE_BASE_ADDR .. GUARD_HOLE_END_ADDR: 16 entries of the root."""
        base = (-256 << self.pgdir_shift) & ALL
        return AddressRange(base, base + (16 << self.pgdir_shift) - 1)

    @property
    def ldt_remap(self) -> AddressRange:
        """LDT_BASE_ADDR .. LDT_END_ADDR: one entry of the root."""
        base = (-240 << self.pgdir_shift) & ALL
        return AddressRange(base, base + (1 << self.pgdir_shift) - 1)

    @property
    def page_offset_base(self) -> int:
        """__PAGE_OFFSET_BASE_L4 or _L5: where the direct map starts without memory KASLR."""
        return 0xFFFF_8880_0000_0000 if self.levels == 4 else 0xFF11_0000_0000_0000

    @property
    def vmalloc_base(self) -> int:
        """__VMALLOC_BASE_L4 or _L5."""
        return 0xFFFF_C900_0000_0000 if self.levels == 4 else 0xFFA0_0000_0000_0000

    @property
    def vmalloc_size(self) -> int:
        """VMALLOC_SIZE_TB in bytes: 32 or 12800 TB."""
        return (32 if self.levels == 4 else 12800) << 40

    @property
    def vmemmap_base(self) -> int:
        """__VMEMMAP_BASE_L4 or _L5."""
        return 0xFFFF_EA00_0000_0000 if self.levels == 4 else 0xFFD4_0000_0000_0000

    @property
    def max_physmem_bits(self) -> int:
        """MAX_PHYSMEM_BITS: 46 or 52."""
        return 46 if self.levels == 4 else 52

    @property
    def kasan_shadow(self) -> AddressRange:
        """KASAN_SHADOW_START .. KASAN_SHADOW_END - 1: one byte for eight of the kernel half."""
        bits = self.pgdir_shift + 8
        start = (KASAN_SHADOW_OFFSET + (((-1 << bits) & ALL) >> 3)) & ALL
        return AddressRange(start, start + (1 << (bits - 3)) - 1)


@dataclass(frozen=True)
class X86Architecture:
    """See :class:`kvintro.arch.Architecture`."""

    name: str = "x86-64"
    drgn_name: str = "X86_64"
    elf_machine: int = 62
    machine: str = "x86_64"
    regions: Tuple[Any, ...] = ()

    def geometry(self, levels: int, physical_mask: int) -> X86Geometry:
        """Geometry with 4 or 5 levels."""
        if levels not in (4, 5):
            raise ValueError(f"x86-64 has 4 or 5 levels, not {levels}")
        return X86Geometry(levels, physical_mask)


ARCHITECTURE = X86Architecture()
