# SPDX-License-Identifier: LGPL-2.1-or-later
"""A whole page-table tree as ranges."""

from __future__ import annotations

from typing import TYPE_CHECKING, Collection, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from kvintro.arch.x86_64 import (
    ACCESSED,
    ALL,
    DIRTY,
    NX,
    PRESENT,
    PSE,
    PTRS_PER_TABLE,
    RW,
    USER,
    X86Geometry,
)
from kvintro.errors import NotInDump
from kvintro.paging.step import TABLE_SIZE, ReadPhysical

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

    U64 = NDArray[numpy.uint64]

# How a range is packed into 64 bits. The flags of the entry stay where the hardware has them (bits 0-12 and
# 52-63, and those that memory encryption took from the address), what we add lies where the address was, so
# that one comparison tells whether two ranges differ.
NONZERO = 1 << 13
STALE_NX = 1 << 14
PRUNED = 1 << 15
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
_STALE_NX_SHIFT = 63 - 14
_PART = 1 << 14
_OURS_END = 28  # flags that memory encryption makes of address bits lie above


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
        # A part at a time: as Python's integers they take ten times the room.
        for low in range(0, len(self.starts), _PART):
            starts = self.starts[low : low + _PART + 1].tolist()
            ends = [start - 1 for start in starts[1:]]
            if len(starts) <= _PART:
                ends.append(self.end)
            yield from zip(starts, ends, self.keys[low : low + _PART].tolist())

    def clip(self, start: int, end: int) -> Ranges:
        """The part between two addresses, both inclusive and within this stretch."""
        import numpy

        first = int(numpy.searchsorted(self.starts, numpy.uint64(start), side="right")) - 1
        last = int(numpy.searchsorted(self.starts, numpy.uint64(end), side="right"))
        starts = self.starts[max(first, 0) : last].copy()
        if len(starts):
            starts[0] = max(start, int(starts[0]))
        return Ranges(starts, self.keys[max(first, 0) : last], end)

    def any(self, mask: int) -> bool:
        """Whether the key of any range has any bit of the mask."""
        import numpy

        return bool((self.keys & numpy.uint64(mask)).any())

    def count(self, mask: int) -> int:
        """How many ranges have any bit of the mask in their key."""
        import numpy

        return int(numpy.count_nonzero(self.keys & numpy.uint64(mask)))

    def sizes(self) -> "NDArray[numpy.uint64]":
        """Bytes of each range; 0 for one of 2^64."""
        import numpy

        return numpy.diff(self.starts, append=numpy.uint64(self.end + 1 & ALL))

    def select(self, mask: int) -> List[Tuple[int, int, int]]:
        """(start, end inclusive, key) of the ranges whose key has any bit of the mask."""
        import numpy

        return self._at(numpy.flatnonzero(self.keys & numpy.uint64(mask)))

    def matching(self, patterns: Sequence[Tuple[int, int]], limit: int) -> List[Tuple[int, int, int]]:
        """(start, end inclusive, key) of the first ranges that match any (mask, value): key & mask == value.

        :param limit: how many at most.
        """
        import numpy

        wanted = numpy.zeros(len(self.keys), bool)
        for mask, value in patterns:
            wanted |= self.keys & numpy.uint64(mask) == numpy.uint64(value)
        return self._at(numpy.flatnonzero(wanted)[:limit])

    def _at(self, indices: "NDArray[numpy.intp]") -> List[Tuple[int, int, int]]:
        import numpy

        if not len(indices):
            return []
        following = numpy.append(self.starts[1:], numpy.uint64(self.end + 1 & ALL))[indices] - numpy.uint64(1)
        return list(zip(self.starts[indices].tolist(), following.tolist(), self.keys[indices].tolist()))

    def replaced(self, start: int, end: int, key: int) -> Ranges:
        """The same stretch with another key between two addresses, both inclusive and within it."""
        import numpy

        u = numpy.uint64
        first = int(numpy.searchsorted(self.starts, u(start), side="left"))
        last = int(numpy.searchsorted(self.starts, u(end), side="right"))
        starts = [self.starts[:first], numpy.array([start], u)]
        keys = [self.keys[:first], numpy.array([key], u)]
        if end < self.end and (last == len(self.starts) or int(self.starts[last]) != end + 1):
            starts.append(numpy.array([end + 1], u))
            keys.append(self.keys[last - 1 : last])
        return Ranges(
            numpy.concatenate([*starts, self.starts[last:]]),
            numpy.concatenate([*keys, self.keys[last:]]),
            self.end,
        )

    def masked(self, mask: int) -> Ranges:
        """The same stretch with only some bits of the keys, and cut only where those change."""
        import numpy

        starts, keys = coalesce(self.starts, self.keys & numpy.uint64(mask))
        return Ranges(starts, keys, self.end)


