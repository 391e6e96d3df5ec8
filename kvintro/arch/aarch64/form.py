# SPDX-License-Identifier: LGPL-2.1-or-later
"""aarch64: page tables of 4K, 16K and 64K pages, with 36 to 52 bits of addresses.

Mirrors ``arch/arm64/include/asm/pgtable-hwdef.h``, ``pgtable-prot.h``, ``pgtable.h`` and the Arm Architecture
Reference Manual (DDI 0487), D8.3 "Translation table descriptor formats".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional, Sequence, Tuple

from kvintro.arch.form import PagingForm, Truth, Word
from kvintro.arch.rights import ALL_RIGHTS, EXEC, READ, USER, USER_EXEC, WRITE
from kvintro.model import ALL, AddressRange

# arch/arm64/include/asm/pgtable-hwdef.h
VALID = 1 << 0
TABLE_BIT = 1 << 1
ATTR_INDEX_SHIFT = 2
USER_BIT = 1 << 6
RDONLY = 1 << 7
SHARED = 3 << 8
AF = 1 << 10
NG = 1 << 11
GP = 1 << 50
DBM = 1 << 51
CONT = 1 << 52
PXN = 1 << 53
UXN = 1 << 54
PXN_TABLE = 1 << 59
UXN_TABLE = 1 << 60
#: APTable: no access for user mode; no writing.
TABLE_NO_USER = 1 << 61
TABLE_RDONLY = 1 << 62
# arch/arm64/include/asm/pgtable-prot.h: bits that only software uses.
DIRTY = 1 << 55
SPECIAL = 1 << 56
#: PTE_PROT_NONE and PMD_PRESENT_INVALID, before 55564814a838 "arm64/mm: Move PTE_PRESENT_INVALID to overlay
#: PTE_NG" (6.11).
PROT_NONE_58 = 1 << 58
PMD_INVALID_59 = 1 << 59
#: PTE_PRESENT_INVALID since then, only for entries that are not valid.
INVALID_NG = NG

#: The memory types that the kernel writes to MAIR_EL1 (arch/arm64/mm/proc.S), by AttrIndx.
MEMORY_TYPES = ("NORMAL", "NORMAL-TAGGED", "NORMAL-NC", "DEVICE/nGnRnE", "DEVICE/nGnRE")
#: The same for older kernels (5.10), which also have NORMAL_WT.
OLD_MEMORY_TYPES = (
    *("NORMAL", "NORMAL-TAGGED", "NORMAL-NC", "NORMAL-WT"),
    *("DEVICE/nGnRnE", "DEVICE/nGnRE", "DEVICE/GRE"),
)

#: log2 of the page sizes that the architecture has.
GRANULES = (12, 14, 16)


@dataclass(frozen=True)
class Arm64Form(PagingForm):
    """See :class:`kvintro.arch.form.PagingForm`. :meth:`of` computes the number of levels.

    :ivar granule: log2 of the size of a page.
    :ivar built_bits: CONFIG_ARM64_VA_BITS.
    :ivar address_bits: bits of addresses that the processor translates (``vabits_actual``): fewer than
        ``built_bits`` if a kernel for 52 bits runs on a processor with 48.
    :ivar kept: bits that, in an entry that is not valid, say that it keeps a page (PROT_NONE, and huge pages
        that are being split); any of them is enough. 0 if unknown for this kernel.
    :ivar types: names of memory types by AttrIndx.
    :ivar signed: whether the kernel signs pointers (PAC).
    """

    granule: int
    built_bits: int
    address_bits: int
    kept: int = 0
    types: Sequence[str] = MEMORY_TYPES
    signed: bool = False

    shared_root = False
    marked_pointers = True

    @classmethod
    def of(
        cls,
        granule: int,
        built_bits: int,
        address_bits: int,
        *,
        kept: int = 0,
        types: Sequence[str] = MEMORY_TYPES,
    ) -> Arm64Form:
        """The form of a kernel.

        :raises ValueError: no kernel has such tables.
        """
        if granule not in GRANULES or not 36 <= address_bits <= built_bits <= 52:
            raise ValueError(
                f"aarch64 has no pages of 2^{granule} bytes and {address_bits} bits of addresses"
            )
        # A kernel with 64K pages always uses tables for 52 bits (arch/arm64/kernel/head.S: offset_ttbr1).
        walked = built_bits if granule == 16 else address_bits
        levels = -(-(walked - granule) // (granule - 3))
        return cls(levels, granule, built_bits, address_bits, kept, tuple(types))

    @property
    def page_shift(self) -> int:
        """12, 14 or 16."""
        return self.granule

    @property
    def _root_bits(self) -> int:
        walked = self.built_bits if self.granule == 16 else self.address_bits
        return walked - self.granule - (self.levels - 1) * (self.granule - 3)

    def index_bits(self, level: int) -> int:
        """A table fills a page, but the root has only the entries that it needs."""
        return self._root_bits if level == self.levels else self.granule - 3

    def shift(self, level: int) -> int:
        """log2 of the bytes that one entry spans."""
        return self.granule + (self.granule - 3) * (level - 1)

    @property
    def large_addresses(self) -> bool:
        """FEAT_LPA2: whether descriptors of 4K and 16K pages hold addresses of 52 bits (TCR_EL1.DS)."""
        return self.granule != 16 and self.address_bits == 52

    def leaf_levels(self) -> Sequence[int]:
        """Blocks: 2M and 1G; 32M; 512M. With FEAT_LPA2 also 512G; 64G."""
        if self.granule == 12:
            return (2, 3, 4) if self.large_addresses else (2, 3)
        return (2, 3) if self.large_addresses else (2,)

    def contiguous(self, level: int) -> int:
        """Number of entries in a group with the contiguous bit (CONT_PTES, CONT_PMDS): at levels 1 and 2."""
        if self.granule == 14:
            return 128 if level == 1 else 32
        return 16 if self.granule == 12 else 32

    @property
    def half_bits(self) -> int:
        """Each root translates a whole half."""
        return self.address_bits

    def untagged(self, address: int) -> int:
        """An address without the tag in its highest byte, which user mode may set (``untagged_addr``)."""
        if address >> 55 & 1:
            return address | 0xFF << 56
        return address & (1 << 56) - 1

    def plain(self, address: int) -> Optional[Tuple[int, str]]:
        """Bit 55 selects the half. User mode's pointers may have a tag (TCR_EL1.TBI0).

        A signature fills the bits above the address, except bit 55, and of user mode's pointers the tag, too.
        """
        if self.is_canonical(address):
            return None
        upper = address >> 55 & 1
        if not upper and self.untagged(address) in self.user:
            return self.untagged(address), f"without its tag, 0x{address >> 56:02x}"
        if not self.signed:
            return None
        low = (1 << self.address_bits) - 1
        return (address | ~low & ALL if upper else address & low), "without its signature (PAC)"

    # Entries

    def is_present(self, entry: Word, level: int) -> Truth:
        """PTE_VALID."""
        return entry & VALID != 0

    def is_table(self, entry: Word, level: int) -> Truth:
        """PMD_TYPE_TABLE."""
        return entry & (VALID | TABLE_BIT) == VALID | TABLE_BIT

    def is_leaf(self, entry: Word, level: int) -> Truth:
        """PTE_TYPE_PAGE at level 1, PMD_TYPE_SECT above."""
        if level == 1:
            return entry & (VALID | TABLE_BIT) == VALID | TABLE_BIT
        if level not in self.leaf_levels():
            return entry & 0 != 0
        return entry & (VALID | TABLE_BIT) == VALID

    def _address(self, entry: Word, shift: int) -> Word:
        if self.large_addresses:
            return (entry & (1 << 50) - (1 << shift)) | (entry & SHARED) << 42
        low = entry & (1 << 48) - (1 << shift)
        if self.granule == 16:
            return low | (entry & 0xF000) << 36
        return low

    def table_address(self, entry: Word) -> Word:
        """__pmd_to_phys() and its like."""
        # This is never a root smaller than a page, as no entry points to a root.
        return self._address(entry, self.granule)

    def page_address(self, entry: Word, level: int) -> Word:
        """__pte_to_phys(); a block's address has fewer bits."""
        return self._address(entry, self.shift(level))

    def holds_page(self, entry: Word, level: int) -> Truth:
        """pte_present() and pmd_present(): an entry that is not valid may keep a page."""
        leaf = self.is_leaf(entry, level)
        if level > 1 and level not in self.leaf_levels():
            return leaf
        return leaf | (entry & VALID == 0) & (entry & self.kept != 0)

    def rights(self, entry: Word, level: int) -> Word:
        """DBM also allows writing: a page that was not written yet has both DBM and RDONLY."""
        write = (entry >> 7 & 1 ^ 1 | entry >> 51 & 1) * WRITE
        user = (entry >> 6 & 1) * USER
        return READ | write | user | (entry >> 53 & 1 ^ 1) * EXEC | (entry >> 54 & 1 ^ 1) * USER_EXEC

    def table_rights(self, entry: Word) -> Word:
        """APTable, PXNTable and UXNTable."""
        kept = ALL_RIGHTS & ~(WRITE | USER | EXEC | USER_EXEC)
        user, write = (entry >> 61 & 1 ^ 1) * USER, (entry >> 62 & 1 ^ 1) * WRITE
        return kept | user | write | (entry >> 59 & 1 ^ 1) * EXEC | (entry >> 60 & 1 ^ 1) * USER_EXEC

    def flag_bits(self, level: int) -> int:
        """Bits below and above the address.

        With FEAT_LPA2, SH holds bits 50 and 51 of the address in valid entries. It nevertheless counts as a
        flag, as in the kernel's ptdump: only memory above 2^50 has these bits set.
        """
        return 0xFFF | ALL & ~((1 << 50) - 1)

    def memory_type(self, entry: int, level: int) -> str:
        """By AttrIndx, which selects a byte of MAIR_EL1."""
        index = entry >> ATTR_INDEX_SHIFT & 7
        return self.types[index] if index < len(self.types) else f"AttrIndx {index}"

    @property
    def linear_map(self) -> AddressRange:
        """PAGE_OFFSET .. PAGE_END - 1, since 5.4 the lower half of the kernel's addresses.

        On a processor with fewer bits than the kernel was built for, it begins at the processor's first one.
        arch/arm64/include/asm/memory.h; 14c127c957c1 "arm64: mm: Flip kernel VA space".
        """
        return AddressRange(self.upper.start, self.linear_end - 1)

    @property
    def least_bits(self) -> int:
        """VA_BITS_MIN."""
        if self.built_bits > 48:
            return 47 if self.granule == 14 else 48
        return self.built_bits

    @property
    def page_offset(self) -> int:
        """PAGE_OFFSET."""
        return -(1 << self.built_bits) & ALL

    @property
    def linear_end(self) -> int:
        """PAGE_END without KASAN: one more than the linear map's last address."""
        return -(1 << self.least_bits - 1) & ALL
