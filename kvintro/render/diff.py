# SPDX-License-Identifier: LGPL-2.1-or-later
"""Comparison of two kernels as text: the differences as sentences, then the tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, List, Sequence

from kvintro.model import Table
from kvintro.render.text import BOLD, DIM, YELLOW, lines_of, paint, prose, table_text, wrapped

if TYPE_CHECKING:
    from kvintro.reports.diff import DiffReport, FindingRow


def diff_lines(report: DiffReport, color: bool, width: int) -> List[str]:
    """Findings, then the tables."""
    findings: Table[FindingRow] = report.tables[0]
    tables: Sequence[Table] = report.tables[1:]
    out: List[str] = []
    if report.extra["same"] is not False:
        out.append("nothing differs" if report.extra["same"] else "nothing differs in what could be compared")
    pad = max((len(row.kind) for row in findings.rows), default=0)
    for row in findings.rows:
        first, *rest = wrapped(row.text, width, " " * (pad + 2))
        out.append(paint(f"{row.kind:{pad}}", YELLOW, color) + first[pad:])
        out += rest
    for table in tables:
        if table.rows:
            out += ["", paint(table.title, BOLD, color)]
            out += table_text(table.columns, lines_of(table), color=color, width=width)
    counts = ", ".join(f"{count} {name}" for name, count in report.extra["compared"].items())
    return [*out, "", *prose(f"compared: {counts}", width, DIM, color, "", "  ")]
