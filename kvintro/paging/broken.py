# SPDX-License-Identifier: LGPL-2.1-or-later
"""Finds broken page tables: missing from the dump, all zeros, or overwritten.

A table says little about itself, so a table is checked only if the kernel's layout says what it must contain.
Every table of the image, the direct map and the memory map has entries. In the image and the direct map, a
rule also gives the address of each page (``__pa()``).

This runs whenever a dump is opened. It does not use numpy, because importing numpy takes longer than the
whole check.
"""

from __future__ import annotations

import struct
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

from kvintro.arch.address_space import Window
from kvintro.arch.form import ENTRY_SIZE, PagingForm
from kvintro.errors import NotInDump
from kvintro.model import ALL
from kvintro.paging.step import ReadPhysical

#: Why a table cannot be used.
MISSING, ZERO, OVERWRITTEN = "is not in the dump", "is all zeros", "is overwritten"
EMPTY, CYCLE = "has no entry for it", "is used at two levels"
_SAMPLES = 8  # entries of a table that are checked first
_MOST = 1 << 12  # broken tables reported


class BrokenTable(NamedTuple):
    """A page table that cannot be used.

    :ivar window: name of the window that it belongs to.
    :ivar start: first address that it translates, within the window.
    :ivar end: last address, inclusive.
    :ivar level: 1 for a table of the smallest pages.
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
        """Whether the whole content of the table is invalid."""
        return self.why in (ZERO, OVERWRITTEN)

    @property
    def text(self) -> str:
        """A description of the problem."""
        return f"the level {self.level} page table at physical {self.table:#x} {self.why}"


class Judged(NamedTuple):
    """The result of :func:`find_broken`.

    :ivar broken: the highest broken table of each branch, in the order of addresses.
    :ivar looked: number of tables that were checked.
    :ivar left: number of tables that were found but not checked.
    """

    broken: Tuple[BrokenTable, ...]
    looked: int
    left: int


def entries_of(form: PagingForm, data: bytes) -> Tuple[int, ...]:
    """A table's entries."""
    return struct.unpack(f"{form.table_format}{len(data) // ENTRY_SIZE}Q", data)


def judge(form: PagingForm, window: Window, entries: Sequence[int], level: int, base: int) -> Optional[str]:
    """What is wrong with a table; None if no problem was found.

    :param entries: all entries of the table.
    :param base: first address that the table translates, which may be before the window.
    """
    first, last = _span(form, window, level, base)
    if not any(entries[first : last + 1]):
        return EMPTY if any(entries) else ZERO
    bad = good = 0
    for index in range(first, last + 1):
        entry = entries[index]
        if form.is_present(entry, level):
            if _fits(form, window, entry, level, base + (index << form.shift(level))):
                good += 1
            else:
                bad += 1
    # Only pages of the smallest size are unmapped individually (memfd_secret, KFENCE). The rest of their
    # entry stays unchanged.
    return OVERWRITTEN if bad > good or (level > 1 and not good) else None


def find_broken(read: ReadPhysical, form: PagingForm, root: int, window: Window, limit: int) -> Judged:
    """The tables of a window that cannot be used.

    :param root: physical address of the root table.
    :param limit: how many tables to read at most, upper levels first; the others are not checked.
    """
    broken: List[BrokenTable] = []
    span = 1 << form.shift(form.levels) + form.index_bits(form.levels)
    todo = [(root, window.start & -span & ALL)]
    levels: Dict[int, int] = {}
    looked = left = 0
    for level in range(form.levels, 0, -1):
        below: List[Tuple[int, int]] = []
        for table, base in todo[: max(limit, 0)]:
            entries: Sequence[int] = ()
            why: Optional[str] = CYCLE
            if levels.setdefault(table, level) == level:
                entries, why = _examine(read, form, window, table, level, base)
            if why is None:
                below += _below(form, window, entries, level, base) if entries else []
            elif len(broken) < _MOST:
                start, end = _bounds(form, window, level, base)
                broken.append(BrokenTable(window.name, start, end, level, table, why))
        looked += min(len(todo), max(limit, 0))
        left += len(todo) - min(len(todo), max(limit, 0))
        limit -= len(todo)
        todo = below
    return Judged(tuple(sorted(broken, key=lambda found: found.start)), looked, left)


