# SPDX-License-Identifier: LGPL-2.1-or-later
"""Converts a whole page-table tree to ranges."""

from __future__ import annotations

from typing import TYPE_CHECKING, Collection, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from kvintro.arch.form import PagingForm
from kvintro.arch.rights import ALL_RIGHTS, EXEC, READ, USER, USER_EXEC, WRITE
from kvintro.errors import NotInDump
from kvintro.model import ALL
from kvintro.paging.step import ReadPhysical

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

    U64 = NDArray[numpy.uint64]

# The key of a range: its properties packed into 64 bits. The flags of the entry stay where the hardware has
# them (the form's flag_bits), and our own bits are 13 to 31, where no form has flags. So ranges can be
# compared by their keys.
NONZERO = 1 << 13
#: Set for an empty entry of level 1 if the tables above it allow kernel mode to execute.
TABLES_EXEC = 1 << 14
PRUNED = 1 << 15
LEVEL_SHIFT = 16
LEVEL_MASK = 7 << LEVEL_SHIFT
MAPPED = 1 << 20
UNREADABLE = 1 << 21
OVER_LIMIT = 1 << 22
REPEATED = 1 << 23
#: The rights that all levels together allow; see :mod:`kvintro.arch.rights`.
EFFECTIVE_SHIFT = 24
EFFECTIVE_READ = READ << EFFECTIVE_SHIFT
EFFECTIVE_WRITE = WRITE << EFFECTIVE_SHIFT
EFFECTIVE_USER = USER << EFFECTIVE_SHIFT
EFFECTIVE_EXEC = EXEC << EFFECTIVE_SHIFT
EFFECTIVE_USER_EXEC = USER_EXEC << EFFECTIVE_SHIFT

_OURS = (1 << 32) - (1 << 13)
_EXEC_SHIFT = TABLES_EXEC.bit_length() - EXEC.bit_length()
_PART = 1 << 14