class Tree:
    """All of a page-table tree as ranges.

    Construct one for each root to be walked.

    :param read: reads physical memory.
    :param root: physical address of the root table.
    :param table_limit: how many tables of 4K pages may be expanded in all; a kernel cannot have more than
        its memory has pages.
    :param memory_end: physical address behind the last RAM, where all tables lie; None if not known.
    :param unusable: physical addresses of tables that are known to hold nonsense.
    :param prune: tables of KASAN's early shadow by the level of the entries that point to them; such an entry
        counts as ``prune_as``, an entry of level 1, for all it spans. The kernel's own ptdump does this.
    """

    #: Distinct tables above the lowest level; a machine of 64 TB has some 66,000 of level 2.
    UPPER_LIMIT = 1 << 17
    #: Ranges held at once over all levels, 16 bytes each.
    RANGE_LIMIT = 1 << 23
    #: Ranges of tables that were met before. Those of tables met first are as many as their entries, which
    #: are in the dump; sharing makes any number of a few pages. A sane kernel shares tables that are uniform
    #: (KASAN's early shadow, huge pages of processes), and those of espfix: a pattern of up to 16 pages in
    #: 64K, three stretches at most, 65,536 times, which makes 393,216 ranges with the holes between.
    REPEATED_LIMIT = 1 << 19

    def __init__(
        self,
        read: ReadPhysical,
        geometry: X86Geometry,
        root: int,
        *,
        table_limit: int = 1 << 24,
        memory_end: Optional[int] = None,
        unusable: Collection[int] = (),
        prune: Optional[Mapping[int, int]] = None,
        prune_as: int = 0,
    ) -> None:
        self._read = read
        self._memory_end = memory_end
        self._unusable = frozenset(unusable)
        # Tables on the way to where the walk is.
        self._path: List[int] = []
        self._geometry = geometry
        self._root = root
        self._table_limit = table_limit
        self._prune = prune or {}
        self._prune_as = prune_as
        self._begin()
        self._encryption = (1 << 52) - (1 << _OURS_END) & ~geometry.pfn_mask
        self._flag_bits = FLAG_BITS | self._encryption
        self.limited = False
        self.unreadable_tables = 0
        #: Tables that are nonsense: they refer to themselves, or most of their entries to what is no RAM.
        self.nonsense_tables = 0

    def _begin(self) -> None:
        """What is counted is counted for one answer: of a tree that is asked again all was met before."""
        self._tables_left = self._table_limit
        self._upper_left = self.UPPER_LIMIT
        self._ranges_used = 0
        self._repeated = 0
        # Known subtrees by table, level and rights; they may be met again anywhere in the tree.
        self._known: Dict[Tuple[int, int, int], Tuple[U64, U64]] = {}
        self._lowest_seen: Dict[int, bool] = {}

    def ranges(self, start: int, end: int) -> Ranges:
        """The addresses from start to end (inclusive, both canonical, in one half) cut into ranges."""
        geometry = self._geometry
        self._begin()
        # What is shared within user space is huge pages' tables; espfix lies in the other half.
        self._repeated_limit = self.REPEATED_LIMIT >> (2 if start <= geometry.user.end else 0)
        table, level, rights = self._root, geometry.levels, USER | RW
        first, last = geometry.index(start, level), geometry.index(end, level)
        # As long as one entry spans all of it, its siblings need not be looked at.
        while first == last and level > 1:
            entries = self._read_table(table)
            if entries is None:
                break
            entry = int(entries[first])
            if not self._is_table(entry, level):
                break
            rights = rights & entry & (USER | RW) | (rights | entry) & NX
            table, level = entry & geometry.pfn_mask, level - 1
            first, last = geometry.index(start, level), geometry.index(end, level)
        offsets, keys = self._expand(table, level, rights, first, last)
        import numpy

        span = 1 << geometry.shift(level)
        base = start & ALL & ~(span - 1)
        starts = offsets + numpy.uint64(base)
        covered_end = base + (last - first + 1) * span - 1
        return Ranges(starts, keys, covered_end).clip(start, end)

    def _is_table(self, entry: int, level: int) -> bool:
        """Whether an entry above level 1 points to a table (PSE is reserved where it makes no large page)."""
        if not entry & PRESENT or entry & PSE:
            return False
        return self._prune.get(level) != entry & self._geometry.pfn_mask

    def _read_table(self, address: int) -> Optional[U64]:
        import numpy

        if address in self._unusable:
            self.nonsense_tables += 1
            return None
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
        if known is not None and self._repeated + len(known[0]) <= self._repeated_limit:
            self._repeated += len(known[0])
            return known[0], known[1] | numpy.uint64(REPEATED)
        if known is not None or self._upper_left <= 0 or self._room() <= 0:
            self.limited = True
            return self._one(OVER_LIMIT | level << LEVEL_SHIFT)
        self._upper_left -= 1
        entries = self._read_table(table)
        if entries is None or self._is_nonsense(table, entries, level):
            return self._one(UNREADABLE | level << LEVEL_SHIFT)
        entries = entries[first : last + 1]
        if level == 1:
            # Only when all that was asked for lies in one table of 4K pages.
            entries = self._select(entries, 1)
            starts = numpy.arange(len(entries), dtype=numpy.uint64) << numpy.uint64(12)
            return coalesce(starts, self._keys(entries, 1, numpy.uint64(effective)))
        self._path.append(table)
        result = self._expand_entries(entries, level, effective)
        self._path.pop()
        self._ranges_used += len(result[0])
        if whole:
            self._known[table, level, effective] = result
        return result

    def _is_nonsense(self, table: int, entries: U64, level: int) -> bool:
        """Whether a table refers to itself on some way, or most of its entries cannot be a kernel's."""
        import numpy

        u = numpy.uint64
        nonsense = table in self._path
        if level > 1 and not nonsense and self._memory_end is not None:
            present = entries & u(PRESENT) != u(0)
            large = entries & u(PSE) != u(0)
            far = entries & u(self._geometry.pfn_mask) >= u(self._memory_end)
            reserved = entries & u(self._geometry.reserved_bits(level)) != u(0)
            bad = numpy.count_nonzero(present & numpy.where(large, reserved, far))
            nonsense = 2 * int(bad) > int(numpy.count_nonzero(present))
        self.nonsense_tables += nonsense
        return nonsense

    def _room(self) -> int:
        """How many more ranges there may be. One counts at each level that it is handed up through."""
        if self._repeated >= self._repeated_limit:
            return 0
        return self.RANGE_LIMIT - self._ranges_used

    def _select(self, entries: U64, level: int) -> U64:
        """Those entries of interest, the others as 0. None of them points to a table."""
        return entries

    def _keys(self, entries: U64, level: int, effective: "int | U64") -> U64:
        """Pack what entries at a level are, themselves or as leaves."""
        import numpy

        u = numpy.uint64
        present = entries & u(PRESENT)
        # A large page's address mask is coarser, so that bit 12 is a flag (PAT) there.
        flags = self._flag_bits if level > 1 else self._flag_bits & ~0x1000
        keys: U64 = entries & u(flags)
        keys |= (entries & effective & u(RW | USER)) << u(_EFFECTIVE_SHIFT)
        keys |= ((entries | effective) & u(NX)) >> u(_EFFECTIVE_NX_SHIFT)
        mapped = present
        reserved = self._geometry.reserved_bits(level)
        if reserved:
            mapped = present * (entries & u(reserved) == u(0))
        keys |= mapped * u(MAPPED)
        keys |= u(NONZERO)
        # An empty entry has no rights, whatever the levels above allow (as the kernel's ptdump prints it).
        # Above level 1 one with nothing but these two bits is as good as empty (pud_none, pmd_none).
        stray = ACCESSED | DIRTY if level > 1 else 0
        empty = entries & u(ALL & ~stray) == u(0)
        keys *= ~empty
        if level == 1:
            keys |= ((effective & u(NX)) >> u(_STALE_NX_SHIFT)) * empty
        keys |= u(level << LEVEL_SHIFT)
        return keys

    def _expand_entries(self, entries: U64, level: int, effective: int) -> Tuple[U64, U64]:
        import numpy

        u = numpy.uint64
        span = 1 << self._geometry.shift(level)
        child = (entries & u(PRESENT | PSE)) == u(PRESENT)
        starts: List[U64] = []
        keys: List[U64] = []
        shadow = self._prune.get(level)
        if shadow is not None:
            pruned = (entries & u(self._geometry.pfn_mask)) == u(shadow)
            child &= ~pruned
            at = numpy.flatnonzero(pruned)
            as_leaf = self._select(numpy.full(len(at), self._prune_as, numpy.uint64), 1)
            starts.append(at.astype(numpy.uint64) * u(span))
            keys.append(self._keys(as_leaf, 1, u(effective)) | u(PRUNED))
            own = numpy.flatnonzero(~child & ~pruned)
        else:
            own = numpy.flatnonzero(~child)
        starts.append(own.astype(numpy.uint64) * u(span))
        keys.append(self._keys(self._select(entries[own], level), level, u(effective)))
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
        # A subtree that is known costs no reading, but as many ranges as it has every time it is met.
        met = 0
        for index in below.tolist():
            entry = int(entries[index])
            rights = effective & entry & (USER | RW) | (effective | entry) & NX
            if self._room() > met:
                offsets, child_keys = self._expand(entry & self._geometry.pfn_mask, level - 1, rights)
                met += len(offsets)
            else:
                self.limited = True
                offsets, child_keys = self._one(OVER_LIMIT | (level - 1) << LEVEL_SHIFT)
            starts.append(offsets + numpy.uint64(index * span))
            keys.append(child_keys)

    def _expand_lowest(self, entries: U64, effective: int) -> Tuple[U64, U64]:
        """Ranges of the level-1 tables that these level-2 entries point to, one after the other."""
        import numpy

        u = numpy.uint64
        tables, row_of = numpy.unique(entries & u(self._geometry.pfn_mask), return_inverse=True)
        if self._tables_left < len(tables):
            return self._too_many(len(entries))
        self._tables_left -= len(tables)
        data, missing = self._read_tables(tables)
        in_order = len(tables) == len(entries) and bool((row_of[1:] > row_of[:-1]).all())
        rows = self._select(data if in_order else data[row_of], 1)
        rights = (entries & u(effective) & u(USER | RW)) | ((entries | u(effective)) & u(NX))
        # Rights follow from the flags and the row, so ranges are found on the flags alone and only the first
        # entry of each is looked at closer. An empty entry differs from all others, whatever their flags.
        flags = rows & u(self._flag_bits & ~0x1000)
        numpy.bitwise_or(flags, u(NONZERO), out=flags, where=rows != u(0))
        change = numpy.empty(rows.shape, bool)
        change[:, 0] = True
        numpy.not_equal(flags[:, 1:], flags[:, :-1], out=change[:, 1:])
        heads = numpy.flatnonzero(change)
        row = heads >> 9
        keys = self._keys(rows.reshape(-1)[heads], 1, rights[row])
        if missing.any():
            keys[missing[row_of][row]] = UNREADABLE | 1 << LEVEL_SHIFT
        seen = numpy.fromiter(
            (self._lowest_seen.setdefault(t, False) for t in tables.tolist()), bool, len(tables)
        )
        repeated = seen[row_of]
        if len(tables) < len(entries):
            first_use = numpy.zeros(len(entries), bool)
            first_use[numpy.unique(row_of, return_index=True)[1]] = True
            repeated |= ~first_use
        again = repeated[row]
        count = int(numpy.count_nonzero(again))
        if self._repeated + count > self._repeated_limit:
            return self._too_many(len(entries))
        keys[again] |= u(REPEATED)
        self._repeated += count
        for table in tables.tolist():
            self._lowest_seen[table] = True
        return heads.astype(numpy.uint64) << u(12), keys

    def _too_many(self, count: int) -> Tuple[U64, U64]:
        """For each of some level-2 entries that its table was not looked at."""
        import numpy

        self.limited = True
        keys = numpy.full(count, OVER_LIMIT | 1 << LEVEL_SHIFT, numpy.uint64)
        return numpy.arange(count, dtype=numpy.uint64) << numpy.uint64(21), keys

    def _read_tables(self, tables: U64) -> "Tuple[U64, NDArray[numpy.bool_]]":
        """Contents of tables at ascending physical addresses, neighbours in one read."""
        import numpy

        data, missing = read_tables(self._read, tables)
        self.unreadable_tables += int(missing.sum())
        known = numpy.array([*self._path, *self._unusable], numpy.uint64)
        nonsense = numpy.isin(tables, known) & ~missing
        self.nonsense_tables += int(nonsense.sum())
        return data, missing | nonsense


