# SPDX-License-Identifier: LGPL-2.1-or-later
"""Text for people: aligned columns, colour on a terminal, notes below."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from typing import Callable, Dict, List, Optional, Sequence

from tabulate import tabulate

from kvintro.model import Column, Report, Table
from kvintro.render.values import value_text

BOLD = "1"
DIM = "2"
CYAN = "36"
GREEN = "32"
YELLOW = "33"
RED = "31"


@dataclass(frozen=True)
class Line:
    """One line of a table as text.

    :ivar cells: a text for each column's key; missing ones are empty.
    :ivar style: SGR code for the whole line, empty for none.
    """

    cells: Dict[str, str]
    style: str = ""


def paint(text: str, style: str, color: bool) -> str:
    """The text in a style, if colour is on."""
    return f"\x1b[{style}m{text}\x1b[0m" if color and style else text


def lines_of(table: Table) -> List[Line]:
    """A table's rows as they are."""
    return [Line({c.key: value_text(getattr(row, c.key)) for c in table.columns}) for row in table.rows]


# Stands for a leading space, which tabulate would strip (only from 0.10 on can it be told not to). A private
# character: none is left in a string of a kernel.
_INDENT = "\ue000"


def _indented(cell: str) -> str:
    text = cell.lstrip(" ")
    return _INDENT * (len(cell) - len(text)) + text


def table_text(
    columns: Sequence[Column], lines: Sequence[Line], *, color: bool, width: int, spare: Sequence[str] = ()
) -> List[str]:
    """Aligned lines with a header.

    :param spare: keys of columns to leave away, in this order, while the lines are wider than ``width``.
    """
    shown = list(columns)
    dropping = list(spare)
    while True:
        body = [[_indented(line.cells.get(c.key, "")) for c in shown] for line in lines]
        # With one argument for both, tabulate would guess numbers and realign them.
        text = tabulate(
            body,
            headers=[c.title for c in shown],
            tablefmt="plain",
            disable_numparse=True,
            colalign=[c.align for c in shown] if body else None,
        )
        out = [line.rstrip().replace(_INDENT, " ") for line in text.split("\n")]
        if not width or not dropping or max(map(len, out)) <= width:
            break
        unwanted = dropping.pop(0)
        shown = [c for c in shown if c.key != unwanted]
    styles = ["4" if color else "", *(line.style for line in lines)]
    return [paint(text, style, color) for text, style in zip(out, styles)]


def render_text(report: Report, *, color: bool, width: int) -> str:
    """Head, tables and notes of a report."""
    own = _own_renderer(report.command)
    out: List[str] = []
    for number, text in enumerate(report.head):
        out.append(paint(text, BOLD if number == 0 else "", color))
    if report.head:
        out.append("")
    if own is not None:
        out.extend(own(report, color, width))
    else:
        for table in report.tables:
            if table.title:
                out.append(paint(table.title, BOLD, color))
            out.extend(table_text(table.columns, lines_of(table), color=color, width=width))
            out.append("")
        while out and not out[-1]:
            out.pop()
    if report.notes:
        out.append("")
        out.extend(paint(f"note: {note}", YELLOW, color) for note in report.notes)
    return "\n".join(out) + "\n"


def _own_renderer(command: str) -> Optional[Callable[[Report, bool, int], List[str]]]:
    """``COMMAND_lines`` of ``kvintro/render/COMMAND.py``, where plain tables would not do."""
    name = f"kvintro.render.{command}"
    if importlib.util.find_spec(name) is None:
        return None
    lines: Callable[[Report, bool, int], List[str]] = getattr(
        importlib.import_module(name), f"{command}_lines"
    )
    return lines
