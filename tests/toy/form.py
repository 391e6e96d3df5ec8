# SPDX-License-Identifier: LGPL-2.1-or-later
"""Page tables of 16K pages, 2048 entries and a root of 8, big-endian, with a root for each half.

An entry: bits 1:0 are 3 for a table or a page, 1 for a large page; bit 2 forbids writing, 3 allows user mode,
4 and 5 forbid kernel mode and user mode to execute. Bits 57:44 hold bits 13:0 of the page frame number, and
bits 43:32 the bits above, so no mask gives an address. A table entry's bits 62 and 63 forbid writing and
user mode for all below.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

from kvintro.arch.form import PagingForm, Truth, Word
from kvintro.arch.rights import ALL_RIGHTS, EXEC, READ, USER, USER_EXEC, WRITE

LARGE, TABLE = 1, 3
READ_ONLY, FOR_USER, NO_EXEC, NO_USER_EXEC = 1 << 2, 1 << 3, 1 << 4, 1 << 5
TABLE_READ_ONLY, TABLE_NO_USER = 1 << 62, 1 << 63


@dataclass(frozen=True)
class ToyForm(PagingForm):
    """See the module."""

    page_shift = 14
    byte_order = "big"
    shared_root = False

    def index_bits(self, level: int) -> int:
        """The root has 8 entries."""
        return 3 if level == self.levels else 11

    def leaf_levels(self) -> Sequence[int]:
        """Pages of 32M."""
        return (2,)

    @property
    def half_bits(self) -> int:
        """A root translates one half, with all of its entries."""
        return self.shift(self.levels) + 3

    def is_present(self, entry: Word, level: int) -> Truth:
        """Bit 0."""
        return entry & 1 != 0

    def is_table(self, entry: Word, level: int) -> Truth:
        """Above level 1."""
        return entry & 3 == TABLE

    def is_leaf(self, entry: Word, level: int) -> Truth:
        """A page has a table's bits."""
        if level == 1:
            return entry & 3 == TABLE
        return entry & 3 == (LARGE if level in self.leaf_levels() else 4)

    def table_address(self, entry: Word) -> Word:
        """The two parts of a page frame number."""
        return ((entry >> 44 & 0x3FFF) | (entry >> 32 & 0xFFF) << 14) << 14

    def page_address(self, entry: Word, level: int) -> Word:
        """As a table's."""
        return self.table_address(entry)

    def rights(self, entry: Word, level: int) -> Word:
        """Three bits forbid, one allows."""
        write = (entry >> 2 & 1 ^ 1) * WRITE
        user = (entry >> 3 & 1) * USER
        return READ | write | user | (entry >> 4 & 1 ^ 1) * EXEC | (entry >> 5 & 1 ^ 1) * USER_EXEC

    def table_rights(self, entry: Word) -> Word:
        """Table entries never forbid execution."""
        kept = ALL_RIGHTS & ~(WRITE | USER)
        return kept | (entry >> 62 & 1 ^ 1) * WRITE | (entry >> 63 & 1 ^ 1) * USER

    def flag_bits(self, level: int) -> int:
        """All bits except the page frame number."""
        return 0xFFF | 3 << 62

    def memory_type(self, entry: int, level: int) -> str:
        """There is only one."""
        return "normal"


def entry_of(physical: int, flags: int) -> int:
    """An entry, made in an independent way from how the form decodes it."""
    frame = physical >> 14
    return (frame & 0x3FFF) << 44 | (frame >> 14) << 32 | flags