class Ranges:
    """A part of the address space, split where level, flags or rights change.

    :ivar starts: first address of each range, ascending (numpy uint64).
    :ivar keys: key of each range; see the constants of this module.
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
        # Convert a part at a time: Python integers take ten times the memory.
        for low in range(0, len(self.starts), _PART):
            starts = self.starts[low : low + _PART + 1].tolist()
            ends = [start - 1 for start in starts[1:]]
            if len(starts) <= _PART:
                ends.append(self.end)
            yield from zip(starts, ends, self.keys[low : low + _PART].tolist())

    def clip(self, start: int, end: int) -> Ranges:
        """The part between two addresses, both inclusive and within these ranges."""
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
        """Bytes of each range; 0 for a range of 2^64 bytes."""
        import numpy

        return numpy.diff(self.starts, append=numpy.uint64(self.end + 1 & ALL))

    def select(self, mask: int) -> List[Tuple[int, int, int]]:
        """(start, end inclusive, key) of the ranges whose key has any bit of the mask."""
        import numpy

        return self._at(numpy.flatnonzero(self.keys & numpy.uint64(mask)))

    def matching(self, patterns: Sequence[Tuple[int, int]], limit: int) -> List[Tuple[int, int, int]]:
        """(start, end inclusive, key) of the ranges with key & mask == value for any (mask, value).

        :param limit: maximum number of ranges; the first ones are returned.
        """
        import numpy

        wanted = numpy.zeros(len(self.keys), bool)
        for mask, value in patterns:
            wanted |= self.keys & numpy.uint64(mask) == numpy.uint64(value)
        return self._at(numpy.flatnonzero(wanted)[:limit])

    def bounds(self, mask: int, value: int, limit: int) -> Tuple[U64, U64]:
        """Starts and ends (inclusive) of the ranges with key & mask == value.

        :param limit: maximum number of ranges; the first ones are returned.
        """
        import numpy

        at = numpy.flatnonzero(self.keys & numpy.uint64(mask) == numpy.uint64(value))[:limit]
        return self.starts[at], self._ends(at)

    def _ends(self, indices: "NDArray[numpy.intp]") -> U64:
        import numpy

        u = numpy.uint64
        ends: U64 = numpy.append(self.starts[1:], u(self.end + 1 & ALL))[indices] - u(1)
        return ends

    def _at(self, indices: "NDArray[numpy.intp]") -> List[Tuple[int, int, int]]:
        if not len(indices):
            return []
        ends = self._ends(indices).tolist()
        return list(zip(self.starts[indices].tolist(), ends, self.keys[indices].tolist()))

    def replaced(self, start: int, end: int, key: int) -> Ranges:
        """A copy with another key between two addresses, both inclusive and within these ranges."""
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
        """A copy with only some bits of the keys, split only where these bits change."""
        import numpy

        starts, keys = coalesce(self.starts, self.keys & numpy.uint64(mask))
        return Ranges(starts, keys, self.end)


class Tree:
    """A page-table tree as ranges.

    Construct one for each root to be walked.

    :param read: reads physical memory.
    :param root: physical address of the root table.
    :param table_limit: how many tables of the lowest level may be expanded in all; a kernel cannot have more
        tables than its memory has pages.
    :param memory_end: physical address after the last RAM; all tables are below it. None if unknown.
    :param unusable: physical addresses of tables whose content is known to be invalid.
    :param prune: tables of KASAN's early shadow by the level of the entries that point to them. Such an entry
        counts as ``prune_as``, an entry of level 1, for its whole span. The kernel's own ptdump does this.
    """

    #: Distinct tables above the lowest level; a machine with 64 TB has some 66,000 of level 2.
    UPPER_LIMIT = 1 << 17
    #: Ranges held at once over all levels, 16 bytes each.
    RANGE_LIMIT = 1 << 23
    #: Ranges of tables that were seen before. The ranges of new tables are bounded by their entries, which
    #: are in the dump, but sharing can turn a few pages into any number of ranges. A sane kernel shares
    #: uniform tables (KASAN's early shadow, huge pages of processes), and those of espfix: a pattern of up to
    #: 16 pages in 64K, at most three ranges, 65,536 times: 393,216 ranges with the holes between them.
    REPEATED_LIMIT = 1 << 19

    def __init__(
        self,
        read: ReadPhysical,
        form: PagingForm,
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
        # Tables on the path from the root to the current table.
        self._path: List[int] = []
        self._form = form
        self._root = root
        self._table_limit = table_limit
        self._prune = prune or {}
        self._prune_as = prune_as
        self._begin()
        self.limited = False
        self.unreadable_tables = 0
        #: Invalid tables: they refer to themselves, or most of their entries refer to addresses without RAM.
        self.nonsense_tables = 0

    def _begin(self) -> None:
        """Reset the counters and caches. Limits apply to each call of :meth:`ranges`."""
        self._tables_left = self._table_limit
        self._upper_left = self.UPPER_LIMIT
        self._ranges_used = 0
        self._repeated = 0
        # Expanded subtrees by table, level and rights; the tree may refer to them again anywhere.
        self._known: Dict[Tuple[int, int, int], Tuple[U64, U64]] = {}
        self._lowest_seen: Dict[int, bool] = {}

    def ranges(self, start: int, end: int) -> Ranges:
        """The ranges from ``start`` to ``end``, both inclusive, canonical and in the same half."""
        form = self._form
        self._begin()
        # User space shares only tables of huge pages; espfix is in the other half.
        self._repeated_limit = self.REPEATED_LIMIT >> (2 if start <= form.user.end else 0)
        table, level, rights = self._root, form.levels, ALL_RIGHTS
        first, last = form.index(start, level), form.index(end, level)
        # While one entry spans the whole range, skip its siblings.
        while first == last and level > 1:
            entries = self._read_table(table, level)
            if entries is None:
                break
            entry = int(entries[first])
            if not self._is_table(entry, level):
                break
            rights &= form.table_rights(entry)
            table, level = form.table_address(entry), level - 1
            first, last = form.index(start, level), form.index(end, level)
        offsets, keys = self._expand(table, level, rights, first, last)
        import numpy

        span = 1 << form.shift(level)
        base = start & ALL & ~(span - 1)
        starts = offsets + numpy.uint64(base)
        covered_end = base + (last - first + 1) * span - 1
        return Ranges(starts, keys, covered_end).clip(start, end)

    def _is_table(self, entry: int, level: int) -> bool:
        """Whether an entry above level 1 points to a table to expand."""
        if not self._form.is_table(entry, level):
            return False
        return level not in self._prune or self._form.table_address(entry) != self._prune[level]

    def _read_table(self, address: int, level: int) -> Optional[U64]:
        import numpy

        form = self._form
        if address in self._unusable:
            self.nonsense_tables += 1
            return None
        try:
            data = self._read(address, form.table_size(level))
        except NotInDump:
            self.unreadable_tables += 1
            return None
        return numpy.frombuffer(data, form.entry_dtype).astype(numpy.uint64, copy=False)

    def _one(self, key: int) -> Tuple[U64, U64]:
        import numpy

        return numpy.zeros(1, numpy.uint64), numpy.array([key], numpy.uint64)

    def _expand(
        self, table: int, level: int, effective: int, first: int = 0, last: Optional[int] = None
    ) -> Tuple[U64, U64]:
        """Offsets (from the first address of entry ``first``) and keys of a table's ranges.

        :param effective: rights that the levels above allow.
        :param last: index of the last entry, inclusive; by default that of the table.
        """
        import numpy

        highest = self._form.entries(level) - 1
        last = highest if last is None else last
        whole = last - first == highest
        known = self._known.get((table, level, effective)) if whole else None
        if known is not None and self._repeated + len(known[0]) <= self._repeated_limit:
            self._repeated += len(known[0])
            return known[0], known[1] | numpy.uint64(REPEATED)
        if known is not None or self._upper_left <= 0 or self._room() <= 0:
            self.limited = True
            return self._one(OVER_LIMIT | level << LEVEL_SHIFT)
        self._upper_left -= 1
        entries = self._read_table(table, level)
        if entries is None or self._is_nonsense(table, entries, level):
            return self._one(UNREADABLE | level << LEVEL_SHIFT)
        if level == 1:
            # This happens only if the whole requested range is in one table of the lowest level.
            entries = self._select(entries, 1)
        entries = entries[first : last + 1]
        if level == 1:
            starts = numpy.arange(len(entries), dtype=numpy.uint64) << numpy.uint64(self._form.page_shift)
            return coalesce(starts, self._keys(entries, 1, numpy.uint64(effective)))
        self._path.append(table)
        result = self._expand_entries(entries, level, effective)
        self._path.pop()
        self._ranges_used += len(result[0])
        if whole:
            self._known[table, level, effective] = result
        return result

    def _is_nonsense(self, table: int, entries: U64, level: int) -> bool:
        """Whether a table refers to itself, directly or not, or most of its entries cannot be a kernel's."""
        import numpy

        form = self._form
        nonsense = table in self._path
        if level > 1 and not nonsense and self._memory_end is not None:
            present, lower = form.is_present(entries, level), form.is_table(entries, level)
            far = form.table_address(entries) >= numpy.uint64(self._memory_end)
            bad = present & numpy.where(lower, far, ~form.is_leaf(entries, level))
            nonsense = 2 * int(numpy.count_nonzero(bad)) > int(numpy.count_nonzero(present))
        self.nonsense_tables += nonsense
        return nonsense

    def _room(self) -> int:
        """How many more ranges are allowed. A range counts once at each level that passes it up."""
        if self._repeated >= self._repeated_limit:
            return 0
        return self.RANGE_LIMIT - self._ranges_used

    def _select(self, entries: U64, level: int) -> U64:
        """The entries of interest, with the others set to 0. None of the entries points to a table."""
        return entries

    def _keys(self, entries: U64, level: int, effective: "int | numpy.uint64 | U64") -> U64:
        return keys_of(self._form, entries, level, effective)

    def _expand_entries(self, entries: U64, level: int, effective: int) -> Tuple[U64, U64]:
        import numpy

        u, form = numpy.uint64, self._form
        span = 1 << form.shift(level)
        child = form.is_table(entries, level)
        starts: List[U64] = []
        keys: List[U64] = []
        shadow = self._prune.get(level)
        if shadow is not None:
            pruned = form.table_address(entries) == u(shadow)
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
                # These offsets are as if the tables were contiguous: move each to where its entry is.
                place = below.astype(numpy.uint64)[child_starts >> u(form.shift(2))] << u(form.shift(2))
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

        form, span = self._form, 1 << self._form.shift(level)
        # A known subtree is not read again, but its ranges count every time.
        met = 0
        for index in below.tolist():
            entry = int(entries[index])
            if self._room() > met:
                rights = effective & form.table_rights(entry)
                offsets, child_keys = self._expand(form.table_address(entry), level - 1, rights)
                met += len(offsets)
            else:
                self.limited = True
                offsets, child_keys = self._one(OVER_LIMIT | (level - 1) << LEVEL_SHIFT)
            starts.append(offsets + numpy.uint64(index * span))
            keys.append(child_keys)

    def _expand_lowest(self, entries: U64, effective: int) -> Tuple[U64, U64]:
        """Ranges of the level-1 tables that these level-2 entries point to, as if they were contiguous."""
        import numpy

        u, form = numpy.uint64, self._form
        tables, row_of = numpy.unique(form.table_address(entries), return_inverse=True)
        if self._tables_left < len(tables):
            return self._too_many(len(entries))
        self._tables_left -= len(tables)
        data, missing = self._read_tables(tables)
        in_order = len(tables) == len(entries) and bool((row_of[1:] > row_of[:-1]).all())
        rows = self._select(data if in_order else data[row_of], 1)
        rights = form.table_rights(entries) & u(effective)
        # Rights follow from the flags and the row, so the flags alone determine the ranges, and only the
        # first entry of each is examined further. An empty entry differs from all others, whatever their
        # flags.
        flags = flags_of(form, rows, 1)
        numpy.bitwise_or(flags, u(NONZERO), out=flags, where=rows != u(0))
        change = numpy.empty(rows.shape, bool)
        change[:, 0] = True
        numpy.not_equal(flags[:, 1:], flags[:, :-1], out=change[:, 1:])
        heads = numpy.flatnonzero(change)
        row = heads >> form.index_bits(1)
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
        return heads.astype(numpy.uint64) << u(form.page_shift), keys

    def _too_many(self, count: int) -> Tuple[U64, U64]:
        """A result for ``count`` level-2 entries that says their tables were not expanded."""
        import numpy

        self.limited = True
        keys = numpy.full(count, OVER_LIMIT | 1 << LEVEL_SHIFT, numpy.uint64)
        return numpy.arange(count, dtype=numpy.uint64) << numpy.uint64(self._form.shift(2)), keys

    def _read_tables(self, tables: U64) -> "Tuple[U64, NDArray[numpy.bool_]]":
        """Contents of tables at ascending physical addresses; adjacent ones are read at once."""
        import numpy

        data, missing = read_tables(self._read, self._form, tables, 1)
        self.unreadable_tables += int(missing.sum())
        known = numpy.array([*self._path, *self._unusable], numpy.uint64)
        nonsense = numpy.isin(tables, known) & ~missing
        self.nonsense_tables += int(nonsense.sum())
        return data, missing | nonsense


