# SPDX-License-Identifier: LGPL-2.1-or-later
"""``check`` as text: the findings, rule by rule, then all rules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Dict, List

from kvintro.render.text import BOLD, CYAN, DIM, GREEN, RED, YELLOW, paint, prose, wrapped
from kvintro.render.values import value_text

if TYPE_CHECKING:
    from kvintro.reports.check import CheckReport, FindingRow

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


def check_lines(report: CheckReport, color: bool, width: int) -> List[str]:
    """Findings, at most :data:`_MAX_PLACES` per rule, then one line per rule."""
    findings, checks = report.tables
    titles = {row.key: row.title for row in checks.rows}
    groups: Dict[str, List[FindingRow]] = {}
    for row in findings.rows:
        groups.setdefault(row.rule, []).append(row)
    out: List[str] = []
    for rule, rows in groups.items():
        word = paint(f"{rows[0].severity:8}", _SEVERITIES[rows[0].severity], color)
        first, *rest = wrapped(f"rule does not hold: {titles[rule]}", max(width - 9, 1) if width else 0)
        out.append(f"{word} {paint(first, BOLD, color)}")
        out += [" " * 9 + paint(line, BOLD, color) for line in rest]
        for row in rows[:_MAX_PLACES]:
            out += wrapped(_place(row), width, " " * 9, " " * 11)
        if len(rows) > _MAX_PLACES:
            out.append(f"         ... and {len(rows) - _MAX_PLACES} more")
        out.append("")
    counts = report.extra["counts"]
    parts = [f"{count} {name}{'s' if count > 1 else ''}" for name, count in counts.items() if count]
    missed = sum(row.unknown is not None for row in checks.rows)
    if missed:
        parts = parts or ["nothing found in what could be checked"]
        parts.append(f"{missed} rule{'s' if missed > 1 else ''} could not be checked in full")
    summary = ", ".join(parts) if parts else "nothing found"
    out += [*prose(f"{summary}; these rules were checked:", width, BOLD, color), ""]
    for check in checks.rows:
        word, style = _STATES[check.state]
        why = "not applicable: " if check.state == "not-applicable" else ""
        detail = f"({why}{check.detail})"
        indent = " " * 9
        if not width or len(indent) + len(check.title) + 2 + len(detail) <= width:
            out.append(f"{paint(f'{word:7}', style, color)}  {check.title}  {paint(detail, DIM, color)}")
            continue
        first, *rest = wrapped(check.title, width - len(indent))
        out.append(f"{paint(f'{word:7}', style, color)}  {first}")
        out += [indent + line for line in rest]
        out += prose(detail, width, DIM, color, indent, indent + " ")
    return out


def _place(row: FindingRow) -> str:
    what = row.what
    if row.start is None:
        return what
    if row.end is None:
        return f"{row.start:016x}  {what}"
    return f"{row.start:016x}-{row.end:016x}  {value_text(row.size):>7}  {what}"
