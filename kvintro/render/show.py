# SPDX-License-Identifier: LGPL-2.1-or-later
"""The contents of a region as text. Where the kernel has a file of the same, its lines are written here."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Optional

from kvintro.model import Report, Size, Table
from kvintro.render.text import BOLD, DIM, Line, paint, table_text
from kvintro.render.values import value_text

#: Rows of a further table that are shown next to others; --table shows all.
_BRIEF = 12


def show_lines(report: Report, color: bool, width: int) -> List[str]:
    """Head, totals, tables; of one table that was asked for, nothing but its lines."""
    region = report.extra["region"]
    if report.extra.get("table"):
        return [line for table in report.tables for line in table_lines(table, color, partial=report.partial)]
    out = [paint(f"{region.name}   {_place(region)}", BOLD, color)]
    if region.note:
        out.append(region.note)
    if region.reason:
        out.append(region.reason)
    out += totals_lines(report.extra["totals"])
    for number, table in enumerate(report.tables):
        out.append("")
        if table.title:
            out.append(paint(table.title, BOLD, color))
        out += table_lines(table, color, None if number == 0 else _BRIEF, partial=report.partial)
    return out


def _place(region: Any) -> str:
    if region.state != "present":
        return {"absent": "not on this kernel", "unknown": "not known from this source"}[region.state]
    where = f"{region.start:016x}-{region.end:016x}   {value_text(region.size)}"
    return f"{where}   ({region.provenance})"


def totals_lines(totals: Any) -> List[str]:
    """Names and values, one a line."""
    pad = max((len(name) for name in totals), default=0)
    return [f"  {name.replace('_', ' '):{pad}}  {value_text(value) or '-'}" for name, value in totals.items()]


def table_lines(table: Table, color: bool, most: Optional[int] = None, *, partial: bool = False) -> List[str]:
    """A table's rows, at most so many; lines of the kernel's own where it has a file of the same.

    :param partial: whether there may be more than the rows.
    """
    rows = table.rows if most is None else table.rows[:most]
    write = _LINES.get(table.key)
    if write is not None:
        out = [write(row) for row in rows]
    elif rows:
        lines = [Line({c.key: _cell(getattr(row, c.key)) for c in table.columns}) for row in rows]
        # Columns that say nothing on any line are left away; what nothing of is there is in the totals.
        columns = [c for c in table.columns if any(_says(getattr(row, c.key)) for row in rows)]
        out = table_text(columns, lines, color=color, width=0)
    else:
        out = [paint("none found" if partial else "none", DIM, color)]
    if len(rows) < len(table.rows):
        out.append(paint(f"and {len(table.rows) - len(rows)} more: --table {table.key}", DIM, color))
    return out


def _says(value: Any) -> bool:
    return value != 0 if isinstance(value, Size) else bool(_cell(value))


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else ""
    return value_text(value)


def area_line(row: Any) -> str:
    """A line of /proc/vmallocinfo (mm/vmalloc.c:vmalloc_info_show), whose ends are exclusive."""
    line = f"0x{row.start:016x}-0x{row.end + 1:016x} {row.size:7d}"
    if row.kind == "unpurged":
        return f"{line} unpurged vm_area"
    if row.kind in ("vm_map_ram", "unknown"):
        return f"{line} {row.kind}"
    parts = [line]
    if row.caller:
        parts.append(row.caller)
    if row.pages:
        parts.append(f"pages={row.pages}")
    if row.physical is not None:
        parts.append(f"phys=0x{row.physical:016x}")
    parts += row.flags
    parts += [f"N{node}={count}" for node, count in row.nodes.items()]
    return " ".join(parts)


_LINES: Dict[str, Callable[[Any], str]] = {"areas": area_line}
