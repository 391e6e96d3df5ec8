# SPDX-License-Identifier: LGPL-2.1-or-later
"""``identify`` as text: one paragraph per address, the most specific line first."""

from __future__ import annotations

from typing import TYPE_CHECKING, List

from kvintro.render.colors import region_style
from kvintro.render.text import BOLD, DIM, RED, YELLOW, paint, prose
from kvintro.render.values import value_text

if TYPE_CHECKING:
    from kvintro.reports.identify import IdentifyReport


def identify_lines(report: IdentifyReport, color: bool, width: int) -> List[str]:
    """One paragraph per address."""
    (table,) = report.tables
    out: List[str] = []
    for row in table.rows:
        if out:
            out.append("")
        head = row.input
        if row.address is not None and f"{row.address:016x}" != row.input.lower():
            head += f" = {row.address:016x}"
        out += prose(head, width, BOLD, color, "", "  ")
        for number, identity in enumerate(row.identities):
            last = number == len(row.identities) - 1
            style = region_style(row.region) if last and row.region else ""
            out += prose(identity.text, width, style, color, "  ", "    ")
        if row.state == "unknown":
            pass  # no kernel was read
        elif row.physical is not None and row.state == "mapped":
            size = f" in a {value_text(row.page_size)} page" if row.page_size else ""
            out.append(paint(f"  physical {row.physical:016x}{size}", DIM, color))
        else:
            out.append(paint(f"  {row.state}", RED, color))
        if row.note:
            out += prose(row.note, width, YELLOW, color, "  ", "    ")
    return out