def read_tables(read: ReadPhysical, tables: U64) -> "Tuple[U64, NDArray[numpy.bool_]]":
    """Contents of tables, and which of them are not in the source.

    :param tables: physical addresses; neighbours in ascending order come in one read.
    """
    import numpy

    missing = numpy.zeros(len(tables), bool)
    breaks = numpy.flatnonzero(tables[1:] - tables[:-1] != numpy.uint64(TABLE_SIZE)) + 1
    bounds = [0, *breaks.tolist(), len(tables)]
    if len(bounds) == 2 and len(tables):
        try:
            raw = read(int(tables[0]), TABLE_SIZE * len(tables))
            return numpy.frombuffer(raw, "<u8").reshape(-1, PTRS_PER_TABLE), missing
        except NotInDump:
            pass
    data = numpy.zeros((len(tables), PTRS_PER_TABLE), numpy.uint64)
    for low, high in zip(bounds, bounds[1:]):
        try:
            raw = read(int(tables[low]), TABLE_SIZE * (high - low))
            data[low:high] = numpy.frombuffer(raw, "<u8").reshape(-1, PTRS_PER_TABLE)
        except NotInDump:
            for i in range(low, high):
                try:
                    data[i] = numpy.frombuffer(read(int(tables[i]), TABLE_SIZE), "<u8")
                except NotInDump:
                    missing[i] = True
    return data, missing


