# SPDX-License-Identifier: LGPL-2.1-or-later
"""Verdicts as text: a line for each rule, and under it where it is broken."""

from __future__ import annotations

from typing import List

from kvintro.model import Report
from kvintro.render.text import DIM, GREEN, RED, YELLOW, paint
from kvintro.render.values import value_text
from kvintro.text import printable

_STATES = {
    "ok": ("ok", GREEN),
    "failed": ("FAILED", RED),
    "unknown": ("?", YELLOW),
    "not-applicable": ("-", DIM),
}
_MAX_PLACES = 20


def check_lines(report: Report, color: bool, width: int) -> List[str]:
    """The rules, and places at most :data:`_MAX_PLACES` each."""
    (table,) = report.tables
    out: List[str] = []
    for row in table.rows:
        word, style = _STATES[row.state]
        out.append(
            f"{paint(f'{word:6}', style, color)}  {row.title}  "
            + paint(f"({printable(row.detail)})", DIM, color)
        )
        for place in row.places[:_MAX_PLACES]:
            size = value_text(place.size)
            out.append(f"        {place.start:016x}-{place.end:016x}  {size:>7}  {printable(place.what)}")
        if len(row.places) > _MAX_PLACES:
            out.append(f"        ... and {len(row.places) - _MAX_PLACES} more places")
    return out
