# SPDX-License-Identifier: LGPL-2.1-or-later
"""The memory map as text: holes dimmed, the used part below its region, absent regions at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Dict, List

from kvintro.model import own_memory
from kvintro.render.colors import region_style
from kvintro.render.drawing import Placed, placed_rows
from kvintro.render.text import DIM, Line, paint, pairs_text, prose, table_text, wrapped
from kvintro.render.values import value_text
from kvintro.text import size_text

if TYPE_CHECKING:
    from kvintro.reports.layout import LayoutReport


# Shown only on a terminal.
_NEXT = "next: kvintro show vmalloc, kvintro explain vmalloc, kvintro identify ADDRESS, kvintro help"


def layout_lines(report: LayoutReport, color: bool, width: int) -> List[str]:
    """The table of the map, and the regions that this kernel does not have."""
    (table,) = report.tables
    placed = placed_rows(report)
    depths: Dict[str, int] = {}
    for here in placed:
        depths[here.key] = depths.get(here.parent, 0) + 1 if here.parent else 0
    lines = [
        line for here in placed for line in _row_lines(here, 0 if here.kind == "hole" else depths[here.key])
    ]
    out = table_text(table.columns, lines, color=color, width=width)
    for state, title in (("absent", "not on this kernel"), ("unknown", "not known from this source")):
        rows = [row for row in table.rows if row.state == state]
        if rows:
            out += ["", paint(f"{title}:", DIM, color)]
            missing = [(row.key, f"{row.name}: {row.reason}") for row in rows]
            out += [paint(text, DIM, color) for text in pairs_text(missing, width, "  ")]
    noted = [row for row in table.rows if row.state == "present" and row.reason and not row.at_least]
    if noted:
        out.append("")
        for row in noted:
            out += wrapped(f"{row.name}: {row.reason}", width, "", "  ")
    if width:
        out += ["", *prose(_NEXT, width, DIM, color, "", "  ")]
    return out


def mapped_text(row: Placed) -> str:
    """Mapped size of a region, for rows in which it is known."""
    if not row.mapped:
        return "nothing"
    return f"≥ {size_text(row.mapped)}" if row.at_least else size_text(row.mapped)


def drawn_text(row: Placed) -> str:
    """What is mapped in a region, with shared pages apart from memory of its own, for drawings."""
    own = own_memory(row.mapped, row.shared)
    if own is None:
        return f"{mapped_text(row)} mapped"
    return f"{'≥ ' if row.at_least else ''}{size_text(own)} mapped + {size_text(row.shared or 0)} shared"


def _row_lines(row: Placed, depth: int) -> List[Line]:
    """The row itself, and the lines below it.

    :param depth: number of regions that contain it.
    """
    hole = row.kind == "hole"
    cells: Dict[str, str] = {
        "start": value_text(row.start),
        "end": value_text(row.end),
        "offset": value_text(row.offset),
        "size": value_text(row.size),
        "key": "  " * depth + (f"· {'unused' if row.key == 'hole' else row.key}" if hole else row.key),
        "name": "" if row.key == "hole" else row.name,
        "provenance": "" if row.provenance is None else row.provenance,
    }
    cells.update(_mapped_cells(row))
    if row.slide is not None:
        cells["slide"] = value_text(row.slide) if row.slide else "-"
    notes = [row.note] if row.note else []
    own = own_memory(row.mapped, row.shared)
    if own is not None:
        notes.append(f"{size_text(own)} of its own, the rest shared")
    style = DIM if hole else ""
    styles = {} if hole else {"key": region_style(row.key)}
    lines = [Line(cells, style, styles, ("; ".join(notes),) if notes else (), "key")]
    if row.used_start is not None and row.used_end is not None:
        used = {
            "start": value_text(row.used_start),
            "end": value_text(row.used_end),
            "size": size_text(row.used_end - row.used_start + 1),
            "key": "  used",
            "name": row.used_note,
        }
        lines.append(Line(used, region_style(row.key)))
    return lines


def _mapped_cells(row: Placed) -> Dict[str, str]:
    of_processes = row.root_noun.startswith("process")
    if row.mapped is not None:
        pages = f"in {row.roots} {row.root_noun}" if of_processes else " ".join(row.leaves)
        return {"mapped": mapped_text(row), "leaves": pages}
    if row.unreadable is not None:
        return {"mapped": "not known"}
    if row.roots == 0 and of_processes:
        return {"mapped": "nothing", "leaves": "in no process"}
    return {}
