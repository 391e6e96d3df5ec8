# SPDX-License-Identifier: LGPL-2.1-or-later
"""``kaslr`` as text."""

from __future__ import annotations

from typing import TYPE_CHECKING, List, Sequence, Tuple

from kvintro.render.text import BOLD, DIM, Line, paint, pairs_text, prose, table_text
from kvintro.render.values import field_of, value_text

if TYPE_CHECKING:
    from kvintro.model import Randomised
    from kvintro.reports.kaslr import KaslrReport

_CPUS = 4  # CPUs whose areas are shown


def kaslr_lines(report: KaslrReport, color: bool, width: int) -> List[str]:
    """Whether KASLR is on, the table, and how each number of slots was computed."""
    extra = report.extra
    if extra["enabled"] is None:
        head = f"KASLR: not known ({extra['enabled_reason']})"
    else:
        on = "image only" if extra.get("image_only") else "on"
        head = f"KASLR: {on if extra['enabled'] else 'off'} ({extra['enabled_provenance']})"
    (table,) = report.tables
    rows, more = _brief(table.rows)
    lines = [
        Line({c.key: _cell(row, c.key) for c in table.columns}, "" if row.state == "on" else DIM)
        for row in rows
    ]
    out = [
        *prose(head, width, BOLD, color, "", "  "),
        "",
        *table_text(table.columns, lines, color=color, width=width),
    ]
    if more:
        out.append(paint(f"and {more} more CPUs: --json", DIM, color))
    # If only one of them moves, its row has these bits.
    together = extra["memory_bits"]
    if together and all(round(row.bits or 0, 2) != together for row in rows):
        out += ["", f"direct map, vmalloc and vmemmap together: {together:g} bits"]
    computed = [
        (row.what, "; ".join(text for text in (row.computed, row.note) if text))
        for row in rows
        if row.computed or row.note
    ]
    return [*out, "", *pairs_text(computed, width, "  ")] if computed else out


def _brief(rows: Sequence[Randomised]) -> Tuple[List[Randomised], int]:
    """The rows with only a few of the CPUs, and how many CPUs are hidden."""
    cpus = [row for row in rows if row.key.startswith("cpu_entry_area.")]
    dropped = {row.key for row in sorted(cpus, key=lambda row: int(row.key.split(".")[1]))[_CPUS:]}
    return [row for row in rows if row.key not in dropped], len(dropped)


def _cell(row: Randomised, key: str) -> str:
    if key == "slots":
        sign = {"at least": "≥ ", "at most": "≤ "}.get(row.bound, "")
        return "" if row.slots is None else f"{sign}{row.slots}"
    if key == "bits":
        return {"on": "" if row.bits is None else f"{row.bits:g}", "off": "off"}.get(row.state, "?")
    return value_text(field_of(row, key))
