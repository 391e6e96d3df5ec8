# SPDX-License-Identifier: LGPL-2.1-or-later
"""The memory map as text: holes dimmed, the part in use under its region, what is absent below."""

from __future__ import annotations

from typing import Any, Dict, List

from kvintro.model import Report
from kvintro.render.text import CYAN, DIM, Line, paint, table_text
from kvintro.render.values import value_text
from kvintro.text import size_text

# What a narrow terminal can do without, least needed first.
_SPARE = ("offset", "provenance", "leaves", "slide")


def layout_lines(report: Report, color: bool, width: int) -> List[str]:
    """The map's table, and what this kernel does not have."""
    (table,) = report.tables
    lines: List[Line] = []
    for row in table.rows:
        if row.state == "present":
            lines.extend(_row_lines(row))
    out = table_text(table.columns, lines, color=color, width=width, spare=_SPARE)
    for state, title in (("absent", "absent here"), ("unknown", "not known from this source")):
        rows = [row for row in table.rows if row.state == state]
        if rows:
            out += ["", paint(f"{title}:", DIM, color)]
            pad = max(len(row.name) for row in rows)
            out += [paint(f"  {row.name:{pad}}  {row.reason}", DIM, color) for row in rows]
    noted = [row for row in table.rows if row.state == "present" and row.reason and not row.at_least]
    if noted:
        out.append("")
        out += [f"{row.name}: {row.reason}" for row in noted]
    return out


def mapped_text(row: Any) -> str:
    """How much of a region is mapped; ``row.mapped`` is known."""
    if not row.mapped:
        return "nothing"
    return f"≥ {size_text(row.mapped)}" if row.at_least else size_text(row.mapped)


def _row_lines(row: Any) -> List[Line]:
    hole = row.kind == "hole"
    cells: Dict[str, str] = {
        "start": value_text(row.start),
        "end": value_text(row.end),
        "offset": value_text(row.offset),
        "size": value_text(row.size),
        "name": ("· " if hole else "") + row.name,
        "provenance": "" if row.provenance is None else row.provenance,
    }
    if row.note and hole:
        cells["name"] += f" ({row.note})"
    if row.mapped is not None:
        cells["mapped"] = mapped_text(row)
        cells["leaves"] = " ".join(row.leaves)
        if row.root_noun.startswith("process"):
            cells["leaves"] = f"in {row.roots} {row.root_noun}"
    elif row.unreadable is not None:
        cells["mapped"] = "not known"
    elif row.roots == 0 and row.root_noun.startswith("process"):
        cells["mapped"] = "nothing"
        cells["leaves"] = "in no process"
    if row.slide is not None:
        cells["slide"] = value_text(row.slide) if row.slide else "-"
    lines = [Line(cells, DIM if hole else "")]
    below: Dict[str, str] = {}
    if row.note and not hole:
        below["name"] = f"  {row.note}"
    if row.shared and row.shared * 2 > row.mapped:
        below["mapped"] = size_text(row.mapped - row.shared)
        below["leaves"] = "not shared"
    if below:
        lines.append(Line(below, CYAN))
    if row.used_start is not None:
        used = {
            "start": value_text(row.used_start),
            "end": value_text(row.used_end),
            "size": size_text(row.used_end - row.used_start + 1),
            "name": f"  used: {row.used_note}" if row.used_note else "  used",
        }
        lines.append(Line(used, CYAN))
    return lines