def flags_of(form: PagingForm, entries: U64, level: int) -> U64:
    """The bits of the entries that become part of a range's key."""
    import numpy

    flags: U64 = form.flags(entries, level) & numpy.uint64(ALL & ~_OURS)
    return flags


def keys_of(form: PagingForm, entries: U64, level: int, effective: "int | numpy.uint64 | U64") -> U64:
    """The keys of entries that do not point to tables.

    :param effective: rights that the levels above leave to them.
    """
    import numpy

    u = numpy.uint64
    keys = flags_of(form, entries, level)
    keys |= (form.rights(entries, level) & effective) << u(EFFECTIVE_SHIFT)
    keys |= form.is_leaf(entries, level) * u(MAPPED)
    keys |= u(NONZERO)
    # An empty entry has no rights, whatever the levels above allow (as in the kernel's ptdump).
    empty = entries & u(ALL & ~form.stray_bits(level)) == u(0)
    keys *= ~empty
    if level == 1:
        keys |= ((effective & u(EXEC)) << u(_EXEC_SHIFT)) * empty
    keys |= u(level << LEVEL_SHIFT)
    return keys


def read_tables(
    read: ReadPhysical, form: PagingForm, tables: U64, level: int
) -> "Tuple[U64, NDArray[numpy.bool_]]":
    """Contents of tables, one row each, and a mask of those that are not in the source.

    :param tables: physical addresses; adjacent tables in ascending order are read at once.
    :param level: level of the tables.
    """
    import numpy

    size, width = form.table_size(level), form.entries(level)

    def contents(address: int, count: int) -> U64:
        raw = numpy.frombuffer(read(address, size * count), form.entry_dtype)
        return raw.astype(numpy.uint64, copy=False).reshape(-1, width)

    missing = numpy.zeros(len(tables), bool)
    breaks = numpy.flatnonzero(tables[1:] - tables[:-1] != numpy.uint64(size)) + 1
    bounds = [0, *breaks.tolist(), len(tables)]
    if len(bounds) == 2 and len(tables):
        try:
            return contents(int(tables[0]), len(tables)), missing
        except NotInDump:
            pass
    data = numpy.zeros((len(tables), width), numpy.uint64)
    for low, high in zip(bounds, bounds[1:]):
        try:
            data[low:high] = contents(int(tables[low]), high - low)
        except NotInDump:
            for i in range(low, high):
                try:
                    data[i] = contents(int(tables[i]), 1)
                except NotInDump:
                    missing[i] = True
    return data, missing


