# SPDX-License-Identifier: LGPL-2.1-or-later
"""The report of everything as text: each part as its own command prints it."""

from __future__ import annotations

from typing import List

from kvintro.model import Report
from kvintro.render.text import BOLD, YELLOW, paint, render_text


def report_lines(report: Report, color: bool, width: int) -> List[str]:
    """All sections, one after the other."""
    out: List[str] = []
    for section in report.extra["sections"]:
        out += [paint(f"== {section.title} ==", BOLD, color), ""]
        if section.problem:
            out.append(paint(f"note: {section.problem}", YELLOW, color))
        if section.report is not None:
            out += render_text(section.report, color=color, width=width).rstrip("\n").split("\n")
        out.append("")
    return out[:-1]
