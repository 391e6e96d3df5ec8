# SPDX-License-Identifier: LGPL-2.1-or-later
"""Finds the entries of a page-table tree that map given page frames.

Each table is read once, however many entries point to it. Addresses are computed afterwards, upwards from the
entries that were found, so the time depends on the number of tables, not on the size of the range they map.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Iterator, List, Tuple

from kvintro.arch.form import PagingForm
from kvintro.paging.step import ReadPhysical
from kvintro.paging.tree import read_tables

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

    U64 = NDArray[numpy.uint64]
    Places = NDArray[numpy.int64]

_AT_ONCE = 4 << 20  # bytes of tables held at a time


@dataclass(frozen=True)
class FoundFrames:
    """The result of :func:`find_frames`.

    :ivar places: (address, page frame) of each place.
    :ivar missing: whether some tables are not in the source.
    :ivar too_many_tables: whether there are more tables than the limit; those of lower levels were not read.
    :ivar too_many_places: whether there are more places than the limit.
    """

    places: Tuple[Tuple[int, int], ...]
    missing: bool
    too_many_tables: bool
    too_many_places: bool


@dataclass(frozen=True)
class _Links:
    """The entries of one level that point to tables, ordered by those tables.

    :ivar parents: numbers of the tables that contain the entries.
    :ivar columns: indices of the entries in their tables.
    :ivar firsts: for each table of the next level, the index of the first entry that points to it; the last
        element is the number of entries.
    """

    parents: Places
    columns: Places
    firsts: Places


def find_frames(
    read: ReadPhysical, form: PagingForm, root: int, wanted: U64, *, table_limit: int, place_limit: int
) -> FoundFrames:
    """Find entries of the user half with given page frames, including those with PROT_NONE.

    :param read: reads physical memory.
    :param root: physical address of the root table.
    :param wanted: page frame numbers, ascending.
    :param table_limit: how many tables to read at most.
    :param place_limit: how many places to return at most.
    """
    import numpy

    tables = numpy.array([root], numpy.uint64)
    links: List[_Links] = []
    places: List[Tuple[int, int]] = []
    missing = False
    read_so_far = 0
    for level in range(form.levels, 0, -1):
        read_so_far += len(tables)
        if read_so_far > table_limit:
            return FoundFrames(tuple(places), missing, True, False)
        hits: List[Tuple[int, int, int]] = []
        down: List[Tuple[Places, Places, U64]] = []
        for first, entries, lost in _parts(read, form, tables, level):
            missing |= lost
            for row, column, frame in _hits(form, entries, level, wanted):
                hits.append((first + row, column, frame))
                if len(hits) > place_limit:
                    break
            if level > 1:
                rows, columns = _lower(form, entries, level)
                down.append((rows + first, columns, form.table_address(entries[rows, columns])))
        places += _addresses(form, level, hits, links, place_limit + 1 - len(places))
        if len(places) > place_limit:
            return FoundFrames(tuple(places[:place_limit]), missing, False, True)
        if level > 1:
            tables, level_links = _next_level(down)
            links.append(level_links)
            if not len(tables):
                break
    return FoundFrames(tuple(places), missing, False, False)


def _parts(read: ReadPhysical, form: PagingForm, tables: U64, level: int) -> Iterator[Tuple[int, U64, bool]]:
    """(number of the first table, entries, whether any table is missing) for some tables at a time."""
    # Only a part of the root is the process's own.
    own = form.user_entries() if level == form.levels else slice(None)
    step = max(_AT_ONCE // form.table_size(level), 1)
    for first in range(0, len(tables), step):
        entries, lost = read_tables(read, form, tables[first : first + step], level)
        yield first, entries[:, own], bool(lost.any())


def _hits(form: PagingForm, entries: U64, level: int, wanted: U64) -> Iterator[Tuple[int, int, int]]:
    """(row, column, page frame) of the entries with a wanted page frame."""
    import numpy

    u = numpy.uint64
    if level > 1 and level not in form.leaf_levels():
        return
    shift = form.shift(level) - form.page_shift
    leaf = form.holds_page(entries, level)
    # Equal entries of a range differ in their place only.
    place = numpy.arange(entries.shape[1], dtype=u) << u(form.shift(level))
    within = place & numpy.asarray(form.offset_mask(entries, level), u)
    first = (form.held_address(entries, level) | within) >> u(form.page_shift)
    low = numpy.searchsorted(wanted, first)
    high = numpy.searchsorted(wanted, first + u(1 << shift))
    for row, column in numpy.argwhere(leaf & (high > low)).tolist():
        for index in range(int(low[row, column]), int(high[row, column])):
            yield row, column, int(wanted[index])


def _lower(form: PagingForm, entries: U64, level: int) -> Tuple[Places, Places]:
    """Rows and columns of the entries that point to tables."""
    import numpy

    rows, columns = numpy.nonzero(form.is_table(entries, level))
    return rows.astype(numpy.int64), columns.astype(numpy.int64)


def _next_level(down: List[Tuple[Places, Places, U64]]) -> Tuple[U64, _Links]:
    """The tables of the next level, each once, and the entries that point to them."""
    import numpy

    targets = numpy.concatenate([part[2] for part in down])
    order = numpy.argsort(targets, kind="stable")
    tables, firsts = numpy.unique(targets[order], return_index=True)
    return tables, _Links(
        numpy.concatenate([part[0] for part in down])[order],
        numpy.concatenate([part[1] for part in down])[order],
        numpy.append(firsts, len(targets)).astype(numpy.int64),
    )


def _addresses(
    form: PagingForm, level: int, hits: List[Tuple[int, int, int]], links: List[_Links], limit: int
) -> List[Tuple[int, int]]:
    """(address, page frame) of entries of a level, for every path from the root to their tables.

    :param limit: how many to return at most.
    """
    import numpy

    u = numpy.uint64
    if not hits:
        return []
    table = numpy.array([row for row, _, _ in hits], numpy.int64)
    address = numpy.array([column for _, column, _ in hits], u) << u(form.shift(level))
    frame = numpy.array([frame for _, _, frame in hits], u)
    # A wanted frame may be within a large page, after its first address.
    address |= (frame << u(form.page_shift)) & u((1 << form.shift(level)) - 1)
    for above, link in zip(range(level + 1, form.levels + 1), reversed(links)):
        counts = link.firsts[table + 1] - link.firsts[table]
        # No more than ``limit`` paths need to be followed, as each leads to the root.
        enough = int(numpy.searchsorted(numpy.cumsum(counts), limit)) + 1
        table, address, frame, counts = table[:enough], address[:enough], frame[:enough], counts[:enough]
        each = numpy.repeat(numpy.arange(len(table)), counts)[:limit]
        within = (numpy.arange(int(counts.sum())) - numpy.repeat(numpy.cumsum(counts) - counts, counts))[
            :limit
        ]
        way = link.firsts[table[each]] + within
        address = address[each] | link.columns[way].astype(u) << u(form.shift(above))
        frame = frame[each]
        table = link.parents[way]
    return list(zip(address.tolist(), frame.tolist()))[:limit]
