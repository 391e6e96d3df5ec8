# SPDX-License-Identifier: LGPL-2.1-or-later
"""Page tables that cannot be what the kernel runs on: missing from the dump, all zeros, or overwritten.

A table says little about itself, so tables are judged only where the kernel's layout says what they must
hold. No table of the image, the direct map or the memory map is without any entry. In the image and the
direct map each page also lies where a rule says (``__pa()``).

This runs whenever a dump is opened, and does without numpy, whose import takes longer than all of it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

from kvintro.arch.x86_64 import ALL, PRESENT, PTRS_PER_TABLE, X86Geometry
from kvintro.errors import NotInDump
from kvintro.paging.step import TABLE_SIZE, ReadPhysical

#: The windows that are judged, by name.
WINDOWS = IMAGE, DIRECT_MAP, MEMORY_MAP = "kernel image", "direct map", "memory map"
#: Why a table cannot be used.
MISSING, ZERO, OVERWRITTEN = "is not in the dump", "is all zeros", "is overwritten"
EMPTY, CYCLE = "has no entry for it", "is used at two levels"
_TABLE = struct.Struct(f"<{PTRS_PER_TABLE}Q")
_SAMPLE = PTRS_PER_TABLE // 8
_MOST = 1 << 12  # broken tables reported


@dataclass(frozen=True)
class Window:
    """Addresses that the kernel maps when it boots, and keeps mapped.

    :ivar name: what people call it.
    :ivar end: last address.
    :ivar offset: physical = virtual - offset, modulo 2^64; None where only the page tables tell.
    :ivar by: where the offset was read.
    :ivar memory_end: physical address behind the last RAM, where tables lie, and all that a window without an
        offset maps; None if not known.
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
class BrokenTable:
    """A page table that cannot be used.

    :ivar window: the name of the window that it belongs to.
    :ivar start: first address that it translates, within the window.
    :ivar end: last address.
    :ivar level: 1 for a table of 4K pages.
    :ivar table: physical address.
    :ivar why: one of :data:`MISSING`, :data:`ZERO`, :data:`OVERWRITTEN`, :data:`EMPTY`, :data:`CYCLE`.
    """

    window: str
    start: int
    end: int
    level: int
    table: int
    why: str

    @property
    def whole(self) -> bool:
        """Whether nothing that the table says can be believed."""
        return self.why in (ZERO, OVERWRITTEN)

    @property
    def text(self) -> str:
        """What is wrong, in words."""
        return f"the level {self.level} page table at physical {self.table:#x} {self.why}"


class Judged(NamedTuple):
    """What :func:`find_broken` found.

    :ivar broken: the highest broken table of each branch, in the order of addresses.
    :ivar looked: how many tables were looked at.
    :ivar left: how many were met and not looked at.
    """

    broken: Tuple[BrokenTable, ...]
    looked: int
    left: int


def entries_of(data: bytes) -> Tuple[int, ...]:
    """A table's entries."""
    return _TABLE.unpack(data)


def judge(
    geometry: X86Geometry, window: Window, entries: Sequence[int], level: int, base: int
) -> Optional[str]:
    """What is wrong with a table, None if nothing can be told.

    :param entries: all 512 of the table's.
    :param base: first address that the table translates, which may lie before the window.
    """
    first, last = _span(geometry, window, level, base)
    if not any(entries[first : last + 1]):
        return EMPTY if any(entries) else ZERO
    bad = good = 0
    for index in range(first, last + 1):
        entry = entries[index]
        if entry & PRESENT:
            if _fits(geometry, window, entry, level, base + (index << geometry.shift(level))):
                good += 1
            else:
                bad += 1
    # Only pages of 4K are taken out one by one (memfd_secret, KFENCE), and keep the rest of their entry.
    return OVERWRITTEN if bad > good or (level > 1 and not good) else None


