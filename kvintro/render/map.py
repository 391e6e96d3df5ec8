# SPDX-License-Identifier: LGPL-2.1-or-later
"""The memory map as a drawing for a terminal: ``layout --map``."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, List, Optional, Sequence

from kvintro.model import own_memory
from kvintro.render.colors import region_style
from kvintro.render.drawing import (
    Placed,
    Space,
    largest,
    partition_rows,
    placed_rows,
    spaces,
    weight,
    within,
)
from kvintro.render.layout import drawn_text
from kvintro.render.text import BOLD, DIM, head_lines, note_lines, paint, prose, wrapped
from kvintro.text import displacement_text, size_text

if TYPE_CHECKING:
    from kvintro.reports.layout import LayoutReport

_NAME = 42  # inner width of a box; less on a narrow terminal
_BESIDE = 52  # columns needed for text beside a box; with fewer, the text goes into the box
_NARROWEST = 22  # minimum inner width of a box
_BARS = 24
_BLANK = " " * 18  # left of a box, where the addresses are
_INSIDE = "│ "  # left of a box inside a box
_LETTERS = {"direct_map": "D", "vmalloc": "V", "vmemmap": "M", "kernel_image": "K"}


@dataclass(frozen=True)
class _Form:
    """Dimensions of the drawing.

    :ivar inner: inner width of a box.
    :ivar bars: width of the bars, 0 for none.
    :ivar beside: columns to the right of box and bars, 0 if text goes into the box; None for no limit.
    :ivar top: end of the scale of sizes.
    :ivar left: what is left of a box inside another one.
    """

    inner: int
    bars: int
    beside: Optional[int]
    top: int
    color: bool
    left: str = ""

    @property
    def nested(self) -> _Form:
        """The form of boxes inside a box."""
        return replace(self, inner=self.inner - len(_INSIDE), left=_INSIDE)

    @classmethod
    def of(cls, width: int, top: int, color: bool) -> _Form:
        """The dimensions for a terminal's width."""
        if not width:
            return cls(_NAME, _BARS, None, top, color)
        inner = min(_NAME, max(width - len(_BLANK) - 2, _NARROWEST))
        room = width - len(_BLANK) - inner - 4
        bars = _BARS if room - _BARS - 2 >= _BESIDE else 0
        beside = room - (bars + 2 if bars else 0)
        return cls(inner, bars, beside if beside >= _BESIDE else 0, top, color)


def map_lines(report: LayoutReport, color: bool, width: int) -> List[str]:
    """Boxes for regions, thin ones for holes, with bars for reserved and mapped sizes beside them."""
    rows = partition_rows(report)
    out: List[str] = []
    form = _Form.of(width, largest(rows), color)
    for number, row in enumerate(rows):
        left, right = ("┌", "┐") if number == 0 else ("├", "┤")
        out.append(f"{row.start:016x}  {left}{'─' * form.inner}{right}")
        out += _hole(row, form) if row.kind == "hole" else _box(row, form)
        out += _inside(within(report, row), form)
    if rows:
        out.append(f"{rows[-1].end:016x}  └{'─' * form.inner}┘")
    if form.bars and rows:
        apart = any(own_memory(row.mapped, row.shared) is not None for row in rows)
        shared = f", {'▒' * 3} mapped to shared pages" if apart else ""
        scale = f"bars: {'░' * 3} reserved, {'█' * 3} mapped{shared}"
        scale += f", from 4 KB to {size_text(form.top)}, logarithmic"
        out += ["", *prose(f"{scale}; holes are not to scale", width, DIM, color, "", "  ")]
    wide = (width or 100) - 20
    for space in spaces(placed_rows(report)):
        out += ["", *_space(space, min(max(wide, 30), 100), color)]
    return out


def _inside(rows: Sequence[Placed], form: _Form) -> List[str]:
    """Boxes of regions inside another one, whose box goes on around them."""
    nested = form.nested
    out: List[str] = []
    for number, row in enumerate(rows):
        follows = number > 0 and rows[number - 1].end + 1 == row.start
        out.append(f"{row.start:016x}  {nested.left}{'├' if follows else '┌'}{'─' * nested.inner}┤")
        out += _box(row, nested)
        if number + 1 == len(rows) or row.end + 1 != rows[number + 1].start:
            out.append(f"{row.end:016x}  {nested.left}└{'─' * nested.inner}┤")
    if rows:
        out.append(f"{_BLANK}│{' ' * form.inner}│")
    return out


def _hole(row: Placed, form: _Form) -> List[str]:
    notes = [row.note] if row.note else []
    lines = wrapped(f"{row.name} {size_text(row.size)}", form.inner)
    if form.beside == 0:
        lines += [line for note in notes for line in wrapped(note, form.inner)]
        notes = []
    beside = [line for note in notes for line in wrapped(note, form.beside or 0)]
    out = []
    for number in range(max(len(lines), len(beside))):
        text = lines[number] if number < len(lines) else ""
        note = f"  {beside[number]}" if number < len(beside) else ""
        middle = paint(text.center(form.inner), DIM, form.color)
        out.append(f"{_BLANK}╎{middle}╎{paint(note, DIM, form.color)}")
    return out


