# SPDX-License-Identifier: LGPL-2.1-or-later
"""Translations as text: a table, and under it what there is to say about each address, and its walk."""

from __future__ import annotations

from typing import Any, Dict, List

from kvintro.model import Report
from kvintro.render.text import BOLD, RED, YELLOW, Line, paint, table_text
from kvintro.render.values import value_text

# What a narrow terminal can do without, least needed first.
_SPARE = ("page_size", "input", "page")


def translate_lines(report: Report, color: bool, width: int) -> List[str]:
    """The table, then notes and walks."""
    (table,) = report.tables
    lines = [Line(_cells(row), "" if row.state == "mapped" else RED) for row in table.rows]
    out = table_text(table.columns, lines, color=color, width=width, spare=_SPARE)
    many = len(table.rows) > 1
    for row in table.rows:
        who = f"{row.input}: " if many else ""
        if row.note:
            out.append(paint(f"  {who}{row.note}", YELLOW, color))
    if report.extra.get("walk"):
        for row in table.rows:
            out += _walk_lines(row, color)
    return out


def _cells(row: Any) -> Dict[str, str]:
    cells = {
        key: value_text(getattr(row, key)) for key in ("virtual", "physical", "page", "region", "symbol")
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


def _walk_lines(row: Any, color: bool) -> List[str]:
    where = row.input if row.virtual is None else f"{row.virtual:016x}"
    by = f" by {row.root}" if row.root else ""
    out = ["", paint(f"{where}{by}", BOLD, color)]
    for step in row.walk:
        value = "?" * 16 if step.value is None else f"{step.value:016x}"
        told = "  ".join(part for part in (" ".join(step.flags) or step.kind or "", step.note) if part)
        out.append(f"  {step.level}  {step.entry_address:016x} => {value}  {told}".rstrip())
    if row.virtual is not None and row.physical is not None and row.page_size:
        base = row.physical & ~(row.page_size - 1)
        out.append(f"  page {base:016x}, {value_text(row.page_size)}; offset {row.physical - base:#x}")
    else:
        out.append("  " + paint(f"({row.state})", RED, color))
    return out
