# SPDX-License-Identifier: LGPL-2.1-or-later
"""Explanations as text: wrapped prose, and a table of what defines and moves a region."""

from __future__ import annotations

from typing import TYPE_CHECKING, List, Sequence, Tuple

from kvintro.render.colors import title_style
from kvintro.render.text import CYAN, DIM, GREEN, paint, prose, wrapped
from kvintro.text import size_text

if TYPE_CHECKING:
    from kvintro.reports.explain import DefinitionRow, ExplainReport, ExplainRow

_BESIDE = 80  # on narrower terminals texts go below their headings
_WIDEST = 100  # longer lines are hard to read


def explain_lines(report: ExplainReport, color: bool, width: int) -> List[str]:
    """The introduction and the regions."""
    (table,) = report.tables
    wide = min(width or _WIDEST, _WIDEST)
    out: List[str] = []
    for text in report.extra["introduction"]:
        out += [*wrapped(text, wide, ""), ""]
    for row in table.rows:
        out += _title(row, color, width)
        if report.extra["in_full"]:
            out += _full(row, color, wide)
        else:
            out += wrapped(" ".join(row.purpose), wide, "  ")
        out.append("")
    if not report.extra["in_full"]:
        out.append("for more about a region: kvintro explain REGION")
    while out and not out[-1]:
        out.pop()
    return out


def _title(row: ExplainRow, color: bool, width: int) -> List[str]:
    text = f"{row.key}  {row.name}"
    if row.start is not None and row.size is not None:
        text += f"  {row.start:016x}-{row.end:016x}  {size_text(row.size)}"
    elif row.state == "absent":
        text += "  (not on this kernel)"
    first, *rest = wrapped(text, width, "", "  ")
    head = paint(row.key, title_style(row.key), color) + first[len(row.key) :]
    return [head, *rest]


def _full(row: ExplainRow, color: bool, wide: int) -> List[str]:
    out: List[str] = []
    if row.also:
        also = wrapped(f"also called {', '.join(row.also)}", wide, "  ")
        out += [paint(line, DIM, color) for line in also]
    out += _paragraphs("", row.purpose, color, wide)
    out += _paragraphs("on this kernel", row.here, color, wide, apart=False)
    out += _paragraphs("who uses it", row.users, color, wide)
    if row.definitions:
        out += ["", paint("  what defines and moves it", CYAN, color)]
        out += _definitions(row.definitions, color, wide)
    for heading, texts in _headed(row):
        out += _paragraphs(heading, texts, color, wide)
    return out


def _headed(row: ExplainRow) -> Sequence[Tuple[str, Sequence[str]]]:
    return (
        ("how its addresses translate", row.translation),
        ("what an attacker looks for", row.attacker),
        ("what a debugger looks for", row.debugger),
        ("where kernels differ", row.changed),
    )


def _paragraphs(
    heading: str, texts: Sequence[str], color: bool, wide: int, *, apart: bool = True
) -> List[str]:
    """Format paragraphs below a heading; no lines without paragraphs.

    :param apart: put an empty line between paragraphs.
    """
    if not texts:
        return []
    out = ["", *([paint(f"  {heading}", CYAN, color)] if heading else [])]
    for number, text in enumerate(texts):
        if number and apart:
            out.append("")
        out += wrapped(text, wide, "    " if heading else "  ")
    return out


def _definitions(rows: Sequence[DefinitionRow], color: bool, wide: int) -> List[str]:
    """One line per definition, with its text beside it and its value on this kernel below."""
    out: List[str] = []
    kinds = max(len(row.kind) for row in rows)
    names = min(max(len(row.name) for row in rows), 34) if wide >= _BESIDE else 0
    indent = " " * (4 + kinds + 2 + (names + 2 if names else 0))
    for row in rows:
        head = f"    {row.kind:{kinds}}  {row.name:{names}}  "
        if len(head) > len(indent):
            out.append(head.rstrip())
            head = indent
        out += wrapped(row.what, wide, head, indent)
        if row.here is not None:
            out += prose(f"here: {row.here}", wide, GREEN, color, indent, indent + "  ")
    return out