def _box(row: Placed, form: _Form) -> List[str]:
    """Lines of a box, without its borders."""
    style = region_style(row.key)
    size = size_text(row.size)
    first, *more = wrapped(row.name, form.inner - len(size) - 3)
    inside = [f" {first}{size:>{form.inner - len(first) - 2}} ", *(f" {line}" for line in more)]
    heads = len(inside)
    mapped = _mapped(row)
    below = _moved(row, apart=form.beside == 0)
    beside: List[str] = []
    if form.beside == 0:
        for text in ([mapped] if mapped else []) + below:
            inside += wrapped(text, form.inner - 1, "   ")
    else:
        beside = wrapped(mapped, form.beside or 0) if mapped else [""]
        for text in below:
            beside += wrapped(text, form.beside or 0, "", "  ")
    out = []
    for number in range(max(len(inside), len(beside), heads + _height(row))):
        text = (inside[number] if number < len(inside) else "").ljust(form.inner)
        line = f"{_BLANK}{form.left}│{paint(text, style if number < heads else DIM, form.color)}│"
        if form.bars:
            bar = paint(_bar(row, form.top, form.bars), style, form.color) if number == 0 else " " * form.bars
            line += f"  {bar}"
        if number < len(beside):
            line += f"  {paint(beside[number], '' if number == 0 else DIM, form.color)}"
        out.append(line.rstrip())
    return out


def _height(row: Placed) -> int:
    """Extra lines of a box: about one per 22 powers of two, so that large regions look large."""
    return round(2 * weight(row.size))


def _mapped(row: Placed) -> str:
    if row.mapped is None:
        return ""
    return drawn_text(row) + (f", {' '.join(row.leaves)}" if row.mapped else "")


def _moved(row: Placed, *, apart: bool) -> List[str]:
    """KASLR offset of a region, and its note.

    :param apart: put the default address on its own line.
    """
    lines: List[str] = []
    if row.slide is not None:
        what = "image " if row.key == "kernel_image" else ""
        moved = f"{what}moved by {displacement_text(row.slide)}" if row.slide else f"{what}not moved by KASLR"
        default = f"default {row.default_start:016x}" if row.slide else ""
        if default and apart:
            lines += [moved, default]
        else:
            lines.append(f"{moved} ({default})" if default else moved)
    return [*lines, row.note] if row.note else lines


def _bar(row: Placed, top: int, wide: int) -> str:
    def cells(size: int) -> int:
        if size <= 4096:
            return 1
        return max(1, round(wide * (math.log2(size) - 12) / (math.log2(max(top, 1 << 30)) - 12)))

    reserved = min(cells(row.size), wide)
    mapped = min(cells(row.mapped), reserved) if row.mapped else 0
    size = own_memory(row.mapped, row.shared)
    own = mapped if size is None else min(cells(size), mapped)
    return f"{'█' * own}{'▒' * (mapped - own)}{'░' * (reserved - mapped)}".ljust(wide)


def _space(space: Space, wide: int, color: bool) -> List[str]:
    """Default and actual positions as two lines on a linear scale."""
    last = space.start + space.size - 1
    title = f"{space.title}: {space.start:016x} to {last:016x}, {size_text(space.size)}, to true scale"
    out = prose(title, wide + 20, BOLD, color, "", "  ")
    out.append(f"  default  {_line(space, wide, color, default=True)}")
    out.append(f"  here     {_line(space, wide, color, default=False)}")
    for bar in space.bars:
        letter = paint(_letter(bar.key), region_style(bar.key), color)
        moved = f"moved by {displacement_text(bar.slide)}" if bar.slide else "not moved"
        out += wrapped(f"{bar.name}, {moved}", wide + 20, f"           {letter} ", " " * 13)
    return out


def _line(space: Space, wide: int, color: bool, *, default: bool) -> str:
    cells: List[str] = ["·"] * wide
    for bar in space.bars:
        first, last = bar.default if default else bar.here
        begin = min(int(first * wide), wide - 1)
        for at in range(begin, max(begin + 1, min(wide, round(last * wide)))):
            cells[at] = bar.key
    return "".join(_cell(cell, color) for cell in cells)


def _cell(key: str, color: bool) -> str:
    if key == "·":
        return paint("·", DIM, color)
    return paint(_letter(key), region_style(key), color)


def _letter(key: str) -> str:
    return _LETTERS.get(key, key[:1].upper())


def map_text(report: LayoutReport, *, color: bool, width: int) -> str:
    """The whole drawing, with the report's head and notes."""
    out = [*head_lines(report.head, color, width), *map_lines(report, color, width)]
    out += note_lines(report.notes, color, width)
    return "\n".join(out) + "\n"
