# SPDX-License-Identifier: LGPL-2.1-or-later
"""Translations as text: a table, then notes on the addresses, and their walks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Dict, List

from kvintro.render.text import BOLD, RED, YELLOW, Line, paint, prose, table_text, wrapped
from kvintro.render.values import field_of, value_text

if TYPE_CHECKING:
    from kvintro.queries.translate import Translation
    from kvintro.reports.translate import TranslateReport


def translate_lines(report: TranslateReport, color: bool, width: int) -> List[str]:
    """The table, then notes and walks."""
    (table,) = report.tables
    lines = [Line(_cells(row), "" if row.state == "mapped" else RED) for row in table.rows]
    out = table_text(table.columns, lines, color=color, width=width)
    many = len(table.rows) > 1
    for row in table.rows:
        who = f"{row.input}: " if many else ""
        if row.note:
            out += prose(f"{who}{row.note}", width, YELLOW, color, "  ", "    ")
    if report.extra.get("walk"):
        for row in table.rows:
            out += _walk_lines(row, color, width)
    return out


def _cells(row: Translation) -> Dict[str, str]:
    cells = {
        key: value_text(field_of(row, key)) for key in ("virtual", "physical", "page", "region", "symbol")
    }
    cells["input"] = row.input
    cells["pfn"] = "" if row.pfn is None else f"{row.pfn:x}"
    cells["page_size"] = "" if row.page_size is None else value_text(row.page_size)
    cells["state"] = row.state
    if row.taken_as != "virtual":
        cells["input"] += f" ({row.taken_as})"
    if row.in_dump is False and row.state == "mapped":
        cells["state"] += ", content not in this source"
    return cells


def _walk_lines(row: Translation, color: bool, width: int) -> List[str]:
    where = row.input if row.virtual is None else f"{row.virtual:016x}"
    by = f" by {row.root}" if row.root else ""
    out = ["", paint(f"{where}{by}", BOLD, color)]
    for step in row.walk:
        value = "?" * 16 if step.value is None else f"{step.value:016x}"
        said = "  ".join(part for part in (" ".join(step.flags) or step.kind or "", step.note) if part)
        head = f"  {step.level}  {step.entry_address:016x} => {value}  "
        out += [line.rstrip() for line in wrapped(said, width, head, " " * len(head))]
    if row.virtual is not None and row.physical is not None and row.page_size:
        base = row.physical & ~(row.page_size - 1)
        out.append(f"  page {base:016x}, {value_text(row.page_size)}; offset {row.physical - base:#x}")
    else:
        out.append("  " + paint(f"({row.state})", RED, color))
    return out
