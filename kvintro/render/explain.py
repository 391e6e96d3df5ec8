# SPDX-License-Identifier: LGPL-2.1-or-later
"""Explanations as text: wrapped prose, and a table of what makes and moves a region."""

from __future__ import annotations

import textwrap
from typing import Any, List, Sequence

from kvintro.model import Report, Size
from kvintro.render.text import BOLD, CYAN, DIM, GREEN, paint
from kvintro.text import size_text

_WIDEST = 100  # longer lines are hard to read
_HEADINGS = (
    ("purpose", ""),
    ("here", "on this kernel"),
    ("users", "who uses it"),
    ("definitions", "what makes and moves it"),
    ("translation", "how addresses in it translate"),
    ("attacker", "what an attacker looks for"),
    ("debugger", "what a debugger looks for"),
    ("changed", "where kernels differ"),
)


def explain_lines(report: Report, color: bool, width: int) -> List[str]:
    """The introduction, and each region."""
    (table,) = report.tables
    wide = min(width, _WIDEST) if width else _WIDEST
    out: List[str] = []
    for text in report.extra["introduction"]:
        out += [*_wrapped(text, wide, ""), ""]
    for row in table.rows:
        out += _title(row, color)
        if report.extra["in_full"]:
            out += _full(row, color, wide)
        else:
            out += _wrapped(" ".join(row.purpose), wide, "  ")
        out.append("")
    if not report.extra["in_full"]:
        out.append("more of each: kvintro explain REGION")
    while out and not out[-1]:
        out.pop()
    return out


def _title(row: Any, color: bool) -> List[str]:
    text = paint(row.key, BOLD, color) + f"  {row.name}"
    if row.start is not None:
        text += f"  {row.start:016x}-{row.end:016x}  {size_text(Size(row.size))}"
    elif row.state == "absent":
        text += paint("  (not on this kernel)", DIM, color)
    return [text]


def _full(row: Any, color: bool, wide: int) -> List[str]:
    out: List[str] = []
    if row.also:
        also = _wrapped(f"also called {', '.join(row.also)}", wide, "  ")
        out += [paint(line, DIM, color) for line in also]
    for key, heading in _HEADINGS:
        found = getattr(row, key)
        if not found:
            continue
        out.append("")
        if heading:
            out.append(paint(f"  {heading}", CYAN, color))
        if key == "definitions":
            out += _definitions(found, color, wide)
        else:
            indent = "    " if heading else "  "
            for number, text in enumerate(found):
                if number and key != "here":
                    out.append("")
                out += _wrapped(text, wide, indent)
    return out


def _definitions(rows: Sequence[Any], color: bool, wide: int) -> List[str]:
    """A line for each, its text beside it, and below it what it is here."""
    out: List[str] = []
    kinds = max(len(row.kind) for row in rows)
    names = min(max(len(row.name) for row in rows), 34)
    indent = 4 + kinds + 2 + names + 2
    for row in rows:
        head = f"    {row.kind:{kinds}}  {row.name:{names}}  "
        body = textwrap.wrap(row.what, max(wide - indent, 30)) or [""]
        if len(head) > indent:
            out.append(head.rstrip())
            head = " " * indent
        out.append(head + body[0])
        out += [" " * indent + line for line in body[1:]]
        if row.here is not None:
            out.append(" " * indent + paint(f"here: {row.here}", GREEN, color))
    return out


def _wrapped(text: str, wide: int, indent: str) -> List[str]:
    return textwrap.wrap(
        text,
        max(wide, 40),
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
