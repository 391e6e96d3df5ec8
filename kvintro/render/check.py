# SPDX-License-Identifier: LGPL-2.1-or-later
"""The kernel against itself as text: what was found, rule by rule, and under it all rules."""

from __future__ import annotations

from typing import Any, Dict, List

from kvintro.model import Report
from kvintro.render.text import BOLD, CYAN, DIM, GREEN, RED, YELLOW, paint
from kvintro.render.values import value_text

_SEVERITIES = {"defect": RED, "warning": YELLOW, "notice": CYAN}
_STATES = {
    "ok": ("ok", GREEN),
    "failed": ("DEFECT", RED),
    "warning": ("warning", YELLOW),
    "notice": ("notice", CYAN),
    "unknown": ("unknown", YELLOW),
    "not-applicable": ("-", DIM),
}
_MAX_PLACES = 20


def check_lines(report: Report, color: bool, width: int) -> List[str]:
    """Findings, at most :data:`_MAX_PLACES` of a rule, and then each rule in a line."""
    tables = {table.key: table.rows for table in report.tables}
    titles = {row.key: row.title for row in tables["checks"]}
    groups: Dict[str, List[Any]] = {}
    for row in tables["findings"]:
        groups.setdefault(row.rule, []).append(row)
    out: List[str] = []
    for rule, rows in groups.items():
        word = paint(f"{rows[0].severity:8}", _SEVERITIES[rows[0].severity], color)
        out.append(f"{word} {paint(titles[rule], BOLD, color)}: not so")
        out += [f"         {_place(row)}" for row in rows[:_MAX_PLACES]]
        if len(rows) > _MAX_PLACES:
            out.append(f"         ... and {len(rows) - _MAX_PLACES} more")
        out.append("")
    counts = report.extra["counts"]
    told = [f"{count} {name}{'s' if count > 1 else ''}" for name, count in counts.items() if count]
    missed = sum(row.unknown is not None for row in tables["checks"])
    if missed:
        told = told or ["nothing found in what could be checked"]
        told.append(f"{missed} rule{'s' if missed > 1 else ''} could not be checked or not in full")
    summary = ", ".join(told) if told else "nothing found"
    out += [paint(f"{summary}; the rules, and what each compared:", BOLD, color), ""]
    for row in tables["checks"]:
        word, style = _STATES[row.state]
        why = "not applicable: " if row.state == "not-applicable" else ""
        detail = paint(f"({why}{row.detail})", DIM, color)
        out.append(f"{paint(f'{word:7}', style, color)}  {row.title}  {detail}")
    return out


def _place(row: Any) -> str:
    what: str = row.what
    if row.start is None:
        return what
    if row.end is None:
        return f"{row.start:016x}  {what}"
    return f"{row.start:016x}-{row.end:016x}  {value_text(row.size):>7}  {what}"
