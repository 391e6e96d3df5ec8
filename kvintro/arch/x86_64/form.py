# SPDX-License-Identifier: LGPL-2.1-or-later
"""x86-64: paging with 4 and 5 levels, and the bounds that the kernel fixes at compile time.

Mirrors ``arch/x86/include/asm/pgtable_64_types.h``, ``page_64_types.h`` and ``pgtable_types.h``;
``Documentation/arch/x86/x86_64/mm.rst`` has an overview.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

from kvintro.arch.form import PagingForm, Truth, Word
from kvintro.arch.rights import READ
from kvintro.model import ALL, AddressRange

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT
PTRS_PER_TABLE = 512
P4D_SHIFT = 39
PUD_SHIFT = 30
PMD_SHIFT = 21

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

#: The kernel's values of the eight PAT entries (arch/x86/mm/pat/memtype.c:pat_bp_init), with the full PAT.
MEMORY_TYPES = ("WB", "WC", "UC-", "UC", "WB", "WP", "UC-", "WT")

# Selects the root's second page, which PTI uses for user mode (arch/x86/include/asm/pgtable.h:
# kernel_to_user_pgdp).
PTI_USER_ROOT_BIT = 1 << PAGE_SHIFT

# arch/x86/include/asm/page_64_types.h and pgtable_64_types.h: identical for 4 and 5 levels.
START_KERNEL_MAP = 0xFFFF_FFFF_8000_0000
CPU_ENTRY_AREA_BASE = (-4 << P4D_SHIFT) & ALL
ESPFIX_BASE = (-2 << P4D_SHIFT) & ALL
EFI_VA_START = (-4 << 30) & ALL  # the top: the kernel allocates EFI addresses downwards
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
# CONFIG_PHYSICAL_START and CONFIG_PHYSICAL_ALIGN: the defaults, which every known distribution uses.
DEFAULT_TEXT = START_KERNEL_MAP + 0x100_0000


@dataclass(frozen=True)
class X86Form(PagingForm):
    """Page tables with 4 or 5 levels of 512 entries; see :class:`kvintro.arch.form.PagingForm`.

    :ivar levels: 4 or 5.
    :ivar physical_mask: the kernel's ``physical_mask``: bits of an entry that hold the address. Memory
        encryption takes bits from it, so it is always read and never assumed.
    """

    physical_mask: int

    page_shift = PAGE_SHIFT

    @property
    def pfn_mask(self) -> int:
        """Bits of an entry that hold a physical address (PTE_PFN_MASK)."""
        return self.physical_mask & ~(PAGE_SIZE - 1) & ((1 << 52) - 1)

    def shift(self, level: int) -> int:
        """log2 of the bytes that one entry at ``level`` spans: 12, 21, 30, 39, 48."""
        return PAGE_SHIFT + 9 * (level - 1)

    def leaf_levels(self) -> Sequence[int]:
        """2M pages at level 2 and 1G pages at level 3."""
        return (2, 3)

    def reserved_bits(self, level: int) -> int:
        """Bits that must be 0 in a present entry that maps a page; above the levels with pages, PSE.

        Bits above the processor's width of physical addresses are reserved too, but nothing in the kernel's
        memory reliably gives that width.
        """
        if level == 1:
            return 0
        if level in self.leaf_levels():
            return (1 << self.shift(level)) - 1 & ~0x1FFF & self.pfn_mask
        return PSE

    @property
    def half_bits(self) -> int:
        """47 or 56."""
        return self.shift(self.levels) + 8

    @property
    def kernel(self) -> AddressRange:
        """The upper half above the guard hole."""
        return AddressRange(self.guard_hole.end + 1, ALL)

    def sign_extend(self, address: int) -> int:
        """The canonical form of an address given by its low 48 or 57 bits."""
        bits = self.half_bits + 1
        address &= (1 << bits) - 1
        return (address | ALL << bits) & ALL if address >> (bits - 1) else address

    # Entries

    def is_present(self, entry: Word, level: int) -> Truth:
        """_PAGE_PRESENT."""
        return entry & PRESENT != 0

    def is_table(self, entry: Word, level: int) -> Truth:
        """Present, without PSE. PSE marks a large page, and is reserved at levels without large pages."""
        return entry & (PRESENT | PSE) == PRESENT

    def is_leaf(self, entry: Word, level: int) -> Truth:
        """Present, with PSE above level 1. Level 1 has a bit of the PAT at the place of PSE."""
        if level == 1:
            return entry & PRESENT != 0
        if level not in self.leaf_levels():
            return entry & 0 != 0
        return entry & (PRESENT | PSE | self.reserved_bits(level)) == (PRESENT | PSE)

    def table_address(self, entry: Word) -> Word:
        """pmd_page_paddr() and its like."""
        return entry & self.pfn_mask

    def page_address(self, entry: Word, level: int) -> Word:
        """Masking to the page's size also clears bit 12, which is PAT in the entry of a large page."""
        return entry & (self.pfn_mask & -(1 << self.shift(level)))

    def holds_page(self, entry: Word, level: int) -> Truth:
        """pte_present() and pmd_present(): PROTNONE keeps a page, and a huge page that is split keeps PSE."""
        if level == 1:
            return entry & (PRESENT | PROTNONE) != 0
        if level not in self.leaf_levels():
            return entry & 0 != 0
        return (entry & PSE != 0) | (entry & (PRESENT | PROTNONE) == PROTNONE)

    def held_address(self, entry: Word, level: int) -> Word:
        """An entry that is not present keeps the address inverted (pgtable-invert.h)."""
        inverted = (entry & PRESENT) - 1 & ALL
        return self.page_address(entry ^ inverted, level)

    def rights(self, entry: Word, level: int) -> Word:
        """RW, US and NX. NX applies to kernel mode and user mode."""
        execute = (entry >> 63 ^ 1) << 3
        # RW and US are the bits WRITE and USER.
        return (entry & (RW | USER)) | execute | (execute << 1 & entry << 2) | READ

    def table_rights(self, entry: Word) -> Word:
        """The same three bits at every level."""
        return self.rights(entry, self.levels)

    def flag_bits(self, level: int) -> int:
        """Bits 0 to 11 and 52 to 63, PAT of large pages, and the address bits used by memory encryption."""
        encryption = (1 << 52) - (1 << 32) & ~self.pfn_mask
        return 0xFFF | 0xFFF << 52 | encryption | (PAT_LARGE if level > 1 else 0)

    def stray_bits(self, level: int) -> int:
        """_PAGE_KNL_ERRATUM_MASK: a processor may set A and D in an empty entry of upper levels."""
        return ACCESSED | DIRTY if level > 1 else 0

    def memory_type(self, entry: int, level: int) -> str:
        """By PWT, PCD and PAT."""
        third = entry & (PAT_LARGE if level > 1 else PAT)
        return MEMORY_TYPES[bool(entry & PWT) | bool(entry & PCD) << 1 | bool(third) << 2]

    # For older shared code; to be removed with its last user.

    def large_levels(self) -> Sequence[int]:
        """As :meth:`leaf_levels`."""
        return self.leaf_levels()

    def large_bit(self) -> int:
        """_PAGE_PSE."""
        return PSE

    # The bounds below depend only on the number of levels.

    @property
    def pgdir_shift(self) -> int:
        """PGDIR_SHIFT: 39 or 48."""
        return self.shift(self.levels)

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
        """KASAN_SHADOW_START .. KASAN_SHADOW_END - 1: one byte for every eight of the kernel half."""
        bits = self.pgdir_shift + 8
        start = (KASAN_SHADOW_OFFSET + (((-1 << bits) & ALL) >> 3)) & ALL
        return AddressRange(start, start + (1 << (bits - 3)) - 1)
