# SPDX-License-Identifier: LGPL-2.1-or-later
"""The map: regions of the whole address space, and page-table entries of a part of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import List, Optional, Sequence, Tuple

from kvintro.browse.lines import Link
from kvintro.errors import NotInDump
from kvintro.kernels import Kernel
from kvintro.model import Address, Column, Size, Table, own_memory
from kvintro.queries.roots import process_root
from kvintro.readers.mapped import View
from kvintro.reports.layout import LayoutReport

#: Maximum number of pages listed of a range.
MOST_PAGES = 4000
_ENTRY = 8


@dataclass(frozen=True)
class Box:
    """One row of the map.

    :ivar start: first address.
    :ivar end: last address, inclusive.
    :ivar mapped: number of mapped bytes; None if unknown.
    :ivar at_least: whether more may be mapped.
    :ivar kind: ``region``, ``hole``, ``table``, ``page``, ``empty``, ``other`` (neither empty nor present),
        ``lost`` (the table is not in the source); ``absent`` or ``unknown`` for a region without a place.
    :ivar key: key of the region, which determines the colour.
    :ivar text: description to display.
    :ivar note: KASLR offset, rights, and so on.
    :ivar inside: whether the region is inside another.
    :ivar link: target of Enter, if the box cannot be zoomed into.
    :ivar entry: link to the page-table entry.
    :ivar unknown: whether the mapped size should be known but is not.
    :ivar own: bytes of memory of its own, if most of what it maps is shared pages.
    """

    start: int
    end: int
    kind: str
    key: str
    text: str
    mapped: Optional[int] = None
    at_least: bool = False
    note: str = ""
    inside: bool = False
    link: Optional[Link] = None
    entry: Optional[Link] = None
    unknown: bool = False
    own: Optional[int] = None

    @property
    def size(self) -> int:
        """Size in bytes."""
        return self.end - self.start + 1

    @property
    def zooms(self) -> bool:
        """Whether it can be zoomed into."""
        return self.kind in ("region", "table")


@dataclass(frozen=True)
class Stretch:
    """A part of the map to show: first and last address, and the owner of the page tables."""

    start: int
    end: int
    key: str
    title: str
    pid: Optional[int] = None


@dataclass(frozen=True)
class PageRow:
    """One page-table entry that maps something, or the addresses up to the next one.

    :ivar physical: physical address of the page.
    """

    start: Address
    end: Address
    size: Size
    state: str
    rights: Tuple[str, ...]
    physical: Optional[Address]
    pfn: Optional[int]
    entry: Optional[Address]


_PAGE_COLUMNS = (
    Column("start", "start"),
    Column("size", "size", "right"),
    Column("state", "state"),
    Column("rights", "rights"),
    Column("pfn", "pfn", "right"),
    Column("physical", "physical"),
)


def boxes_of_layout(report: LayoutReport) -> List[Box]:
    """Boxes of the whole address space: regions, holes, and regions that this kernel does not have."""
    out: List[Box] = []
    missing: List[Box] = []
    for row in report.tables[0].rows:
        if row.state != "present" or row.start is None or row.end is None:
            missing.append(Box(0, 0, row.state, row.key, row.name, note=row.reason or ""))
            continue
        moved = f"{row.slide:+d}" if row.slide else ""
        out.append(
            Box(
                row.start,
                row.end,
                row.kind,
                row.key,
                row.name,
                row.mapped,
                row.at_least,
                moved,
                row.parent is not None,
                unknown=row.mapped is None and row.reason is not None,
                own=own_memory(row.mapped, row.shared),
            )
        )
    return out + missing


def _root_of(kernel: Kernel, where: Stretch) -> int:
    """The root table that maps a part of the map.

    :raises Unavailable: the root is unknown.
    """
    if where.pid is not None:
        return process_root(kernel, where.pid).table
    region = kernel.regions.named(where.key)
    roots: Sequence[int] = [] if region is None else [root.table for root in region.roots(kernel)]
    own = kernel.root.value
    return own if own in roots or not roots else roots[0]


def boxes_of_stretch(kernel: Kernel, where: Stretch) -> List[Box]:
    """Entries of the table that divides a part of the map; adjacent ones that map nothing share a box.

    :raises Unavailable: the root is unknown.
    """
    form = kernel.form
    root = _root_of(kernel, where)
    table, level = root, form.levels
    if not form.is_canonical(where.start):
        return []
    while level > 1 and form.index(where.start, level) == form.index(where.end, level):
        entry = _entries(kernel, table, level, form.index(where.start, level), 1)
        if not entry:
            return [Box(where.start, where.end, "lost", where.key, "its page table is not in this source")]
        if not form.is_table(entry[0], level):
            return [_box(kernel, where, where.start, where.end, level, entry[0], None)]
        table, level = form.table_address(entry[0]), level - 1
    first, last = form.index(where.start, level), form.index(where.end, level)
    entries = _entries(kernel, table, level, first, last - first + 1)
    if not entries:
        return [Box(where.start, where.end, "lost", where.key, "its page table is not in this source")]
    view = View.of(kernel, where.start, where.end, root)
    span = 1 << form.shift(level)
    base = where.start & ~(span - 1)
    out: List[Box] = []
    for number, value in enumerate(entries):
        low = max(base + number * span, where.start)
        high = min(base + (number + 1) * span - 1, where.end)
        box = _box(kernel, where, low, high, level, value, view)
        if out and _is_bare(box) and _is_bare(out[-1]):
            text = "nothing mapped" if box.kind == out[-1].kind == "empty" else "tables that map nothing"
            box = Box(out.pop().start, high, "empty", where.key, text, 0)
        out.append(box)
    return out


def _is_bare(box: Box) -> bool:
    """Whether nothing is known to be mapped in a box."""
    return box.kind == "empty" or (box.kind == "table" and box.mapped == 0 and not box.at_least)


def _entries(kernel: Kernel, table: int, level: int, first: int, count: int) -> Sequence[int]:
    """Entries of a table; none if it is not in the source."""
    try:
        data = kernel.read_physical(table + _ENTRY * first, _ENTRY * count)
    except NotInDump:
        return ()
    order = kernel.form.byte_order
    return [int.from_bytes(data[at : at + _ENTRY], order) for at in range(0, len(data), _ENTRY)]


def _box(
    kernel: Kernel, where: Stretch, low: int, high: int, level: int, value: int, view: Optional[View]
) -> Box:
    """Make the box of a page-table entry."""
    form = kernel.form
    name = form.level_name(level)
    found = None if view is None else view.stretch(low, high)
    mapped = None if found is None or found.unreadable else found.mapped
    entry = Link("entry", value, high, where.pid, f"{low:016x}", name)
    if not value:
        return Box(low, high, "empty", where.key, "nothing mapped", 0)
    if level > 1 and form.is_table(value, level):
        below = form.level_name(level - 1)
        rights = "" if found is None else "/".join(found.rights[:3])
        at_least = found is not None and bool(found.unreadable)
        return Box(low, high, "table", where.key, f"{below} table", mapped, at_least, rights, entry=entry)
    if form.is_leaf(value, level):
        physical = form.page_address(value, level)
        rights = "" if found is None else "/".join(found.rights)
        link = Link("pfn", physical >> form.page_shift)
        text = f"{form.page_name(level)} page, pfn {physical >> form.page_shift:x}"
        return Box(low, high, "page", where.key, text, high - low + 1, note=rights, link=link, entry=entry)
    kind = kernel.entries.decode(value, level, half="kernel" if low >> 63 else "user").kind
    return Box(low, high, "other", where.key, f"{name} entry: {kind}", 0, link=entry, entry=entry)


def pages_of(kernel: Kernel, start: int, end: int, pid: Optional[int]) -> Tuple[Table, Sequence[str]]:
    """Pages of a range one by one, and notes about the list.

    :param end: last address, inclusive.
    :raises Unavailable: the process's tables are unknown.
    """
    root = kernel.root.value if pid is None else process_root(kernel, pid).table
    view = View.of(kernel, start, end, root)
    form = kernel.form
    rows: List[PageRow] = []
    address = start
    steps = 0
    while address <= end and steps < MOST_PAGES:
        steps += 1
        found = kernel.walk(address, root)
        level = found.steps[-1].level if found.steps else form.levels
        low = address & ~((1 << form.shift(level)) - 1)
        high = low + (1 << form.shift(level)) - 1
        value = found.steps[-1].value if found.steps else None
        if found.state != "unmapped" or value:
            first, last = max(low, start), min(high, end)
            rights = view.stretch(first, last).rights
            at = None if found.physical is None else Address(found.physical - (address - first))
            pfn = None if at is None else at >> form.page_shift
            entry = None if value is None else Address(value)
            size = Size(last - first + 1)
            state = found.state if found.state != "unmapped" else "not present"
            rows.append(PageRow(Address(first), Address(last), size, state, rights, at, pfn, entry))
        address = high + 1
    notes = [] if address > end else [f"the first {steps} entries are listed; the range goes on"]
    return Table("pages", _PAGE_COLUMNS, rows), notes
