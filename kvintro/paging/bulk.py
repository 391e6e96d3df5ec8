# SPDX-License-Identifier: LGPL-2.1-or-later
"""Translates many addresses at once, by one root.

All addresses are processed level by level. At each level, every table that is needed is read once, and a few
array operations select the entries of all addresses. The cost of translating an address does not depend on
the order of the addresses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, List, Optional, Sequence, Tuple

from kvintro.arch.form import ENTRY_SIZE, PagingForm
from kvintro.model import AddressRange
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

_BATCH = 1 << 18  # addresses at a time, so that their arrays fit into the processor's cache
_BLOCK = 16 << 20  # bytes of tables held at once


@dataclass(frozen=True)
class BulkResult:
    """Result for an array of addresses, element by element.

    :ivar physical: physical addresses; 0 if not mapped.
    :ivar states: indices into :data:`STATES`.
    :ivar page_shifts: log2 of the size of the page that maps the address (12 for 4K); 0 if not mapped.
    """

    physical: U64
    states: U8
    page_shifts: U8


@dataclass(frozen=True)
class BulkWalk(BulkResult):
    """As :class:`BulkResult`, with all entries: a row for each address, a column for each level, root first.

    :ivar depths: number of entries of each address, which is the number of valid columns; others are 0.
    :ivar entry_addresses: physical addresses of the entries.
    :ivar values: the entries; also 0 for the last entry of an address whose state is not-in-dump.
    """

    depths: U8
    entry_addresses: U64
    values: U64


class Bulk:
    """Translates arrays of addresses by one root.

    :param read: reads physical memory.
    :param root: physical address of the root table.
    :param broken: ranges (first, last inclusive) whose tables are broken; they count as not in the dump.
    :param other: addresses that the root does not translate, and the root that does (None if there is none);
        None if the root translates everything.
    """

    def __init__(
        self,
        read: ReadPhysical,
        form: PagingForm,
        root: int,
        broken: Sequence[Tuple[int, int]] = (),
        other: Optional[Tuple[AddressRange, Optional[int]]] = None,
    ) -> None:
        self._other = other
        self._read = read
        self._broken = broken
        self._form = form
        self._root = root

    def translate(self, addresses: U64) -> BulkResult:
        """Translate virtual addresses (one-dimensional numpy array of uint64)."""
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
        """Translate virtual addresses (one-dimensional numpy array of uint64), and return all entries."""
        import numpy

        addresses = _checked(addresses)
        n, levels = len(addresses), self._form.levels
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

        u, form = numpy.uint64, self._form
        canonical = served = form.is_canonical(addresses)
        if self._other is not None and self._other[1] is None:
            served = canonical & ~self._is_other(addresses)
        if served.all():
            live = addresses
            index = None
        else:
            states[~canonical] = NON_CANONICAL
            index = numpy.flatnonzero(served)
            live = addresses[index]
        tables = numpy.array([self._root], numpy.uint64)
        slot = numpy.zeros(len(live), numpy.int64)
        if self._other is not None and self._other[1] is not None:
            tables = numpy.array([self._root, self._other[1]], numpy.uint64)
            slot += self._is_other(live)
        for level in range(form.levels, 0, -1):
            if not len(live):
                return
            entries, lost = self._entries(tables, slot, live, level)
            if steps is not None:
                depths, entry_addresses, values = steps
                reached = slice(None) if index is None else index
                column = form.levels - level
                depths[reached] = column + 1
                within = self._indices(live, level).view(numpy.uint64) * u(ENTRY_SIZE)
                entry_addresses[reached, column] = tables[slot] + within
                values[reached, column] = entries
            leaf = form.is_leaf(entries, level)
            if lost is not None:
                where = numpy.flatnonzero(lost)
                states[where if index is None else index[where]] = NOT_IN_DUMP
            if level == 1 and lost is None and index is None and leaf.all():
                self._finish(entries, live, level, slice(None), physical, states, shifts)
                return
            at = numpy.flatnonzero(leaf)
            if len(at):
                where_to = at if index is None else index[at]
                self._finish(entries[at], live[at], level, where_to, physical, states, shifts)
            if level == 1:
                return
            down = numpy.flatnonzero(form.is_table(entries, level))
            if len(down) < len(live):
                live, entries, slot = live[down], entries[down], slot[down]
                index = down if index is None else index[down]
            tables, slot = self._next_tables(slot, live, entries, level, len(tables))

    def _is_other(self, addresses: U64) -> "NDArray[numpy.bool_]":
        import numpy

        assert self._other is not None
        where = self._other[0]
        inside: NDArray[numpy.bool_]
        inside = (addresses >= numpy.uint64(where.start)) & (addresses <= numpy.uint64(where.end))
        return inside

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

        shift = self._form.shift(level)
        base = self._form.page_address(entries, level)
        mask = numpy.asarray(self._form.offset_mask(entries, level), numpy.uint64)
        physical[where] = base | addresses & mask
        states[where] = MAPPED
        shifts[where] = shift

    def _next_tables(
        self, slot: "NDArray[numpy.int64]", live: U64, entries: U64, level: int, count: int
    ) -> "tuple[U64, NDArray[numpy.int64]]":
        """The tables that entries point to, ascending, and for each entry the index of its table."""
        import numpy

        u = numpy.uint64
        targets = self._form.table_address(entries)
        width = self._form.entries(level)
        span = count * width
        if span <= 4 * len(live) + width:
            # Mark the entries in use in an array with an element per entry, which is faster than sorting.
            key = slot * width + self._indices(live, level)
            value_of = numpy.zeros(span, numpy.uint64)
            value_of[key] = targets
            used = numpy.flatnonzero(value_of)
            tables, place = numpy.unique(value_of[used], return_inverse=True)
            slot_of = numpy.zeros(span, numpy.int64)
            slot_of[used] = place
            if (targets == u(0)).any():
                # A table at physical address 0 is invalid, but a damaged dump can have such entries.
                tables, place = numpy.unique(targets, return_inverse=True)
                return tables, place.astype(numpy.int64)
            return tables, slot_of[key]
        tables, place = numpy.unique(targets, return_inverse=True)
        return tables, place.astype(numpy.int64)

    def _indices(self, addresses: U64, level: int) -> "NDArray[numpy.int64]":
        import numpy

        shifted: U64 = addresses >> numpy.uint64(self._form.shift(level))
        indices: NDArray[numpy.int64] = (shifted & numpy.uint64(self._form.entries(level) - 1)).view(
            numpy.int64
        )
        return indices

    def _entries(
        self, tables: U64, slot: "NDArray[numpy.int64]", addresses: U64, level: int
    ) -> "tuple[U64, NDArray[numpy.bool_] | None]":
        """The entry of each address, and a mask of those whose table is not in the source (None if none)."""
        import numpy

        index, width = self._indices(addresses, level), self._form.entries(level)
        block = max(_BLOCK // self._form.table_size(level), 1)
        if len(tables) <= block:
            data, missing = read_tables(self._read, self._form, tables, level)
            entries = data.reshape(-1)[slot * width + index]
            return entries, missing[slot] if missing.any() else None
        entries = numpy.zeros(len(addresses), numpy.uint64)
        lost = numpy.zeros(len(addresses), bool)
        order = numpy.argsort(slot, kind="stable")
        cuts: List[int] = numpy.searchsorted(
            slot[order], numpy.arange(0, len(tables) + block, block)
        ).tolist()
        for number, (low, high) in enumerate(zip(cuts, cuts[1:])):
            first = number * block
            data, missing = read_tables(self._read, self._form, tables[first : first + block], level)
            part = order[low:high]
            rows = slot[part] - first
            entries[part] = data.reshape(-1)[rows * width + index[part]]
            lost[part] = missing[rows]
        return entries, lost if lost.any() else None


def _checked(addresses: U64) -> U64:
    import numpy

    addresses = numpy.ascontiguousarray(addresses, numpy.uint64)
    if addresses.ndim != 1:
        raise ValueError("addresses must have one dimension")
    return addresses
