# SPDX-License-Identifier: LGPL-2.1-or-later
"""Two kernels compared as text: what differs in sentences, then the tables."""

from __future__ import annotations

import textwrap
from typing import List

from kvintro.model import Report
from kvintro.render.text import BOLD, DIM, YELLOW, lines_of, paint, table_text

# What a narrow terminal can do without, least needed first.
_SPARE = ("a_size", "b_size", "moved")


def diff_lines(report: Report, color: bool, width: int) -> List[str]:
    """Findings, and tables of what differs."""
    findings, *tables = report.tables
    out: List[str] = []
    if report.extra["same"] is not False:
        out.append("nothing differs" if report.extra["same"] else "nothing differs in what could be compared")
    pad = max((len(row.kind) for row in findings.rows), default=0)
    for row in findings.rows:
        wide = max(width - pad - 2, 40) if width else 10000
        first, *rest = textwrap.wrap(row.text, wide, break_on_hyphens=False) or [""]
        kind = paint(f"{row.kind:{pad}}", YELLOW, color)
        out.append(f"{kind}  {first}")
        out += [" " * (pad + 2) + line for line in rest]
    for table in tables:
        if table.rows:
            out += ["", paint(table.title, BOLD, color)]
            out += table_text(table.columns, lines_of(table), color=color, width=width, spare=_SPARE)
    counts = ", ".join(f"{count} {name}" for name, count in report.extra["compared"].items())
    return [*out, "", paint(f"compared: {counts}", DIM, color)]