class FrameTree(Tree):
    """The ranges of a tree that map one page frame; all else is as if it were empty.

    :param frame: physical address of a 4K page.
    """

    def __init__(
        self,
        read: ReadPhysical,
        geometry: X86Geometry,
        root: int,
        frame: int,
        *,
        table_limit: int = 1 << 24,
    ) -> None:
        super().__init__(read, geometry, root, table_limit=table_limit)
        self._frame = frame

    def _select(self, entries: U64, level: int) -> U64:
        import numpy

        u = numpy.uint64
        page = (1 << self._geometry.shift(level)) - 1
        mask = self._geometry.pfn_mask & ~page | PRESENT
        if level > 1:
            mask |= PSE
            wanted = self._frame & ~page | PRESENT | PSE
        else:
            wanted = self._frame | PRESENT
        if level > max(self._geometry.large_levels()):
            return numpy.zeros_like(entries)
        return numpy.where(entries & u(mask) == u(wanted), entries, u(0))


def coalesce(starts: U64, keys: U64) -> Tuple[U64, U64]:
    """Merge neighbouring ranges of equal key."""
    import numpy

    keep = numpy.empty(len(keys), bool)
    keep[:1] = True
    keep[1:] = keys[1:] != keys[:-1]
    return starts[keep], keys[keep]
