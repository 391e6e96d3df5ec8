# SPDX-License-Identifier: LGPL-2.1-or-later
"""The contents of a region as text, in the format of the kernel's own file if there is one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable, Dict, List, Mapping, Optional

from kvintro.model import Row, Size, Table
from kvintro.render.colors import title_style
from kvintro.render.text import BOLD, DIM, RED, Line, columns_of, paint, pairs_text, table_text, wrapped
from kvintro.render.values import field_of, value_text

if TYPE_CHECKING:
    from kvintro.regions.vmalloc import AreaRow
    from kvintro.reports.show import RegionHead, ShowReport

#: Maximum number of rows of every table except the first; --table shows all rows.
_BRIEF = 12
_PROBLEM = "problem"  # the field of a row that describes a problem
_CALLER = 46  # column of the caller in /proc/vmallocinfo


def show_lines(report: ShowReport, color: bool, width: int) -> List[str]:
    """Head, totals and tables; if one table was requested, only its lines."""
    region = report.extra["region"]
    if report.extra.get("table"):
        return [
            line
            for table in report.tables
            for line in table_lines(table, color, width, partial=report.partial)
        ]
    first, *rest = wrapped(f"{region.name}   {_place(region)}", width, "", "  ")
    out = [paint(region.name, title_style(region.key), color) + paint(first[len(region.name) :], BOLD, color)]
    out += [paint(line, BOLD, color) for line in rest]
    for text in filter(None, (region.note, region.reason)):
        out += wrapped(text, width)
    out += totals_lines(report.extra["totals"], width)
    for number, table in enumerate(report.tables):
        out.append("")
        if table.title:
            out.append(paint(table.title, BOLD, color))
        out += table_lines(table, color, width, None if number == 0 else _BRIEF, partial=report.partial)
    return out


def _place(region: RegionHead) -> str:
    if region.state != "present":
        return {"absent": "not on this kernel", "unknown": "not known from this source"}[region.state]
    return f"{region.start:016x}-{region.end:016x}   {value_text(region.size)}   ({region.provenance})"


def totals_lines(totals: Mapping[str, object], width: int) -> List[str]:
    """One line per name and value."""
    pairs = [(name.replace("_", " "), value_text(value) or "-") for name, value in totals.items()]
    return pairs_text(pairs, width, "  ")


def table_lines(
    table: Table, color: bool, width: int, most: Optional[int] = None, *, partial: bool = False
) -> List[str]:
    """Rows of a table, as lines of the kernel's own file if there is one.

    :param most: number of rows to show; None for all.
    :param partial: whether there may be more rows than the table has.
    """
    rows = table.rows if most is None else table.rows[:most]
    write = _LINES.get(table.key)
    if write is not None:
        out = [text for row in rows for text in _kernel_line(write(row), width)]
    elif rows:
        lines = [_row_line(table, row) for row in rows]
        # Columns that are empty in every line are hidden; the totals have their zeros.
        columns = [
            c for c in table.columns if c.key != _PROBLEM and any(_says(field_of(row, c.key)) for row in rows)
        ]
        out = table_text(columns, lines, color=color, width=width)
    else:
        out = [paint("none found" if partial else "none", DIM, color)]
    if len(rows) < len(table.rows):
        out.append(paint(f"and {len(table.rows) - len(rows)} more: --table {table.key}", DIM, color))
    return out


def _row_line(table: Table, row: Row) -> Line:
    """A row, with its problem below it."""
    problem = _cell(field_of(row, _PROBLEM))
    return Line(
        {c.key: _cell(field_of(row, c.key)) for c in table.columns},
        notes=(problem,) if problem else (),
        notes_style=RED,
    )


def _says(value: object) -> bool:
    return value != 0 if isinstance(value, Size) else bool(_cell(value))


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else ""
    return value_text(value)


def _kernel_line(text: str, width: int) -> List[str]:
    """A line of the kernel's own file. The rest goes below the caller if there is room."""
    lines = wrapped(text, width, "", " " * _CALLER)
    if width and max(map(columns_of, lines)) > width:
        return wrapped(text, width, "", " " * 4)
    return lines


def area_line(row: AreaRow) -> str:
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


# Functions that format rows, by table. Each takes the rows of its own table.
_LINES: Dict[str, Callable[[Any], str]] = {"areas": area_line}
