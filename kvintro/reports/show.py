# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is inside one region: its contents, filtered and sorted as asked."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence, Tuple

from kvintro.errors import Unavailable, UsageError
from kvintro.kernel import Kernel
from kvintro.model import (
    Absent,
    Address,
    AddressRange,
    Located,
    NoRange,
    Placement,
    Report,
    Size,
    Table,
    Unknown,
)
from kvintro.readers.mapped import unread
from kvintro.regions import Asked, Contents, Region

_MOST_RANGES = 4096  # shown in place of contents


@dataclass(frozen=True)
class RegionHead:
    """The region whose contents follow; as in the layout, ``end`` is inclusive."""

    key: str
    name: str
    state: str
    start: Optional[Address]
    end: Optional[Address]
    size: Optional[Size]
    provenance: Optional[str]
    reason: Optional[str]
    note: str


@dataclass(frozen=True)
class Selection:
    """Which rows are wanted, and in which order. Totals are of the whole region all the same.

    :ivar table: key of the one table that is wanted.
    :ivar match: rows in whose text this is found.
    :ivar within: rows that lie there, at least partly.
    :ivar sort: column to sort by: addresses and texts ascend, sizes and counts descend.
    :ivar top: so many rows of each table, by default the largest.
    """

    table: Optional[str] = None
    match: Optional["re.Pattern[str]"] = None
    within: Optional[AddressRange] = None
    sort: Optional[str] = None
    reverse: bool = False
    top: Optional[int] = None

    @property
    def narrows(self) -> bool:
        """Whether it leaves anything away or in another order."""
        return any((self.table, self.match, self.within, self.sort, self.reverse, self.top is not None))


def region_of(kernel: Kernel, key: str) -> Region:
    """The region of a key.

    :raises UsageError: there is none.
    """
    key = key.replace("-", "_").lower()
    for region in kernel.regions:
        if region.key == key:
            return region
    keys = ", ".join(sorted(region.key for region in kernel.regions))
    raise UsageError(f"there is no region {key}", f"regions are {keys}")


def show(kernel: Kernel, key: str, asked: Asked, selection: Selection) -> Report:
    """The contents of a region.

    :raises UsageError: there is no such region, table or column.
    """
    region = region_of(kernel, key)
    found = kernel.locate(region)
    contents = Contents(())
    reason: Optional[str] = None
    if isinstance(found, Placement):
        try:
            contents = region.contents(kernel, asked)
        except Unavailable as error:
            contents, reason = _only_mapped(kernel, region, error.what)
    else:
        reason = found.reason
    lacks = _unread(kernel, region, found) if reason is None else ()
    unknown = (
        bool(lacks) or isinstance(found, Unknown) or (isinstance(found, Placement) and reason is not None)
    )
    state = "absent" if isinstance(found, Absent) else "unknown" if isinstance(found, Unknown) else "present"
    head = _head(region, found, state, reason)
    if contents.ranged:
        selection = dataclasses.replace(selection, within=None)
    extra: Dict[str, Any] = {"region": head, "totals": contents.totals}
    if selection.table:
        extra["table"] = selection.table
    return Report(
        command="show",
        kernel=kernel.identity,
        tables=select(contents.tables, selection) if contents.tables else (),
        notes=tuple(dict.fromkeys((*kernel.source.warnings, *contents.notes, *lacks))),
        partial=contents.partial or unknown,
        negative=state == "absent",
        extra=extra,
    )


def _unread(kernel: Kernel, region: Region, found: Located) -> Sequence[str]:
    """Why what the page tables have of a region is not all known."""
    if not isinstance(found, Placement):
        return ()
    try:
        roots = region.roots(kernel)
    except Unavailable as error:
        return (f"what is mapped is not known: {error.what}",)
    whys = (unread(kernel, found.range.start, found.range.end, root.table) for root in roots)
    return [f"{region.name}: {why}" for why in whys if why]


def _only_mapped(kernel: Kernel, region: Region, why: str) -> Tuple[Contents, str]:
    """What is left to show where the kernel's own account cannot be read, and why it cannot."""
    reason = f"its contents cannot be read: {why}"
    try:
        # What only processes map is not looked for here.
        contents = region.mapped(kernel) if region.roots(kernel) else None
    except Unavailable:
        contents = None
    if contents is None:
        return Contents(()), reason
    (table,) = contents.tables
    if len(table.rows) > _MOST_RANGES:
        # As in espfix, where each page is mapped 65536 times.
        note = f"the first {_MOST_RANGES} of {len(table.rows)} ranges are shown"
        table = dataclasses.replace(table, rows=table.rows[:_MOST_RANGES])
        contents = dataclasses.replace(contents, tables=(table,), notes=(*contents.notes, note))
    return contents, f"{reason}; this is what the page tables map"


