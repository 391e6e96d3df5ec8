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
from typing import List, Optional, Sequence, Tuple

from kvintro.arch.x86_64 import ALL, PRESENT, PTRS_PER_TABLE, X86Geometry
from kvintro.errors import NotInDump
from kvintro.paging.step import TABLE_SIZE, ReadPhysical

#: Why a table cannot be used.
MISSING, ZERO, OVERWRITTEN = "is not in the dump", "is all zeros", "is overwritten"
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
    """

    name: str
    start: int
    end: int
    offset: Optional[int] = None
    by: str = ""

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
    :ivar why: one of :data:`MISSING`, :data:`ZERO`, :data:`OVERWRITTEN`.
    """

    window: str
    start: int
    end: int
    level: int
    table: int
    why: str


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
        return ZERO
    bad = good = 0
    for index in range(first, last + 1):
        entry = entries[index]
        if entry & PRESENT:
            if _fits(geometry, window, entry, level, base + (index << geometry.shift(level))):
                good += 1
            else:
                bad += 1
    return OVERWRITTEN if bad > good else None


def find_broken(
    read: ReadPhysical, geometry: X86Geometry, root: int, window: Window, limit: int
) -> List[BrokenTable]:
    """The tables of a window that cannot be used, the highest of each branch, in the order of addresses.

    :param root: physical address of the root table.
    :param limit: how many tables are read at most, upper levels first; the others are not looked at.
    """
    broken: List[BrokenTable] = []
    span = 1 << geometry.shift(geometry.levels) + 9
    todo = [(root, window.start & -span & ALL)]
    for level in range(geometry.levels, 0, -1):
        below: List[Tuple[int, int]] = []
        for table, base in todo[: max(limit, 0)]:
            try:
                data = read(table, TABLE_SIZE)
            except NotInDump:
                why: Optional[str] = MISSING
            else:
                entries = entries_of(data)
                why = None
                if not _looks_sound(geometry, window, entries, level, base):
                    why = judge(geometry, window, entries, level, base)
            if why is None:
                if level > 1:
                    below += _below(geometry, window, entries, level, base)
            elif len(broken) < _MOST:
                start, end = _bounds(geometry, window, level, base)
                broken.append(BrokenTable(window.name, start, end, level, table, why))
        limit -= len(todo)
        todo = below
    return sorted(broken, key=lambda found: found.start)


def _fits(geometry: X86Geometry, window: Window, entry: int, level: int, address: int) -> bool:
    """Whether a present entry can be the kernel's."""
    large = bool(entry & geometry.large_bit())
    if level > 1 and not large:
        return True
    if entry & geometry.reserved_bits(level):
        return False
    mask = geometry.pfn_mask & ~((1 << geometry.shift(level)) - 1)
    return window.offset is None or entry & mask == address - window.offset & ALL


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