def _examine(
    read: ReadPhysical, form: PagingForm, window: Window, table: int, level: int, base: int
) -> Tuple[Sequence[int], Optional[str]]:
    """A table's entries, and why they cannot be used; None if no problem was found.

    The entries are left out if it is plain that none of them points to a table.
    """
    try:
        entries = entries_of(form, read(table, form.table_size(level)))
    except NotInDump:
        return (), MISSING
    if _looks_sound(form, window, entries, level, base):
        return entries, None
    if _is_regular(form, window, entries, level, base):
        return (), None
    return entries, judge(form, window, entries, level, base)


def _fits(form: PagingForm, window: Window, entry: int, level: int, address: int) -> bool:
    """Whether a present entry is plausible for the kernel."""
    end = window.memory_end
    if level > 1 and form.is_table(entry, level):
        return end is None or form.table_address(entry) < end
    if not form.is_leaf(entry, level):
        return False
    physical = form.page_address(entry, level)
    if window.offset is None:
        return end is None or physical < end
    return bool(physical == address - window.offset & ALL)


def _looks_sound(form: PagingForm, window: Window, entries: Sequence[int], level: int, base: int) -> bool:
    """Whether a sample of evenly spread entries agrees with the rule, as in most tables."""
    first, last = _span(form, window, level, base)
    if level > 1 or window.offset is None or last - first < form.entries(level) - 1:
        return False
    start, page = base - window.offset & ALL, 1 << form.shift(level)
    for index in range(0, last + 1, max((last + 1) // _SAMPLES, 1)):
        entry = entries[index]
        if not form.is_leaf(entry, level) or form.page_address(entry, level) != start + index * page:
            return False
    return True


def _is_regular(form: PagingForm, window: Window, entries: Sequence[int], level: int, base: int) -> bool:
    """Whether a whole table maps large pages one after the other, with equal flags.

    Most tables of a large machine's direct map are so, and one comparison takes less time than a look at each
    entry: if the first and the last entry agree with the rule, so do those between them.
    """
    first, last = _span(form, window, level, base)
    if level == 1 or last - first < form.entries(level) - 1:
        return False
    page, entry = 1 << form.shift(level), entries[0]
    return (
        entries[last] - entry == last * page
        and form.is_leaf(entry, level)
        and form.is_leaf(entries[last], level)
        and _fits(form, window, entry, level, base)
        and _fits(form, window, entries[last], level, base + last * page)
        and entries == tuple(range(entry, entry + len(entries) * page, page))
    )


def _below(
    form: PagingForm, window: Window, entries: Sequence[int], level: int, base: int
) -> List[Tuple[int, int]]:
    """(physical address, first translated address) of the tables within the window that a table points to."""
    if level == 1:
        return []
    first, last = _span(form, window, level, base)
    return [
        (form.table_address(entries[index]), base + (index << form.shift(level)))
        for index in range(first, last + 1)
        if form.is_table(entries[index], level)
    ]


def _span(form: PagingForm, window: Window, level: int, base: int) -> Tuple[int, int]:
    """Indices of a table's first and last entry that translate addresses of the window."""
    shift = form.shift(level)
    return max(window.start - base, 0) >> shift, min(window.end - base >> shift, form.entries(level) - 1)


def _bounds(form: PagingForm, window: Window, level: int, base: int) -> Tuple[int, int]:
    """The first and last address that a table translates within the window."""
    last = base + (form.entries(level) << form.shift(level)) - 1
    return max(base, window.start), min(last, window.end)
