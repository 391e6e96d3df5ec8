# SPDX-License-Identifier: LGPL-2.1-or-later
"""A kernel's address space as VMCOREINFO describes it, which is enough to read the kernel's image.

:meth:`kvintro.arch.Architecture.address_space` makes an :class:`AddressSpace` from the lines. The code that
opens a dump compares it with the dump's memory, and reads symbols and types with it. Once there are symbols,
:class:`kvintro.kernels.Facts` has more information.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Callable, Mapping, Optional, Sequence, Tuple

from kvintro.arch.form import PagingForm
from kvintro.model import ALL, AddressRange

#: Names of the windows whose page tables are checked.
WINDOWS = IMAGE, DIRECT_MAP, MEMORY_MAP = "kernel image", "direct map", "memory map"
#: Argument of :class:`int` for numbers that are printed with their base, or in decimal.
ANY_BASE = 0
#: Returns the value of a 64-bit variable by its name; None if it cannot be read.
Variable = Callable[[str], Optional[int]]


@dataclass(frozen=True)
class Window:
    """Addresses that the kernel maps when it boots, and keeps mapped.

    :ivar name: name for display.
    :ivar end: last address, inclusive.
    :ivar offset: physical = virtual - offset, modulo 2^64; None if only page tables translate it.
    :ivar by: where the offset was read from.
    :ivar memory_end: physical address after the last RAM. Tables are below it, and so does everything that a
        window without an offset maps. None if unknown.
    """

    name: str
    start: int
    end: int
    offset: Optional[int] = None
    by: str = ""
    memory_end: Optional[int] = None

    def __contains__(self, address: object) -> bool:
        return isinstance(address, int) and self.start <= address <= self.end


@dataclass(frozen=True)
class AddressSpace(ABC):
    """See the module. Each architecture subclasses it.

    :ivar form: form of the page tables.
    :ivar root: physical address of the kernel's root table.
    :ivar image: all addresses that the kernel's image can have.
    :ivar image_offset: virtual minus physical address in the image, modulo 2^64.
    :ivar image_by: the number in VMCOREINFO that gives this offset.
    :ivar physical_bits: MAX_PHYSMEM_BITS: the maximum number of bits of an address of RAM.
    """

    form: PagingForm
    root: int
    image: AddressRange
    image_offset: int
    image_by: str
    physical_bits: int

    def physical(self, address: int) -> int:
        """Physical address of an address in the image."""
        return address - self.image_offset & ALL

    @property
    @abstractmethod
    def modules(self) -> AddressRange:
        """All addresses that a ``struct module`` can have."""

    @property
    def drgn_walks(self) -> bool:
        """Whether drgn reads these page tables correctly."""
        return True

    @property
    def libkdumpfile_walks(self) -> bool:
        """Whether libkdumpfile does. drgn leaves the page tables of a kdump to it."""
        return self.drgn_walks

    @property
    def told_offset(self) -> Optional[int]:
        """Virtual minus physical address in the direct map, if drgn has to be told; otherwise None."""
        return None

    def other_forms(self) -> Sequence[PagingForm]:
        """Forms that the tables may have instead if VMCOREINFO is wrong."""
        return ()

    def windows(self, memory: Optional[AddressRange]) -> Sequence[Window]:
        """Windows whose tables can be checked without symbols, see :mod:`kvintro.paging.broken`.

        :param memory: physical addresses from the first to the last RAM; None if unknown.
        """
        return ()

    def corrected(self, variable: Variable) -> AddressSpace:
        """A copy with more reliable values from the kernel's own variables."""
        return self

    def more_windows(self, variable: Variable, memory: Optional[AddressRange]) -> Sequence[Window]:
        """Further windows, from the kernel's own variables."""
        return ()


@dataclass(frozen=True)
class ToldAddressSpace(AddressSpace):
    """An address space of which VMCOREINFO has the direct map and the memory map too.

    :ivar constant: from _stext to the root table: text and read-only data, all of which stays mapped.
    :ivar linear: all addresses that the direct map can have.
    :ivar linear_offset: virtual minus physical address in the direct map, modulo 2^64; None if unknown.
    :ivar linear_by: the number in VMCOREINFO that gives it.
    :ivar memory_map: VMEMMAP_START and sizeof(struct page); None if unknown.
    """

    constant: AddressRange
    linear: AddressRange
    linear_offset: Optional[int]
    linear_by: str
    memory_map: Optional[Tuple[int, int]]

    @property
    def told_offset(self) -> Optional[int]:
        """The direct map's offset, as drgn finds it by its own walker only."""
        return None if self.drgn_walks else self.linear_offset

    def windows(self, memory: Optional[AddressRange]) -> Sequence[Window]:
        """The image's constant part."""
        part, end = self.constant, None if memory is None else memory.end + 1
        return (Window(IMAGE, part.start, part.end, self.image_offset, self.image_by, end),)

    @abstractmethod
    def first_struct(self, variable: Variable, offset: int) -> int:
        """Physical address of the page whose struct page is at VMEMMAP_START, modulo 2^64.

        :param offset: ``linear_offset``.
        """

    def more_windows(self, variable: Variable, memory: Optional[AddressRange]) -> Sequence[Window]:
        """The direct map and the memory map, from the start to the end of RAM."""
        memory, offset = self._memory(variable) or memory, self.linear_offset
        if offset is None or memory is None:
            return ()
        start, end = memory.start + offset & ALL, memory.end + offset & ALL
        if not start < end or start not in self.linear or end not in self.linear:
            return ()
        found = [Window(DIRECT_MAP, start, end, offset, self.linear_by, memory.end + 1)]
        if self.memory_map is not None:
            base, size = self.memory_map
            first = self.first_struct(variable, offset)
            frames = ((at - first & ALL) >> self.form.page_shift for at in (memory.start, memory.end))
            low, high = (base + frame * size for frame in frames)
            if low < high + size <= ALL:
                found.append(Window(MEMORY_MAP, low, high + size - 1, memory_end=memory.end + 1))
        return found

    def _memory(self, variable: Variable) -> Optional[AddressRange]:
        """Physical addresses of RAM that the kernel uses."""
        first, end, shift = variable("min_low_pfn"), variable("max_pfn"), self.form.page_shift
        if first is None or end is None or not first < end <= 1 << self.physical_bits - shift:
            return None
        return AddressRange(first << shift, (end << shift) - 1)


def number(lines: Mapping[str, str], key: str, default: Optional[int] = None, base: int = 10) -> int:
    """A number from VMCOREINFO.

    :param default: result if there is no such line.
    :raises ValueError: it is not a number, or there is no such line and no default.
    """
    text = lines.get(key)
    if text is None:
        if default is None:
            raise ValueError(f"it has no {key}")
        return default
    try:
        if len(text) > 32:
            raise ValueError
        return int(text, base)
    except ValueError:
        raise ValueError(f"its {key} is not a number") from None


def optional_number(lines: Mapping[str, str], key: str, base: int = ANY_BASE) -> Optional[int]:
    """A number modulo 2^64; None if it is missing or malformed."""
    try:
        return number(lines, key, None, base) & ALL
    except ValueError:
        return None


def symbol_in(lines: Mapping[str, str], name: str, image: AddressRange) -> int:
    """The address of a symbol from VMCOREINFO.

    :raises ValueError: it is not in the image, or there is no such symbol.
    """
    value = number(lines, f"SYMBOL({name})", None, 16)
    if value not in image:
        raise ValueError(f"its {name} is not in a kernel's image")
    return value