def find_broken(read: ReadPhysical, geometry: X86Geometry, root: int, window: Window, limit: int) -> Judged:
    """The tables of a window that cannot be used.

    :param root: physical address of the root table.
    :param limit: how many tables are read at most, upper levels first; the others are not looked at.
    """
    broken: List[BrokenTable] = []
    span = 1 << geometry.shift(geometry.levels) + 9
    todo = [(root, window.start & -span & ALL)]
    levels: Dict[int, int] = {}
    looked = left = 0
    for level in range(geometry.levels, 0, -1):
        below: List[Tuple[int, int]] = []
        for table, base in todo[: max(limit, 0)]:
            entries: Sequence[int] = ()
            why: Optional[str] = CYCLE
            if levels.setdefault(table, level) == level:
                entries, why = _examine(read, geometry, window, table, level, base)
            if why is None:
                below += _below(geometry, window, entries, level, base)
            elif len(broken) < _MOST:
                start, end = _bounds(geometry, window, level, base)
                broken.append(BrokenTable(window.name, start, end, level, table, why))
        looked += min(len(todo), max(limit, 0))
        left += len(todo) - min(len(todo), max(limit, 0))
        limit -= len(todo)
        todo = below
    return Judged(tuple(sorted(broken, key=lambda found: found.start)), looked, left)


def _examine(
    read: ReadPhysical, geometry: X86Geometry, window: Window, table: int, level: int, base: int
) -> Tuple[Sequence[int], Optional[str]]:
    """A table's entries, and what is wrong with them."""
    try:
        entries = entries_of(read(table, TABLE_SIZE))
    except NotInDump:
        return (), MISSING
    if _looks_sound(geometry, window, entries, level, base):
        return entries, None
    return entries, judge(geometry, window, entries, level, base)


def _fits(geometry: X86Geometry, window: Window, entry: int, level: int, address: int) -> bool:
    """Whether a present entry can be the kernel's."""
    end = window.memory_end
    if level > 1 and not entry & geometry.large_bit():
        return end is None or entry & geometry.pfn_mask < end
    if entry & geometry.reserved_bits(level):
        return False
    physical = entry & geometry.pfn_mask & ~((1 << geometry.shift(level)) - 1)
    if window.offset is None:
        return end is None or physical < end
    return physical == address - window.offset & ALL


def _looks_sound(
    geometry: X86Geometry, window: Window, entries: Sequence[int], level: int, base: int
) -> bool:
    """Whether some entries, evenly spread, all map pages where the rule says. Most tables are like that."""
    first, last = _span(geometry, window, level, base)
    if level > 1 or window.offset is None or last - first < PTRS_PER_TABLE - 1:
        return False
    mask, page = geometry.pfn_mask | PRESENT, 1 << geometry.shift(level)
    start = base - window.offset & ALL | PRESENT
    return all(entries[index] & mask == start + index * page for index in range(0, PTRS_PER_TABLE, _SAMPLE))


def _below(
    geometry: X86Geometry, window: Window, entries: Sequence[int], level: int, base: int
) -> List[Tuple[int, int]]:
    """The tables that a table points to within the window, and the first address that each translates."""
    if level == 1:
        return []
    first, last = _span(geometry, window, level, base)
    bits = PRESENT | geometry.large_bit()
    return [
        (entries[index] & geometry.pfn_mask, base + (index << geometry.shift(level)))
        for index in range(first, last + 1)
        if entries[index] & bits == PRESENT
    ]


def _span(geometry: X86Geometry, window: Window, level: int, base: int) -> Tuple[int, int]:
    """The first and last of a table's entries that translate addresses of the window."""
    shift = geometry.shift(level)
    return max(window.start - base, 0) >> shift, min(window.end - base >> shift, PTRS_PER_TABLE - 1)


def _bounds(geometry: X86Geometry, window: Window, level: int, base: int) -> Tuple[int, int]:
    """The first and last address that a table translates within the window."""
    last = base + (PTRS_PER_TABLE << geometry.shift(level)) - 1
    return max(base, window.start), min(last, window.end)
