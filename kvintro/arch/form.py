# SPDX-License-Identifier: LGPL-2.1-or-later
"""The form of page tables: everything that :mod:`kvintro.paging` needs to walk them.

A form is pure arithmetic. Methods that take entries accept a Python integer or a numpy array of uint64. This
module does not import numpy, so that opening a dump does not have to wait for that.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Mapping, Optional, Sequence, Tuple

from kvintro.model import ALL, AddressRange
from kvintro.text import size_text

#: One entry (an int), or a numpy array of uint64. Type checkers cannot handle both in the same expressions:
#: numpy's annotations make the results signed.
Word = Any
#: A bool, or a numpy array of bool.
Truth = Any

#: Bytes of an entry, on all 64-bit architectures.
ENTRY_SIZE = 8

#: The smallest page size of any kernel; all others are multiples of it. Code that reads memory piece by piece
#: without knowing the kernel's page size uses pieces of this size.
SMALLEST_PAGE = 4096

#: The kernel's names of levels.
LEVEL_NAMES = {1: "pte", 2: "pmd", 3: "pud", 4: "p4d", 5: "pgd"}


@dataclass(frozen=True)
class PagingForm(ABC):
    """The page tables of one kernel.

    Levels are numbered from 1, whose entries map pages of the smallest size, to ``levels``, the root. Each
    subclass is a frozen dataclass, so that two kernels with the same form of tables have equal objects.

    :ivar levels: number of levels.
    """

    levels: int

    #: Byte order of the entries in memory, as an argument of :meth:`int.from_bytes`. Some processors use
    #: different byte orders for tables and data.
    byte_order: ClassVar[Literal["little", "big"]] = "little"
    #: Whether one root translates both halves. If not, user mode's addresses have a root of their own.
    shared_root: ClassVar[bool] = True

    # Shape

    @property
    @abstractmethod
    def page_shift(self) -> int:
        """log2 of the smallest page's size."""

    def index_bits(self, level: int) -> int:
        """log2 of the number of entries in a table at ``level``: a table fills a page.

        The root may be smaller or larger.
        """
        return self.page_shift - 3

    @abstractmethod
    def leaf_levels(self) -> Sequence[int]:
        """Levels above 1 at which an entry may map a page, ascending."""

    @property
    def page_size(self) -> int:
        """Bytes of the smallest page."""
        return 1 << self.page_shift

    @property
    def text(self) -> str:
        """The number of levels and the page size, for display."""
        return f"{self.levels} levels, {size_text(self.page_size)} pages"

    def shift(self, level: int) -> int:
        """log2 of the bytes that one entry at ``level`` spans."""
        return self.page_shift + sum(self.index_bits(below) for below in range(1, level))

    def entries(self, level: int) -> int:
        """Number of entries in a table at ``level``."""
        return 1 << self.index_bits(level)

    def table_size(self, level: int) -> int:
        """Bytes of a table at ``level``."""
        return ENTRY_SIZE << self.index_bits(level)

    def page_name(self, level: int) -> str:
        """The size of a page that an entry at ``level`` maps, for display: ``4K``, ``2M``."""
        shift = self.shift(level)
        return f"{1 << shift % 10}{'KMGTPE'[shift // 10 - 1]}"

    @property
    def page_names(self) -> Mapping[int, str]:
        """:meth:`page_name` of each level that may map pages, ascending."""
        return {level: self.page_name(level) for level in (1, *self.leaf_levels())}

    def user_entries(self) -> slice:
        """The entries of the root that translate user mode's addresses."""
        return slice(0, self.index(self.user.end, self.levels) + 1)

    def kernel_entries(self) -> slice:
        """The entries of the root that translate the upper half."""
        return slice(self.index(self.upper.start, self.levels), self.entries(self.levels))

    def index(self, address: int, level: int) -> int:
        """Index of the entry that translates the address in its table at ``level``."""
        return address >> self.shift(level) & (self.entries(level) - 1)

    def level_name(self, level: int) -> str:
        """The kernel's name of a level's entries. The root's are always ``pgd``."""
        return "pgd" if level == self.levels else LEVEL_NAMES[level]

    @property
    def entry_dtype(self) -> str:
        """numpy's name for the type of an entry in memory."""
        return "<u8" if self.byte_order == "little" else ">u8"

    @property
    def table_format(self) -> str:
        """The byte order as a character for :mod:`struct`."""
        return "<" if self.byte_order == "little" else ">"

    # Addresses

    @property
    @abstractmethod
    def half_bits(self) -> int:
        """log2 of the bytes in each half of the address space that the processor accepts."""

    @property
    def user(self) -> AddressRange:
        """The addresses that user mode can have."""
        return AddressRange(0, (1 << self.half_bits) - 1)

    @property
    def upper(self) -> AddressRange:
        """The other half: the highest addresses that the processor accepts."""
        return AddressRange(ALL + 1 - (1 << self.half_bits), ALL)

    @property
    def kernel(self) -> AddressRange:
        """Addresses at which the kernel may map something. The kernel's root translates them."""
        return self.upper

    @property
    def non_canonical(self) -> AddressRange:
        """Addresses that the processor rejects."""
        return AddressRange(self.user.end + 1, self.upper.start - 1)

    #: Whether :meth:`plain` ever returns something.
    marked_pointers: ClassVar[bool] = False

    def plain(self, address: int) -> Optional[Tuple[int, str]]:
        """What a non-canonical pointer points to if its upper bits hold something else, and what they hold.

        :return: None if the processor would not accept such a pointer.
        """
        return None

    def is_canonical(self, address: Word) -> Truth:
        """Whether the processor accepts an address; for an array, which addresses it accepts."""
        return (address + (1 << self.half_bits) & ALL) < 1 << self.half_bits + 1

    # Entries

    @abstractmethod
    def is_present(self, entry: Word, level: int) -> Truth:
        """Whether the processor uses the rest of the entry."""

    @abstractmethod
    def is_table(self, entry: Word, level: int) -> Truth:
        """Whether an entry above level 1 points to a table that the processor uses."""

    @abstractmethod
    def is_leaf(self, entry: Word, level: int) -> Truth:
        """Whether the entry maps a page. At level 1 this depends on :meth:`flag_bits` only.

        An entry that is present, does not point to a table and is not a leaf makes the processor fault.
        """

    @abstractmethod
    def table_address(self, entry: Word) -> Word:
        """Physical address of the table that an entry points to."""

    @abstractmethod
    def page_address(self, entry: Word, level: int) -> Word:
        """Physical address of the page that an entry maps."""

    def offset_mask(self, entry: Word, level: int) -> Word:
        """The bits of a virtual address that are added to :meth:`page_address`.

        They are more than those of one page if all entries of a larger range are equal (Svnapot).
        """
        return (1 << self.shift(level)) - 1

    def holds_page(self, entry: Word, level: int) -> Truth:
        """Whether an entry for user mode has a page for the kernel, even if the processor may not use it.

        Such an entry is a leaf, or keeps a page that may not be accessed now (PROT_NONE, NUMA hints).
        """
        return self.is_leaf(entry, level)

    def held_address(self, entry: Word, level: int) -> Word:
        """Physical address of the page of an entry for which :meth:`holds_page` is true."""
        return self.page_address(entry, level)

    @abstractmethod
    def rights(self, entry: Word, level: int) -> Word:
        """The rights that an entry itself allows, see :mod:`kvintro.arch.rights`.

        They depend on :meth:`flag_bits` only. The entry need not be present: the rights of a page that was
        taken away are still visible.
        """

    @abstractmethod
    def table_rights(self, entry: Word) -> Word:
        """The rights that an entry that points to a table leaves to the levels below."""

    @abstractmethod
    def flag_bits(self, level: int) -> int:
        """Bits of an entry that hold no address.

        Bits 13 to 31 are never among them: :mod:`kvintro.paging.tree` keeps its own there.
        """

    def flags(self, entry: Word, level: int) -> Word:
        """The bits of an entry that a range keeps: :meth:`flag_bits`, and more below 13 if it has no page."""
        return entry & self.flag_bits(level)

    def stray_bits(self, level: int) -> int:
        """Bits that the kernel ignores when it checks whether an entry is empty (``pmd_none``)."""
        return 0

    @abstractmethod
    def memory_type(self, entry: int, level: int) -> str:
        """The kernel's name of the memory type that an entry selects, as the processor is programmed."""
