# SPDX-License-Identifier: LGPL-2.1-or-later
"""``search`` as text: one line per match."""

from __future__ import annotations

from typing import TYPE_CHECKING, List

from kvintro.render.text import DIM, Line, prose, table_text
from kvintro.render.values import value_text

if TYPE_CHECKING:
    from kvintro.reports.search import HitRow, SearchReport


def search_lines(report: SearchReport, color: bool, width: int) -> List[str]:
    """The matches, and how much was searched."""
    (table,) = report.tables
    extra = report.extra
    out = []
    if table.rows:
        columns = [column for column in table.columns if column.key != "match" or not _is_obvious(report)]
        out = [*table_text(columns, [_line(row) for row in table.rows], color=color, width=width), ""]
    many = f"{len(table.rows)} place{'' if len(table.rows) == 1 else 's'}" if table.rows else "not found"
    where = ", ".join(extra["regions"]) or {"kernel": "all memory", "physical": "physical memory"}.get(
        extra["space"], f"the memory of {extra['space']}"
    )
    text = f"{extra['pattern']}: {many}; searched {value_text(extra['searched'])} of {where}"
    return out + prose(text, width, DIM, color, "", "  ")


def _is_obvious(report: SearchReport) -> bool:
    """Whether all matches have the same bytes, namely those that were searched for."""
    (table,) = report.tables
    return len({(row.value, row.text) for row in table.rows}) == 1 and report.extra["pattern"][:1] != "/"


def _line(row: HitRow) -> Line:
    match = row.text if row.value is None else value_text(row.value)
    # The region is the least specific; if something else is known, only JSON has the region.
    things = [thing for thing in row.identities if thing.kind != "region"] or row.identities
    return Line(
        {
            "address": value_text(row.address),
            "match": match,
            "identities": "; ".join(thing.text for thing in things),
        }
    )