def _head(region: Region, found: Any, state: str, reason: Optional[str]) -> RegionHead:
    place = found if isinstance(found, Placement) else None
    return RegionHead(
        key=region.key,
        name=region.name,
        state=state,
        start=Address(place.range.start) if place else None,
        end=Address(place.range.end) if place else None,
        size=Size(place.range.size) if place else None,
        provenance=place.provenance if place else None,
        reason=reason,
        note=place.note if place else "",
    )


def parse_range(text: str) -> AddressRange:
    """``A-B`` in hex, B exclusive as in the kernel's own files.

    :raises UsageError: that is no range.
    """
    try:
        start, end = (int(part, 16) for part in text.split("-"))
        # Nothing can be written for the end of the last page; its last address will do.
        return AddressRange(start, end - 1 if end not in (0, (1 << 64) - 1) else (1 << 64) - 1)
    except (ValueError, NoRange):
        raise UsageError(f"{text} is no range", "give A-B in hex; B itself is not included") from None


def parse_pattern(text: str) -> "re.Pattern[str]":
    """A regular expression.

    :raises UsageError: that is none.
    """
    try:
        return re.compile(text)
    except re.error as error:
        raise UsageError(
            f"{text} is no regular expression: {error}", "see Python's re for what may be written"
        ) from None


def select(tables: Sequence[Table], selection: Selection) -> Tuple[Table, ...]:
    """The tables with the rows that are wanted.

    :raises UsageError: no such table, or no table has the column.
    """
    if selection.table is not None:
        chosen = [table for table in tables if table.key == selection.table]
        if not chosen:
            keys = ", ".join(table.key for table in tables)
            raise UsageError(f"there is no table {selection.table} here", f"tables are {keys}")
        tables = chosen
    if selection.sort is not None:
        names = list(dict.fromkeys(name for table in tables for name in _names(table)))
        if selection.sort not in names and any(table.rows for table in tables):
            raise UsageError(
                f"no table here has a column {selection.sort}", f"columns are {', '.join(names)}"
            )
    return tuple(dataclasses.replace(table, rows=_rows(table, selection)) for table in tables)


def _names(table: Table) -> List[str]:
    return [f.name for f in dataclasses.fields(table.rows[0])] if table.rows else []


def _rows(table: Table, selection: Selection) -> Sequence[Any]:
    rows = list(table.rows)
    names = _names(table)
    if selection.within is not None and "start" in names and "end" in names:
        low, high = selection.within.start, selection.within.end
        rows = [row for row in rows if row.start is not None and row.start <= high and low <= row.end]
    if selection.match is not None:
        rows = [row for row in rows if selection.match.search(row_text(row))]
    column = selection.sort
    if column is None and selection.top is not None:
        column = next((c for c in ("resident", "size", "count") if c in names), None)
    if column is not None and column in names:
        rows = _sorted(rows, column)
    if selection.reverse:
        rows.reverse()
    return rows[: selection.top] if selection.top is not None else rows


def _sorted(rows: Sequence[Any], column: str) -> List[Any]:
    """Addresses and texts ascending, numbers descending; what is missing comes last."""
    present = [row for row in rows if getattr(row, column) is not None]
    missing = [row for row in rows if getattr(row, column) is None]
    values = [getattr(row, column) for row in present]
    if all(isinstance(v, (int, float)) and not isinstance(v, Address) for v in values):
        present.sort(key=lambda row: -getattr(row, column))
    elif all(isinstance(v, int) for v in values):
        present.sort(key=lambda row: int(getattr(row, column)))
    else:
        present.sort(key=lambda row: str(getattr(row, column)))
    return present + missing


def row_text(row: Any) -> str:
    """What --match looks into: all texts and addresses of a row."""
    parts: List[str] = []
    for f in dataclasses.fields(row):
        value = getattr(row, f.name)
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, Address):
                parts.append(f"{item:016x}")
            elif isinstance(item, (str, int)) and not isinstance(item, bool):
                parts.append(str(item))
    return " ".join(parts)
