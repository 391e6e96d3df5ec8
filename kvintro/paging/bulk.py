# SPDX-License-Identifier: LGPL-2.1-or-later
"""Many addresses at once, by one root.

The addresses go down the levels together: at each, the tables that any of them needs are read once, and
every address picks its entry with a handful of array operations. What it costs to translate an address does
not depend on how the addresses are ordered.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, List, Sequence, Tuple

from kvintro.arch.x86_64 import PRESENT, PTRS_PER_TABLE, X86Geometry
from kvintro.paging.step import ReadPhysical
from kvintro.paging.tree import read_tables

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

    U64 = NDArray[numpy.uint64]
    U8 = NDArray[numpy.uint8]

#: Values of :attr:`BulkResult.states`, an index into this.
STATES = ("unmapped", "mapped", "not-in-dump", "non-canonical")
UNMAPPED, MAPPED, NOT_IN_DUMP, NON_CANONICAL = range(4)

_BATCH = 1 << 18  # addresses at a time: what their arrays take stays within the processor's cache
_BLOCK = 1 << 12  # tables held at once: 16 MB


@dataclass(frozen=True)
class BulkResult:
    """What became of an array of addresses, element by element.

    :ivar physical: physical addresses, 0 where not mapped.
    :ivar states: indices into :data:`STATES`.
    :ivar page_shifts: log2 of the size of the page that maps it (12, 21, 30), 0 where not mapped.
    """

    physical: U64
    states: U8
    page_shifts: U8


@dataclass(frozen=True)
class BulkWalk(BulkResult):
    """The same with every entry on the way, a row for each address and a column for each level, root first.

    :ivar depths: how many entries there were: the columns of a row that say something; the others are 0.
    :ivar entry_addresses: physical addresses of the entries.
    :ivar values: the entries; 0 also for the last one of an address whose state is not-in-dump.
    """

    depths: U8
    entry_addresses: U64
    values: U64


class Bulk:
    """Translates arrays of addresses by one root.

    :param read: reads physical memory.
    :param root: physical address of the root table.
    :param broken: addresses (first, last) whose tables are broken: they count as not in the dump.
    """

    def __init__(
        self,
        read: ReadPhysical,
        geometry: X86Geometry,
        root: int,
        broken: Sequence[Tuple[int, int]] = (),
    ) -> None:
        self._read = read
        self._broken = broken
        self._geometry = geometry
        self._root = root

    def translate(self, addresses: U64) -> BulkResult:
        """Translate virtual addresses (numpy uint64, one dimension)."""
        import numpy

        addresses = _checked(addresses)
        n = len(addresses)
        result = BulkResult(
            numpy.zeros(n, numpy.uint64), numpy.zeros(n, numpy.uint8), numpy.zeros(n, numpy.uint8)
        )
        for low in range(0, n, _BATCH):
            part = slice(low, low + _BATCH)
            self._translate(
                addresses[part], result.physical[part], result.states[part], result.page_shifts[part], None
            )
        for start, end in self._broken:
            inside = (addresses >= numpy.uint64(start)) & (addresses <= numpy.uint64(end))
            result.states[inside], result.physical[inside], result.page_shifts[inside] = NOT_IN_DUMP, 0, 0
        return result

    def walk(self, addresses: U64) -> BulkWalk:
        """Translate virtual addresses (numpy uint64, one dimension), and keep the entries of each level."""
        import numpy

        addresses = _checked(addresses)
        n, levels = len(addresses), self._geometry.levels
        result = BulkWalk(
            numpy.zeros(n, numpy.uint64),
            numpy.zeros(n, numpy.uint8),
            numpy.zeros(n, numpy.uint8),
            numpy.zeros(n, numpy.uint8),
            numpy.zeros((n, levels), numpy.uint64),
            numpy.zeros((n, levels), numpy.uint64),
        )
        for low in range(0, n, _BATCH):
            part = slice(low, low + _BATCH)
            steps = (result.depths[part], result.entry_addresses[part], result.values[part])
            self._translate(
                addresses[part], result.physical[part], result.states[part], result.page_shifts[part], steps
            )
        return result

    def _translate(
        self, addresses: U64, physical: U64, states: U8, shifts: U8, steps: "tuple[U8, U64, U64] | None"
    ) -> None:
        import numpy

        u = numpy.uint64
        bits = self._geometry.shift(self._geometry.levels) + 9
        # Sign extension is a shift up and an arithmetic shift down.
        extended = (addresses.view(numpy.int64) << (64 - bits)) >> (64 - bits)
        canonical = extended.view(numpy.uint64) == addresses
        if canonical.all():
            live = addresses
            index = None
        else:
            states[~canonical] = NON_CANONICAL
            index = numpy.flatnonzero(canonical)
            live = addresses[index]
        tables = numpy.array([self._root], numpy.uint64)
        slot = numpy.zeros(len(live), numpy.int64)
        for level in range(self._geometry.levels, 0, -1):
            if not len(live):
                return
            entries, lost = self._entries(tables, slot, live, level)
            if steps is not None:
                depths, entry_addresses, values = steps
                reached = slice(None) if index is None else index
                column = self._geometry.levels - level
                depths[reached] = column + 1
                within = self._indices(live, level).view(numpy.uint64) * u(8)
                entry_addresses[reached, column] = tables[slot] + within
                values[reached, column] = entries
            present = entries & u(PRESENT) != u(0)
            reserved = self._geometry.reserved_bits(level)
            if level == 1:
                leaf = present
            elif level in self._geometry.large_levels():
                large = present & (entries & u(self._geometry.large_bit()) != u(0))
                leaf = large & (entries & u(reserved) == u(0))
                present &= leaf | ~large
            else:
                present &= entries & u(reserved) == u(0)
                leaf = numpy.zeros(len(live), bool)
            if lost is not None:
                where = numpy.flatnonzero(lost)
                states[where if index is None else index[where]] = NOT_IN_DUMP
            if level == 1 and lost is None and index is None and present.all():
                self._finish(entries, live, level, slice(None), physical, states, shifts)
                return
            at = numpy.flatnonzero(leaf)
            if len(at):
                where_to = at if index is None else index[at]
                self._finish(entries[at], live[at], level, where_to, physical, states, shifts)
            if level == 1:
                return
            down = numpy.flatnonzero(present & ~leaf)
            if len(down) < len(live):
                live, entries, slot = live[down], entries[down], slot[down]
                index = down if index is None else index[down]
            tables, slot = self._next_tables(slot, live, entries, level, len(tables))

    def _finish(
        self,
        entries: U64,
        addresses: U64,
        level: int,
        where: "slice | NDArray[numpy.intp]",
        physical: U64,
        states: U8,
        shifts: U8,
    ) -> None:
        import numpy

        shift = self._geometry.shift(level)
        page = (1 << shift) - 1
        base = entries & numpy.uint64(self._geometry.pfn_mask & ~page)
        physical[where] = base | addresses & numpy.uint64(page)
        states[where] = MAPPED
        shifts[where] = shift

    def _next_tables(
        self, slot: "NDArray[numpy.int64]", live: U64, entries: U64, level: int, count: int
    ) -> "tuple[U64, NDArray[numpy.int64]]":
        """The tables that entries point to, ascending, and which of them each entry needs."""
        import numpy

        u = numpy.uint64
        targets = entries & u(self._geometry.pfn_mask)
        span = count * PTRS_PER_TABLE
        if span <= 4 * len(live) + PTRS_PER_TABLE:
            # Which entries are in use is marked in an array with a place for each, which beats sorting.
            key = slot * PTRS_PER_TABLE + self._indices(live, level)
            value_of = numpy.zeros(span, numpy.uint64)
            value_of[key] = targets
            used = numpy.flatnonzero(value_of)
            tables, place = numpy.unique(value_of[used], return_inverse=True)
            slot_of = numpy.zeros(span, numpy.int64)
            slot_of[used] = place
            if (targets == u(0)).any():
                # A table at physical address 0 makes no sense, but a damaged dump can say so.
                tables, place = numpy.unique(targets, return_inverse=True)
                return tables, place.astype(numpy.int64)
            return tables, slot_of[key]
        tables, place = numpy.unique(targets, return_inverse=True)
        return tables, place.astype(numpy.int64)

    def _indices(self, addresses: U64, level: int) -> "NDArray[numpy.int64]":
        import numpy

        shifted: U64 = addresses >> numpy.uint64(self._geometry.shift(level))
        indices: NDArray[numpy.int64] = (shifted & numpy.uint64(PTRS_PER_TABLE - 1)).view(numpy.int64)
        return indices

    def _entries(
        self, tables: U64, slot: "NDArray[numpy.int64]", addresses: U64, level: int
    ) -> "tuple[U64, NDArray[numpy.bool_] | None]":
        """The entry of each address, and which of them lie in tables that are not in the source."""
        import numpy

        index = self._indices(addresses, level)
        if len(tables) <= _BLOCK:
            data, missing = read_tables(self._read, tables)
            entries = data.reshape(-1)[slot * PTRS_PER_TABLE + index]
            return entries, missing[slot] if missing.any() else None
        entries = numpy.zeros(len(addresses), numpy.uint64)
        lost = numpy.zeros(len(addresses), bool)
        order = numpy.argsort(slot, kind="stable")
        cuts: List[int] = numpy.searchsorted(
            slot[order], numpy.arange(0, len(tables) + _BLOCK, _BLOCK)
        ).tolist()
        for number, (low, high) in enumerate(zip(cuts, cuts[1:])):
            first = number * _BLOCK
            data, missing = read_tables(self._read, tables[first : first + _BLOCK])
            part = order[low:high]
            rows = slot[part] - first
            entries[part] = data.reshape(-1)[rows * PTRS_PER_TABLE + index[part]]
            lost[part] = missing[rows]
        return entries, lost if lost.any() else None


def _checked(addresses: U64) -> U64:
    import numpy

    addresses = numpy.ascontiguousarray(addresses, numpy.uint64)
    if addresses.ndim != 1:
        raise ValueError("addresses must have one dimension")
    return addresses
