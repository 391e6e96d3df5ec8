# SPDX-License-Identifier: LGPL-2.1-or-later
"""What KASLR moved, as text."""

from __future__ import annotations

from typing import Any, List, Sequence, Tuple

from kvintro.model import Report
from kvintro.render.text import BOLD, DIM, Line, paint, table_text
from kvintro.render.values import value_text

# What a narrow terminal can do without, least needed first.
_SPARE = ("provenance", "granularity", "default")
_CPUS = 4  # CPUs whose areas are shown


def kaslr_lines(report: Report, color: bool, width: int) -> List[str]:
    """Whether it is on; a table; how each number of slots follows."""
    extra = report.extra
    if extra["enabled"] is None:
        head = f"KASLR: not known ({extra['enabled_reason']})"
    else:
        head = f"KASLR {'on' if extra['enabled'] else 'off'} ({extra['enabled_provenance']})"
    (table,) = report.tables
    rows, more = _brief(table.rows)
    lines = [
        Line({c.key: _cell(row, c.key) for c in table.columns}, "" if row.state == "on" else DIM)
        for row in rows
    ]
    out = [
        paint(head, BOLD, color),
        "",
        *table_text(table.columns, lines, color=color, width=width, spare=_SPARE),
    ]
    if more:
        out.append(paint(f"and {more} more CPUs: --json", DIM, color))
    if extra["memory_bits"]:
        out += ["", f"direct map, vmalloc and vmemmap together: {extra['memory_bits']:g} bits"]
    told = [(row.what, row.computed, row.note) for row in rows if row.computed or row.note]
    if told:
        pad = max(len(what) for what, _, _ in told)
        out.append("")
        for what, *texts in told:
            out.append(f"  {what:{pad}}  {'; '.join(text for text in texts if text)}")
    return out


def _brief(rows: Sequence[Any]) -> Tuple[List[Any], int]:
    """The rows with only a few of the CPUs, and how many were left away."""
    cpus = [row for row in rows if row.key.startswith("cpu_entry_area.")]
    dropped = {row.key for row in sorted(cpus, key=lambda row: int(row.key.split(".")[1]))[_CPUS:]}
    return [row for row in rows if row.key not in dropped], len(dropped)


def _cell(row: Any, key: str) -> str:
    value = getattr(row, key)
    if key == "slots":
        sign = {"at least": "≥ ", "at most": "≤ "}.get(row.bound, "")
        return "" if value is None else f"{sign}{value}"
    if key == "bits":
        return {"on": f"{value:g}" if value is not None else "", "off": "off"}.get(row.state, "?")
    return value_text(value)
