# SPDX-License-Identifier: LGPL-2.1-or-later
"""riscv64: page tables of sv39, sv48 and sv57.

Mirrors ``arch/riscv/include/asm/pgtable-bits.h``, ``pgtable-64.h``, ``pgtable.h`` and the RISC-V Privileged
Architecture, "Sv39: Page-Based 39-bit Virtual-Memory System" and the extensions Svnapot and Svpbmt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

from kvintro.arch.form import PagingForm, Truth, Word
from kvintro.arch.rights import ALL_RIGHTS, EXEC, READ, USER, USER_EXEC, WRITE
from kvintro.model import AddressRange

# arch/riscv/include/asm/pgtable-bits.h
PRESENT = 1 << 0
READ_BIT = 1 << 1
WRITE_BIT = 1 << 2
EXEC_BIT = 1 << 3
USER_BIT = 1 << 4
GLOBAL = 1 << 5
ACCESSED = 1 << 6
DIRTY = 1 << 7
SPECIAL = 1 << 8
SOFT_9 = 1 << 9
LEAF = READ_BIT | WRITE_BIT | EXEC_BIT
#: An entry without PRESENT that keeps a page.
PROT_NONE = GLOBAL
PFN_SHIFT = 10
PFN_MASK = (1 << 54) - (1 << PFN_SHIFT)
NAPOT = 1 << 63
SWAP_TYPE_SHIFT = 7
SWAP_TYPE = 31 << SWAP_TYPE_SHIFT
MEMORY_TYPE_SHIFT = 61
MEMORY_TYPES = ("PMA", "NC", "IO", "MT 3")
#: Bytes of a Svnapot range, the only size that the specification has.
NAPOT_SIZE = 64 << 10
_PAGE_SHIFT = 12
#: MAX_PHYSMEM_BITS.
PHYSICAL_BITS = 56
#: Levels of sv39, sv48 and sv57.
LEVELS = {39: 3, 48: 4, 57: 5}


@dataclass(frozen=True)
class RiscvForm(PagingForm):
    """See :class:`kvintro.arch.form.PagingForm`."""

    page_shift = _PAGE_SHIFT

    @classmethod
    def of(cls, bits: int) -> RiscvForm:
        """The form for a number of address bits (``VA_BITS``).

        :raises ValueError: no kernel has such tables.
        """
        if bits not in LEVELS:
            raise ValueError(f"riscv64 has no page tables for {bits} bits")
        return cls(LEVELS[bits])

    def leaf_levels(self) -> Sequence[int]:
        """Each level may map a page, the root's entries too."""
        return tuple(range(2, self.levels + 1))

    @property
    def bits(self) -> int:
        """VA_BITS: 39, 48 or 57."""
        return self.shift(self.levels + 1)

    @property
    def text(self) -> str:
        """With the name of the mode."""
        return f"sv{self.bits}, {super().text}"

    @property
    def half_bits(self) -> int:
        """The root translates both halves."""
        return self.bits - 1

    def is_present(self, entry: Word, level: int) -> Truth:
        """_PAGE_PRESENT."""
        return entry & PRESENT != 0

    def is_table(self, entry: Word, level: int) -> Truth:
        """Present, without any right."""
        return entry & (PRESENT | LEAF) == PRESENT

    def is_leaf(self, entry: Word, level: int) -> Truth:
        """Present, with at least one right. Write without read is reserved: the processor faults."""
        return (
            (entry & PRESENT != 0)
            & (entry & (READ_BIT | EXEC_BIT) != 0)
            & (entry & (READ_BIT | WRITE_BIT) != WRITE_BIT)
        )

    def table_address(self, entry: Word) -> Word:
        """__page_val_to_pfn() as an address."""
        return (entry & PFN_MASK) << _PAGE_SHIFT - PFN_SHIFT

    def page_address(self, entry: Word, level: int) -> Word:
        """Of a Svnapot entry, the start of its range: its lowest page frame bits are the size."""
        found = (entry & (1 << 54) - (1 << self.shift(level) - 2)) << _PAGE_SHIFT - PFN_SHIFT
        return found - (found & (entry >> 63) * (NAPOT_SIZE - 1)) if level == 1 else found

    def offset_mask(self, entry: Word, level: int) -> Word:
        """More than a page for a Svnapot entry: all entries of a range are equal."""
        mask = super().offset_mask(entry, level)
        return mask | (entry >> 63) * (NAPOT_SIZE - 1) if level == 1 else mask

    def holds_page(self, entry: Word, level: int) -> Truth:
        """pte_present() and pmd_present(): PROT_NONE, or what pmd_mkinvalid() left. Swap has no rights."""
        kept = (entry & (PRESENT | PROT_NONE) == PROT_NONE) & (entry & LEAF != 0)
        if level == 2:
            kept = kept | (entry & (PRESENT | PROT_NONE) == 0) & (entry & LEAF != 0)
        return self.is_leaf(entry, level) | kept

    def rights(self, entry: Word, level: int) -> Word:
        """Kernel mode can execute only pages without USER, and user mode only pages with it."""
        user = entry >> 4 & 1
        run = entry >> 3 & 1
        return (
            (entry >> 1 & 1) * READ
            | (entry >> 2 & 1) * WRITE
            | user * USER
            | (run & (user ^ 1)) * EXEC
            | (run & user) * USER_EXEC
        )

    def table_rights(self, entry: Word) -> Word:
        """Tables take no rights away."""
        return ALL_RIGHTS | entry & 0

    def flag_bits(self, level: int) -> int:
        """Bits below and above the page frame number."""
        return (1 << PFN_SHIFT) - 1 | (1 << 64) - (1 << 54)

    def flags(self, entry: Word, level: int) -> Word:
        """A swap entry's type has five bits, from bit 7 up."""
        swapped = entry & (PRESENT | PROT_NONE | LEAF) == 0
        return entry & self.flag_bits(level) | (entry & SWAP_TYPE) * swapped

    def memory_type(self, entry: int, level: int) -> str:
        """Svpbmt: PMA is what the platform says of the address."""
        return MEMORY_TYPES[entry >> MEMORY_TYPE_SHIFT & 3]

    @property
    def page_offset(self) -> int:
        """PAGE_OFFSET (arch/riscv/include/asm/page.h). VMCOREINFO may have another value."""
        return {39: 0xFFFFFFD600000000, 48: 0xFFFFAF8000000000, 57: 0xFF60000000000000}[self.bits]

    def linear_map(self, start: int) -> AddressRange:
        """The direct map from PAGE_OFFSET on. It can have KERN_VIRT_SIZE."""
        return AddressRange(start, start + (1 << self.bits - 2) - 1)
