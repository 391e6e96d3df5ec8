# SPDX-License-Identifier: LGPL-2.1-or-later
"""Page tables: one address step by step, or a whole table as ranges.

drgn's own x86-64 walker masks entries with a constant and keeps only the address; memory encryption takes
bits from the address, and every report here is about the other bits, so this walker is ours.

Nothing in a dump can be trusted. A walk of one address takes at most ``levels`` reads. A walk of a whole
tree expands each distinct table once however often it is referred to, and gives up (with a range that says
so) past limits that no real kernel comes near; tables that refer to themselves cost no more than others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Callable, Dict, Iterator, List, Optional, Tuple

from kvintro.arch.x86_64 import NX, PRESENT, PTRS_PER_TABLE, RW, USER, X86Geometry
from kvintro.errors import NotInDump

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

    U64 = NDArray[numpy.uint64]

TABLE_SIZE = 4096

#: Reads physical memory: (address, size in bytes) -> bytes; raises NotInDump.
ReadPhysical = Callable[[int, int], bytes]

# How a range is packed into 64 bits. The flags of the entry stay where the hardware has them (bits 0-12 and
# 52-63), what we add lies where it has the address, so that one comparison tells whether two ranges differ.
LEVEL_SHIFT = 16
LEVEL_MASK = 7 << LEVEL_SHIFT
MAPPED = 1 << 20
UNREADABLE = 1 << 21
OVER_LIMIT = 1 << 22
EFFECTIVE_RW = 1 << 24
EFFECTIVE_USER = 1 << 25
EFFECTIVE_NX = 1 << 26
REPEATED = 1 << 27
FLAG_BITS = 0x1FFF | 0xFFF << 52

_EFFECTIVE_SHIFT = 23  # RW and USER are bits 1 and 2 of an entry
_EFFECTIVE_NX_SHIFT = 63 - 26


@dataclass(frozen=True)
class Step:
    """One entry met on the way down.

    :ivar level: 1 for the table of 4K pages, ``levels`` for the root.
    :ivar entry_address: physical address of the entry.
    :ivar value: the entry, None if the table is not in the source.
    """

    level: int
    entry_address: int
    value: Optional[int]


@dataclass(frozen=True)
class Walk:
    """How one virtual address translates.

    :ivar state: ``mapped``, ``unmapped``, ``not-in-dump`` (a table on the way is missing from the source;
        the page itself may be) or ``non-canonical``.
    :ivar physical: physical address if mapped.
    :ivar page_size: bytes of the page that maps it, 0 if none does.
    """

    state: str
    steps: Tuple[Step, ...]
    physical: Optional[int] = None
    page_size: int = 0


def walk(read: ReadPhysical, geometry: X86Geometry, root: int, address: int) -> Walk:
    """Translate one virtual address as the hardware would.

    :param root: physical address of the root table.
    """
    if not geometry.is_canonical(address):
        return Walk("non-canonical", ())
    steps: List[Step] = []
    table = root
    for level in range(geometry.levels, 0, -1):
        entry_address = table + 8 * geometry.index(address, level)
        try:
            value = int.from_bytes(read(entry_address, 8), "little")
        except NotInDump:
            steps.append(Step(level, entry_address, None))
            return Walk("not-in-dump", tuple(steps))
        steps.append(Step(level, entry_address, value))
        if not value & PRESENT:
            break
        if level == 1 or (level in geometry.large_levels() and value & geometry.large_bit()):
            size = 1 << geometry.shift(level)
            # Masking to the page's size also drops bit 12, which in a large page's entry is PAT.
            base = value & geometry.pfn_mask & ~(size - 1)
            return Walk("mapped", tuple(steps), base | address & (size - 1), size)
        table = value & geometry.pfn_mask
    return Walk("unmapped", tuple(steps))


class Ranges:
    """A stretch of address space cut where level, flags or rights change.

    :ivar starts: first address of each range, ascending (numpy uint64).
    :ivar keys: what each range is, packed; see the constants of this module.
    :ivar end: last address of the last range, inclusive.
    """

    def __init__(self, starts: U64, keys: U64, end: int) -> None:
        self.starts = starts
        self.keys = keys
        self.end = end

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[Tuple[int, int, int]]:
        """(start, end inclusive, key) of each range."""
        starts = self.starts.tolist()
        ends = [start - 1 for start in starts[1:]] + [self.end]
        return zip(starts, ends, self.keys.tolist())

    def clip(self, start: int, end: int) -> Ranges:
        """The part between two addresses, both inclusive and within this stretch."""
        import numpy

        first = int(numpy.searchsorted(self.starts, numpy.uint64(start), side="right")) - 1
        last = int(numpy.searchsorted(self.starts, numpy.uint64(end), side="right"))
        starts = self.starts[max(first, 0) : last].copy()
        if len(starts):
            starts[0] = max(start, int(starts[0]))
        return Ranges(starts, self.keys[max(first, 0) : last], end)

    def select(self, mask: int) -> List[Tuple[int, int, int]]:
        """(start, end inclusive, key) of the ranges whose key has any bit of the mask."""
        import numpy

        wanted = numpy.flatnonzero(self.keys & numpy.uint64(mask))
        out = []
        for i in wanted.tolist():
            end = int(self.starts[i + 1]) - 1 if i + 1 < len(self.starts) else self.end
            out.append((int(self.starts[i]), end, int(self.keys[i])))
        return out


class Tree:
    """All of a page-table tree as ranges.

    Construct one for each root to be walked; tables met are remembered for as long as it lives.

    :param read: reads physical memory.
    :param root: physical address of the root table.
    :param table_limit: how many tables of 4K pages may be expanded in all; a kernel cannot have more than
        its memory has pages.
    """

    #: Distinct tables above the lowest level but one; a machine of 64 TB has some 66,000 of level 2.
    UPPER_LIMIT = 1 << 17
    #: Ranges held at once, 16 bytes each.
    RANGE_LIMIT = 1 << 22

    def __init__(
        self, read: ReadPhysical, geometry: X86Geometry, root: int, *, table_limit: int = 1 << 24
    ) -> None:
        self._read = read
        self._geometry = geometry
        self._root = root
        self._tables_left = table_limit
        self._upper_left = self.UPPER_LIMIT
        self._ranges_left = self.RANGE_LIMIT
        self._known: Dict[Tuple[int, int, int], Tuple[U64, U64]] = {}
        self._lowest_seen: Dict[int, bool] = {}
        self.limited = False
        self.unreadable_tables = 0

    def ranges(self, start: int, end: int) -> Ranges:
        """The addresses from start to end (inclusive, both canonical, in one half) cut into ranges."""
        import numpy

        geometry = self._geometry
        top = geometry.levels
        first, last = geometry.index(start, top), geometry.index(end, top)
        offsets, keys = self._expand(self._root, top, USER | RW, first, last)
        span = 1 << geometry.shift(top)
        base = geometry.sign_extend(first * span)
        starts = offsets + numpy.uint64(base)
        covered_end = base + (last - first + 1) * span - 1
        return Ranges(starts, keys, covered_end).clip(start, end)

    def _read_table(self, address: int) -> Optional[U64]:
        import numpy

        try:
            return numpy.frombuffer(self._read(address, TABLE_SIZE), dtype="<u8")
        except NotInDump:
            self.unreadable_tables += 1
            return None

    def _one(self, key: int) -> Tuple[U64, U64]:
        import numpy

        return numpy.zeros(1, numpy.uint64), numpy.array([key], numpy.uint64)

    def _expand(
        self, table: int, level: int, effective: int, first: int = 0, last: int = PTRS_PER_TABLE - 1
    ) -> Tuple[U64, U64]:
        """Offsets from the table's first address (of entry ``first``) and keys of its ranges.

        :param effective: rights left by the levels above: USER and RW if all had them, NX if any had it.
        """
        import numpy

        whole = last - first == PTRS_PER_TABLE - 1
        known = self._known.get((table, level, effective)) if whole else None
        if known is not None:
            return known[0], known[1] | numpy.uint64(REPEATED)
        if self._upper_left <= 0 or self._ranges_left <= 0:
            self.limited = True
            return self._one(OVER_LIMIT | level << LEVEL_SHIFT)
        self._upper_left -= 1
        entries = self._read_table(table)
        if entries is None:
            return self._one(UNREADABLE | level << LEVEL_SHIFT)
        entries = entries[first : last + 1]
        result = self._expand_entries(entries, level, effective)
        self._ranges_left -= len(result[0])
        if whole:
            self._known[table, level, effective] = result
        return result

    def _keys(self, entries: U64, level: int, effective: "int | U64") -> U64:
        """Pack what entries at a level are, themselves or as leaves."""
        import numpy

        u = numpy.uint64
        present = entries & u(PRESENT)
        # A large page's address mask is coarser, so that bit 12 is a flag (PAT) there.
        flags = FLAG_BITS if level > 1 else FLAG_BITS & ~0x1000
        keys = entries & u(flags)
        keys |= (entries & effective & u(RW | USER)) << u(_EFFECTIVE_SHIFT)
        keys |= ((entries | effective) & u(NX)) >> u(_EFFECTIVE_NX_SHIFT)
        keys |= present * u(MAPPED)
        # An empty entry has no rights, whatever the levels above allow (as the kernel's ptdump prints it).
        keys *= entries != u(0)
        keys |= u(level << LEVEL_SHIFT)
        return keys

    def _expand_entries(self, entries: U64, level: int, effective: int) -> Tuple[U64, U64]:
        import numpy

        u = numpy.uint64
        geometry = self._geometry
        span = 1 << geometry.shift(level)
        child = (entries & u(PRESENT)) != u(0)
        if level in geometry.large_levels():
            child &= (entries & u(geometry.large_bit())) == u(0)
        own = numpy.flatnonzero(~child)
        starts = [own.astype(numpy.uint64) * u(span)]
        keys = [self._keys(entries[own], level, u(effective))]
        below = numpy.flatnonzero(child)
        if len(below):
            if level == 2:
                child_starts, child_keys = self._expand_lowest(entries[below], effective)
                # Offsets come as if the tables lay side by side: put each where its entry is.
                place = below.astype(numpy.uint64)[child_starts >> u(21)] << u(21)
                starts.append(place | child_starts & u(span - 1))
                keys.append(child_keys)
            else:
                self._expand_below(entries, below, level, effective, starts, keys)
        all_starts = numpy.concatenate(starts)
        all_keys = numpy.concatenate(keys)
        order = numpy.argsort(all_starts, kind="stable")
        return coalesce(all_starts[order], all_keys[order])

    def _expand_below(
        self,
        entries: U64,
        below: "NDArray[numpy.intp]",
        level: int,
        effective: int,
        starts: List[U64],
        keys: List[U64],
    ) -> None:
        import numpy

        span = 1 << self._geometry.shift(level)
        for index in below.tolist():
            entry = int(entries[index])
            rights = effective & entry & (USER | RW) | (effective | entry) & NX
            offsets, child_keys = self._expand(entry & self._geometry.pfn_mask, level - 1, rights)
            starts.append(offsets + numpy.uint64(index * span))
            keys.append(child_keys)

    def _expand_lowest(self, entries: U64, effective: int) -> Tuple[U64, U64]:
        """Ranges of the level-1 tables that these level-2 entries point to, one after the other."""
        import numpy

        u = numpy.uint64
        tables, row_of = numpy.unique(entries & u(self._geometry.pfn_mask), return_inverse=True)
        if self._tables_left < len(tables):
            self.limited = True
            keys = numpy.full(len(entries), OVER_LIMIT | 1 << LEVEL_SHIFT, numpy.uint64)
            return numpy.arange(len(entries), dtype=numpy.uint64) << u(21), keys
        self._tables_left -= len(tables)
        data, missing = self._read_tables(tables)
        rows = data[row_of]
        rights = (entries & u(effective) & u(USER | RW)) | ((entries | u(effective)) & u(NX))
        # Rights follow from the flags and the row, so ranges are found on the flags alone and only the first
        # entry of each is looked at closer.
        flags = rows & u(FLAG_BITS & ~0x1000)
        empty = rows == u(0)
        change = numpy.empty(rows.shape, bool)
        change[:, 0] = True
        change[:, 1:] = (flags[:, 1:] != flags[:, :-1]) | (empty[:, 1:] != empty[:, :-1])
        heads = numpy.flatnonzero(change)
        row = heads >> 9
        keys = self._keys(rows.reshape(-1)[heads], 1, rights[row])
        keys[missing[row_of][row]] = UNREADABLE | 1 << LEVEL_SHIFT
        seen = numpy.fromiter(
            (self._lowest_seen.setdefault(t, False) for t in tables.tolist()), bool, len(tables)
        )
        first_use = numpy.zeros(len(entries), bool)
        first_use[numpy.unique(row_of, return_index=True)[1]] = True
        repeated = seen[row_of] | ~first_use
        keys[repeated[row]] |= u(REPEATED)
        for table in tables.tolist():
            self._lowest_seen[table] = True
        return heads.astype(numpy.uint64) << u(12), keys

    def _read_tables(self, tables: U64) -> "Tuple[U64, NDArray[numpy.bool_]]":
        """Contents of tables at ascending physical addresses, neighbours in one read."""
        import numpy

        data = numpy.zeros((len(tables), PTRS_PER_TABLE), numpy.uint64)
        missing = numpy.zeros(len(tables), bool)
        breaks = numpy.flatnonzero(tables[1:] - tables[:-1] != numpy.uint64(TABLE_SIZE)) + 1
        bounds = [0, *breaks.tolist(), len(tables)]
        for low, high in zip(bounds, bounds[1:]):
            try:
                raw = self._read(int(tables[low]), TABLE_SIZE * (high - low))
                data[low:high] = numpy.frombuffer(raw, "<u8").reshape(-1, PTRS_PER_TABLE)
            except NotInDump:
                for i in range(low, high):
                    one = self._read_table(int(tables[i]))
                    if one is None:
                        missing[i] = True
                    else:
                        data[i] = one
        return data, missing


def coalesce(starts: U64, keys: U64) -> Tuple[U64, U64]:
    """Merge neighbouring ranges of equal key."""
    import numpy

    keep = numpy.empty(len(keys), bool)
    keep[:1] = True
    keep[1:] = keys[1:] != keys[:-1]
    return starts[keep], keys[keep]