class FrameTree(Tree):
    """The ranges of a tree that map one page frame; everything else appears empty.

    :param frame: physical address of a page of the smallest size.
    """

    def __init__(
        self,
        read: ReadPhysical,
        form: PagingForm,
        root: int,
        frame: int,
        *,
        table_limit: int = 1 << 24,
    ) -> None:
        super().__init__(read, form, root, table_limit=table_limit)
        self._frame = frame

    def _select(self, entries: U64, level: int) -> U64:
        import numpy

        if level > 1 and level not in self._form.leaf_levels():
            return numpy.zeros_like(entries)
        wanted = numpy.uint64(self._frame & -(1 << self._form.shift(level)))
        address = self._form.page_address(entries, level)
        if level == 1:
            # Equal entries of a range differ in their place only; rows are whole tables here.
            place = numpy.arange(entries.shape[-1], dtype=numpy.uint64) << numpy.uint64(self._form.page_shift)
            address = address | place & numpy.asarray(self._form.offset_mask(entries, 1), numpy.uint64)
        found = self._form.is_present(entries, level) & (address == wanted)
        if level > 1:
            found &= ~self._form.is_table(entries, level)
        return numpy.where(found, entries, numpy.uint64(0))


def coalesce(starts: U64, keys: U64) -> Tuple[U64, U64]:
    """Merge adjacent ranges with equal keys."""
    import numpy

    keep = numpy.empty(len(keys), bool)
    keep[:1] = True
    keep[1:] = keys[1:] != keys[:-1]
    return starts[keep], keys[keep]
