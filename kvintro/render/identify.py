# SPDX-License-Identifier: LGPL-2.1-or-later
"""What addresses are, as text: a paragraph for each, most specific first."""

from __future__ import annotations

from typing import List

from kvintro.model import Report
from kvintro.render.text import BOLD, DIM, RED, YELLOW, paint
from kvintro.render.values import value_text


def identify_lines(report: Report, color: bool, width: int) -> List[str]:
    """A paragraph an address."""
    (table,) = report.tables
    out: List[str] = []
    for row in table.rows:
        if out:
            out.append("")
        head = row.input
        if row.address is not None and f"{row.address:016x}" != row.input.lower():
            head += f" = {row.address:016x}"
        out.append(paint(head, BOLD, color))
        out += [f"  {identity.text}" for identity in row.identities]
        if row.physical is not None and row.state == "mapped":
            size = f" in a {value_text(row.page_size)} page" if row.page_size else ""
            out.append(paint(f"  physical {row.physical:016x}{size}", DIM, color))
        else:
            out.append(paint(f"  {row.state}", RED, color))
        if row.note:
            out.append(paint(f"  {row.note}", YELLOW, color))
    return out
