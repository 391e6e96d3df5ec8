# SPDX-License-Identifier: LGPL-2.1-or-later
"""Text output: the head of a report, its tables or the output of its own renderer, and its notes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Callable, List, Mapping

from kvintro.model import Report
from kvintro.render.check import check_lines
from kvintro.render.diff import diff_lines
from kvintro.render.explain import explain_lines
from kvintro.render.identify import identify_lines
from kvintro.render.info import info_lines
from kvintro.render.kaslr import kaslr_lines
from kvintro.render.layout import layout_lines
from kvintro.render.page import page_lines
from kvintro.render.pages import pages_lines
from kvintro.render.pte import pte_lines
from kvintro.render.read import read_lines
from kvintro.render.search import search_lines
from kvintro.render.show import show_lines
from kvintro.render.text import BOLD, head_lines, lines_of, note_lines, paint, table_text
from kvintro.render.translate import translate_lines
from kvintro.render.user import user_lines

if TYPE_CHECKING:
    from kvintro.reports.report import FullReport


def render_text(report: Report, *, color: bool, width: int) -> str:
    """Format head, tables and notes of a report."""
    out = head_lines(report.head, color, width)
    lines = LINES.get(report.command)
    out += _tables(report, color, width) if lines is None else lines(report, color, width)
    notes = [note for note in report.notes if note not in report.head]
    if notes:
        out.append("")
        out += note_lines(notes, color, width)
    return "\n".join(out) + "\n"


def _tables(report: Report, color: bool, width: int) -> List[str]:
    """All tables, one after another."""
    out: List[str] = []
    for table in report.tables:
        if out:
            out.append("")
        if table.title:
            out.append(paint(table.title, BOLD, color))
        out.extend(table_text(table.columns, lines_of(table), color=color, width=width))
    return out


def _report_lines(report: FullReport, color: bool, width: int) -> List[str]:
    """All sections, each in the format of its own command."""
    out: List[str] = []
    for section in report.extra["sections"]:
        out += [paint(f"== {section.title} ==", BOLD, color), ""]
        if section.problem:
            out += note_lines([section.problem], color, width)
        if section.report is not None:
            out += render_text(section.report, color=color, width=width).rstrip("\n").split("\n")
        out.append("")
    return out[:-1]


def _survey_lines(report: Report, color: bool, width: int) -> List[str]:
    """Tables with rows. The others say that there is nothing to see."""
    return _tables(replace(report, tables=[table for table in report.tables if table.rows]), color, width)


#: Functions that format reports for which plain tables are not enough, by command: (report, colour, width) ->
#: lines. Each takes its command's type of report, so the types of that parameter differ.
LINES: Mapping[str, Callable[[Any, bool, int], List[str]]] = {
    "check": check_lines,
    "diff": diff_lines,
    "explain": explain_lines,
    "identify": identify_lines,
    "info": info_lines,
    "kaslr": kaslr_lines,
    "layout": layout_lines,
    "page": page_lines,
    "pages": pages_lines,
    "pte": pte_lines,
    "read": read_lines,
    "report": _report_lines,
    "search": search_lines,
    "show": show_lines,
    "survey": _survey_lines,
    "translate": translate_lines,
    "user": user_lines,
}
