# SPDX-License-Identifier: LGPL-2.1-or-later
"""Building blocks of text output: tables and prose that fit a terminal, and colour."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from kvintro.model import Column, Table
from kvintro.render.values import field_of, value_text

BOLD = "1"
DIM = "2"
CYAN = "36"
GREEN = "32"
YELLOW = "33"
RED = "31"

_GAP = 2  # columns between two columns of a table
_BELOW = 4  # indent of lines below a row
_NARROWEST = 12  # minimum width of a wrapped column
# Numbers stay with their unit, and marks with their word.
_WORDS = re.compile(r" *(?:· )?(?:[+≥≤-]? ?[\d.]+ [KMGTPE]?B\b[^ ]*|[^ ]+)")
_PAINT = re.compile("\x1b\\[[0-9;]*m")


@dataclass(frozen=True)
class Line:
    """One line of a table as text.

    :ivar cells: text by column key; missing ones are empty.
    :ivar style: SGR code for the whole line; empty for none.
    :ivar styles: SGR codes for single cells, by column key.
    :ivar notes: sentences to write below the line.
    :ivar notes_at: key of the column at which they begin; by default the first.
    :ivar notes_style: SGR code of the sentences.
    """

    cells: Dict[str, str]
    style: str = ""
    styles: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    notes_at: str = ""
    notes_style: str = DIM


def paint(text: str, style: str, color: bool) -> str:
    """Apply a style to a text, if colour is on."""
    return f"\x1b[{style}m{text}\x1b[0m" if color and style and text else text


def columns_of(text: str) -> int:
    """Width of a text in columns of a terminal. East Asian letters take two; escape sequences take none."""
    if "\x1b" in text:
        text = _PAINT.sub("", text)
    if text.isascii():
        return len(text)
    import unicodedata

    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


def wrapped(text: str, width: int, indent: str = "", rest: Optional[str] = None) -> List[str]:
    """Wrap a text to lines of at most ``width`` columns. Words are never cut: a longer one gets its own line.

    A text without spaces is broken after its commas.

    :param width: 0 for no limit.
    :param indent: prefix of the first line.
    :param rest: prefix of the other lines; by default ``indent``.
    """
    rest = indent if rest is None else rest
    if not width or columns_of(indent) + columns_of(text) <= width:
        return [indent + text]
    text = text.rstrip(" ")
    words = _WORDS.findall(text) if " " in text.strip() else re.findall(r"[^,]*,|[^,]+", text)
    out: List[str] = []
    line, begun = indent, False
    for word in words:
        if begun and columns_of(line) + columns_of(word) > width:
            out.append(line)
            line = rest + word.lstrip(" ")
        else:
            line, begun = line + word, True
    return [*out, line]


def prose(
    text: str, width: int, style: str, color: bool, indent: str = "", rest: Optional[str] = None
) -> List[str]:
    """Wrap a text and apply a style; see :func:`wrapped`."""
    return [paint(line, style, color) for line in wrapped(text, width, indent, rest)]


def head_lines(head: Sequence[str], color: bool, width: int) -> List[str]:
    """The head of a report, followed by an empty line."""
    out: List[str] = []
    for number, text in enumerate(head):
        out += prose(text, width, "" if number else BOLD, color, "", "  ")
    return [*out, ""] if head else []


def note_lines(notes: Sequence[str], color: bool, width: int) -> List[str]:
    """The notes of a report."""
    out: List[str] = []
    for note in notes:
        out += prose(f"note: {note}", width, YELLOW, color, "", "      ")
    return out


def lines_of(table: Table) -> List[Line]:
    """Rows of a table with values in their usual format."""
    return [Line({c.key: value_text(field_of(row, c.key)) for c in table.columns}) for row in table.rows]


def table_text(columns: Sequence[Column], lines: Sequence[Line], *, color: bool, width: int) -> List[str]:
    """Format lines as an aligned table with a header.

    If it is wider than the terminal, optional columns are hidden, prose is wrapped, and what still does not
    fit goes below its row. The last line names the hidden columns.

    :param width: columns of the terminal; 0 for no limit.
    """
    shape = _Shape.fitting(columns, lines, width)
    out = shape.row(Line({c.key: c.title for c in columns}, "4"), color, header=True)
    for line in lines:
        out += shape.row(line, color)
        at = min(shape.place(line.notes_at) + _GAP, max(width - 40, _BELOW)) if width else None
        indent = " " * (shape.place(line.notes_at) + _GAP if at is None else at)
        for note in line.notes:
            out += prose(note, width, line.style or line.notes_style, color, indent, indent)
    hidden = [column.title or column.key for column in columns if column not in shape.columns]
    if hidden:
        text = f"not shown for lack of width: {', '.join(hidden)}"
        out += prose(text, width, DIM, color, "", "  ")
    return out


class _Shape(NamedTuple):
    """The visible columns of a table, and their widths.

    :ivar below: whether the last column may be too narrow for some cells, which then go below their row.
    """

    columns: Sequence[Column]
    widths: Sequence[int]
    below: bool
    width: int

    @classmethod
    def fitting(cls, columns: Sequence[Column], lines: Sequence[Line], width: int) -> _Shape:
        """The shape that shows the most within a width."""
        natural = {c.key: _widest([c.title, *(line.cells.get(c.key, "") for line in lines)]) for c in columns}
        # The first column always stays, unless it is optional.
        order = [at for at in range(len(columns)) if at or columns[at].spare]
        order.sort(key=lambda at: (-columns[at].spare, -at))
        least: Dict[str, Optional[int]] = {}
        for number in range(len(order) + 1):
            hidden = set(order[:number])
            shown = [column for at, column in enumerate(columns) if at not in hidden]
            widths = [natural[c.key] for c in shown]
            if not width or _sum(widths) <= width:
                return cls(shown, widths, False, width)
            last = number == len(order) or not columns[order[number]].spare
            least = least or {c.key: _least(c, lines) for c in columns}
            found = _squeezed(widths, [least[c.key] for c in shown], width, hard=last)
            if found is not None:
                return cls(shown, found, False, width)
            room = width - _sum([*widths[:-1], 0])
            if last and shown[-1].align == "left" and room >= max(len(shown[-1].title), _NARROWEST):
                return cls(shown, [*widths[:-1], room], True, width)
        return cls(columns[:1], [width], True, width)

    def place(self, key: str) -> int:
        """Position of a column; 0 if it is hidden."""
        for at, column in enumerate(self.columns):
            if column.key == key:
                return sum(self.widths[:at]) + _GAP * at
        return 0

    def row(self, line: Line, color: bool, *, header: bool = False) -> List[str]:
        """Format one line of the table, which may take several lines."""
        texts = [line.cells.get(column.key, "") for column in self.columns]
        below = ""
        if self.below and _widest(wrapped(texts[-1], self.widths[-1])) > self.widths[-1]:
            below, texts[-1] = texts[-1], ""
        cells = [
            [text] if columns_of(text) <= wide else wrapped(text, wide)
            for text, wide in zip(texts, self.widths)
        ]
        out = []
        for number in range(max(map(len, cells))):
            parts = [cell[number] if number < len(cell) else "" for cell in cells]
            out.append(self._line(parts, line, color))
        indent = " " * _BELOW
        style = line.styles.get(self.columns[-1].key, "") or line.style
        return out + (prose(below, self.width, style, color, indent, indent) if below else [])

    def _line(self, parts: Sequence[str], line: Line, color: bool) -> str:
        """Format one line of cells. A style for the whole line is one escape sequence around it."""
        out = ""
        for part, column, wide in zip(parts, self.columns, self.widths):
            pad = " " * max(wide - columns_of(part), 0)
            style = line.styles.get(column.key, "")
            text = paint(part, style, color) if style else part
            out += (pad + text if column.align == "right" else text + pad) + " " * _GAP
        return paint(out.rstrip(" "), line.style, color)


def _sum(widths: Sequence[int]) -> int:
    return sum(widths) + _GAP * (len(widths) - 1)


def _widest(texts: Sequence[str]) -> int:
    return max(map(columns_of, texts), default=0)


def _least(column: Column, lines: Sequence[Line]) -> Optional[int]:
    """Minimum width of a column if it is wrapped; None if it is not prose, and keeps its width."""
    texts = {column.title, *(line.cells.get(column.key, "") for line in lines)}
    if column.align == "right" or not any(" " in text or "," in text for text in texts):
        return None
    return max(_widest(wrapped(text, 1)) for text in texts)


def _squeezed(
    widths: Sequence[int], least: Sequence[Optional[int]], width: int, *, hard: bool
) -> Optional[List[int]]:
    """Widths at which columns fit with their prose wrapped; None if there are none.

    :param least: see :func:`_least`.
    :param hard: accept narrow columns. Otherwise wrapped columns keep at least three quarters of their width.
    """
    floors = [
        wide if low is None else min(max(low, _NARROWEST if hard else wide * 3 // 4), wide)
        for wide, low in zip(widths, least)
    ]
    found = [min(wide, max(floor, width)) for wide, floor in zip(widths, floors)]
    if _sum(floors) > width:
        return None
    for _ in range(_sum(found) - width):
        # Narrow the widest column first.
        at = max(range(len(found)), key=lambda at: (found[at] > floors[at], found[at]))
        found[at] -= 1
    return found


def pairs_text(pairs: Sequence[Tuple[str, str]], width: int, indent: str = "") -> List[str]:
    """Format names with wrapped texts beside them."""
    pad = _widest([name for name, _ in pairs])
    rest = " " * (len(indent) + pad + _GAP)
    out: List[str] = []
    for name, text in pairs:
        head = f"{indent}{name}{' ' * (pad - columns_of(name) + _GAP)}"
        out += wrapped(text, width, head, rest)
    return out
