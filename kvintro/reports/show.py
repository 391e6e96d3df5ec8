# SPDX-License-Identifier: LGPL-2.1-or-later
"""The contents of one region, filtered and sorted."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any, List, Mapping, Optional, Sequence, Tuple, TypedDict

from kvintro.errors import Unavailable, UsageError
from kvintro.kernels import Kernel, Region
from kvintro.model import (
    Absent,
    Address,
    AddressRange,
    Asked,
    Contents,
    Located,
    NoRange,
    Placement,
    Report,
    Row,
    Size,
    Table,
    Unknown,
)
from kvintro.queries.names import region_named
from kvintro.readers.mapped import unread
from kvintro.text import did_you_mean

_MOST_RANGES = 1 << 12  # maximum number of mapped ranges shown instead of contents


@dataclass(frozen=True)
class RegionHead:
    """The region whose contents are shown. As in the layout, ``end`` is inclusive."""

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
    """Which rows to show, and in which order. Totals always cover the whole region.

    :ivar table: key of the only table to show.
    :ivar match: show rows with text that matches this.
    :ivar within: show rows that overlap this range.
    :ivar sort: column to sort by. Addresses and texts ascend, sizes and counts descend.
    :ivar top: show at most this number of rows of each table; the largest ones unless ``sort`` is set.
    """

    table: Optional[str] = None
    match: Optional["re.Pattern[str]"] = None
    within: Optional[AddressRange] = None
    sort: Optional[str] = None
    reverse: bool = False
    top: Optional[int] = None


class _Always(TypedDict):
    region: RegionHead
    totals: Mapping[str, object]


class ShowExtra(_Always, total=False):
    """Further values of the report.

    :ivar table: key of the only table to show.
    """

    table: str


ShowReport = Report[Sequence[Table], ShowExtra]


def show(kernel: Kernel, key: str, asked: Asked, selection: Selection) -> ShowReport:
    """Return the contents of a region.

    :raises UsageError: there is no such region, table or column.
    """
    region = region_named(kernel, key)
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
    extra: ShowExtra = {"region": head, "totals": contents.totals}
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
    """Reasons why it is not fully known what the page tables map in a region."""
    if not isinstance(found, Placement):
        return ()
    try:
        roots = region.roots(kernel)
    except Unavailable as error:
        return (f"how much is mapped is not known: {error.what}",)
    whys = (unread(kernel, found.range.start, found.range.end, root.table) for root in roots)
    return [f"{region.name}: {why}" for why in whys if why]


def _only_mapped(kernel: Kernel, region: Region, why: str) -> Tuple[Contents, str]:
    """Ranges that the page tables map, for regions whose own records cannot be read, and the reason."""
    reason = f"its contents cannot be read: {why}"
    try:
        # Regions that only processes map are not searched.
        contents = region.mapped(kernel) if region.roots(kernel) else None
    except Unavailable:
        contents = None
    if contents is None:
        return Contents(()), reason
    (table,) = contents.tables
    if len(table.rows) > _MOST_RANGES:
        # For example espfix, which maps each page 65536 times.
        note = f"the first {_MOST_RANGES} of {len(table.rows)} ranges are shown"
        table = dataclasses.replace(table, rows=table.rows[:_MOST_RANGES])
        contents = dataclasses.replace(contents, tables=(table,), notes=(*contents.notes, note))
    return contents, f"{reason}; this is what the page tables map"


def _head(region: Region, found: Located, state: str, reason: Optional[str]) -> RegionHead:
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
    """Parse ``A-B`` in hex; B is exclusive as in the kernel's own files.

    :raises UsageError: the text is not a range.
    """
    try:
        start, end = (int(part, 16) for part in text.split("-"))
        # The exclusive end of the last page is 2^64, which needs 17 digits, so its last address is accepted.
        return AddressRange(start, end - 1 if end not in (0, (1 << 64) - 1) else (1 << 64) - 1)
    except (ValueError, NoRange):
        raise UsageError(f"{text} is not a range", "give A-B in hex; B itself is not included") from None


def parse_pattern(text: str) -> "re.Pattern[str]":
    """Parse a regular expression.

    :raises UsageError: the text is not one.
    """
    try:
        return re.compile(text)
    except re.error as error:
        raise UsageError(
            f"{text} is not a regular expression: {error}", "see the documentation of Python's re module"
        ) from None


def select(tables: Sequence[Table], selection: Selection) -> Tuple[Table, ...]:
    """Select tables and rows.

    :raises UsageError: there is no such table, or no table has the column.
    """
    if selection.table is not None:
        chosen = [table for table in tables if table.key == selection.table]
        if not chosen:
            keys = ", ".join(table.key for table in tables)
            near = did_you_mean(selection.table, [table.key for table in tables])
            raise UsageError(f"there is no table {selection.table} here", f"{near}tables are {keys}")
        tables = chosen
    if selection.sort is not None:
        names = list(dict.fromkeys(name for table in tables for name in _names(table)))
        if selection.sort not in names and any(table.rows for table in tables):
            raise UsageError(
                f"no table here has a column {selection.sort}",
                f"{did_you_mean(selection.sort, names)}columns are {', '.join(names)}",
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
    """Sort addresses and texts in ascending order, numbers in descending order; missing values come last."""
    values = [(getattr(row, column), row) for row in rows]
    present = [(value, row) for value, row in values if value is not None]
    if all(isinstance(value, (int, float)) and not isinstance(value, Address) for value, _ in present):
        present.sort(key=lambda pair: -pair[0])
    elif all(isinstance(value, int) for value, _ in present):
        present.sort(key=lambda pair: int(pair[0]))
    else:
        present.sort(key=lambda pair: str(pair[0]))
    return [row for _, row in present] + [row for value, row in values if value is None]


def row_text(row: Row) -> str:
    """Text of a row for --match: all its texts and numbers."""
    parts: List[str] = []
    for f in dataclasses.fields(row):
        value = getattr(row, f.name)
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, Address):
                parts.append(f"{item:016x}")
            elif isinstance(item, (str, int)) and not isinstance(item, bool):
                parts.append(str(item))
    return " ".join(parts)
