# SPDX-License-Identifier: LGPL-2.1-or-later
"""The memory map drawn in a terminal: ``layout --map``."""

from __future__ import annotations

import math
from typing import Any, Dict, List, Optional, Sequence

from kvintro.model import Report
from kvintro.render.drawing import Room, largest, placed_rows, rooms, weight
from kvintro.render.layout import mapped_text
from kvintro.render.text import BOLD, CYAN, DIM, paint
from kvintro.text import displacement_text, size_text

# Colours of the 256 that every terminal has, close to those of the picture.
_COLORS: Dict[str, str] = {
    "user": "38;5;67",
    "ldt_remap": "38;5;137",
    "direct_map": "38;5;75",
    "vmalloc": "38;5;43",
    "vmemmap": "38;5;141",
    "kasan_shadow": "38;5;172",
    "cpu_entry_area": "38;5;203",
    "espfix": "38;5;175",
    "efi": "38;5;107",
    "kernel_image": "38;5;178",
    "modules": "38;5;136",
    "fixmap": "38;5;105",
    "vsyscall": "38;5;131",
}
_NAME = 42  # inner width of a box
_BESIDE = 52  # columns that what is said beside a box needs; with less it is said in it
_BARS = 24
_LETTERS = {"direct_map": "D", "vmalloc": "V", "vmemmap": "M", "kernel_image": "K"}


def map_lines(report: Report, color: bool, width: int) -> List[str]:
    """Boxes for regions, thin ones for holes, with bars of what is reserved and mapped beside them."""
    rows = placed_rows(report)
    bars = _BARS if not width or _beside(width, _BARS) >= _BESIDE else 0
    out: List[str] = []
    top = largest(rows)
    above = None
    for row in rows:
        out.append(_border(row, above, color))
        out += _box(row, top, bars, color, width)
        above = row
    if rows:
        out.append(f"{rows[-1].end:016x}  └{'─' * _NAME}┘")
    if bars and rows:
        scale = f"bars: {'░' * 3} reserved, {'█' * 3} mapped, from 4 KB to {size_text(top)}, logarithmic"
        out += ["", paint(f"{scale}; holes are not to scale", DIM, color)]
    wide = (width or 100) - 20
    for room in rooms(rows):
        out += ["", *_room(room, min(max(wide, 30), 100), color)]
    return out


def _border(row: Any, above: Any, color: bool) -> str:
    left, right = ("┌", "┐") if above is None else ("├", "┤")
    return f"{row.start:016x}  {left}{'─' * _NAME}{right}"


def _beside(width: int, bars: int) -> int:
    """Columns on the right of a box."""
    return max(width - 18 - _NAME - 4 - (bars + 2 if bars else 0), 0)


def _cut(text: str, room: Optional[int]) -> str:
    """What does not fit is cut, not wrapped: a wrapped line would break the drawing."""
    return text if room is None or len(text) <= room else f"{text[: max(room - 1, 0)]}…"


def _box(row: Any, top: int, bars: int, color: bool, width: int) -> List[str]:
    style = _COLORS.get(row.key, CYAN)
    blank = " " * 18
    room = _beside(width, bars) if width else None
    if row.kind == "hole":
        text = f"{row.name} {size_text(row.size)}"
        note = f"  {_cut(row.note, room)}" if row.note and room != 0 else ""
        return [f"{blank}╎{paint(_cut(text, _NAME).center(_NAME), DIM, color)}╎{paint(note, DIM, color)}"]
    size = size_text(row.size)
    name = _cut(row.name, _NAME - len(size) - 3)
    first = f" {name}{size:>{_NAME - len(name) - 2}} "
    said = ""
    if row.mapped is not None:
        said = f"{mapped_text(row)} mapped" + (f", {' '.join(row.leaves)}" if row.mapped else "")
    below: List[str] = []
    default = f"default {row.default_start:016x}" if row.slide else ""
    if row.slide is not None:
        what = "image " if row.key == "kernel_image" else ""
        moved = f"{what}moved by {displacement_text(row.slide)}" if row.slide else f"{what}not moved by KASLR"
        below.append(f"{moved} ({default})" if default else moved)
    if row.note:
        below.append(row.note)
    lines = [f"{blank}│{paint(first, style, color)}│"]
    # A line for every dozen powers of two: large regions look large.
    height = round(2 * weight(row.size))
    if room is not None and room < _BESIDE:
        if default:
            below[:1] = [moved, default]
        inside = [said, *below] if said else below
        for number in range(max(height, len(inside))):
            text = _cut(inside[number], _NAME - 4) if number < len(inside) else ""
            lines.append(f"{blank}│   {paint(text, DIM, color)}{' ' * (_NAME - 3 - len(text))}│")
        return lines
    if bars:
        lines[0] += f"  {paint(_bar(row, top, bars), style, color)}"
    if said:
        lines[0] += f"  {_cut(said, room)}"
    for number in range(max(height, len(below))):
        text = below[number] if number < len(below) else ""
        pad = " " * (bars + 2) if bars else ""
        lines.append(f"{blank}│{' ' * _NAME}│{pad}  {paint(_cut(text, room), DIM, color)}".rstrip())
    return lines


def _bar(row: Any, top: int, wide: int) -> str:
    def cells(size: int) -> int:
        if size <= 4096:
            return 1
        return max(1, round(wide * (math.log2(size) - 12) / (math.log2(max(top, 1 << 30)) - 12)))

    reserved = min(cells(row.size), wide)
    mapped = min(cells(row.mapped), reserved) if row.mapped else 0
    return f"{'█' * mapped}{'░' * (reserved - mapped)}".ljust(wide)


def _room(room: Room, wide: int, color: bool) -> List[str]:
    """Default and actual places on two lines to true scale."""
    last = room.start + room.size - 1
    title = f"{room.title}: {room.start:016x} to {last:016x}, {size_text(room.size)}, to true scale"
    out = [paint(title, BOLD, color)]
    out.append(f"  default  {_line(room, wide, color, default=True)}")
    out.append(f"  here     {_line(room, wide, color, default=False)}")
    for bar in room.bars:
        letter = paint(_letter(bar.key), _COLORS.get(bar.key, CYAN), color)
        moved = f"moved by {displacement_text(bar.slide)}" if bar.slide else "not moved"
        out.append(f"           {letter} {bar.name}, {moved}")
    return out


def _line(room: Room, wide: int, color: bool, *, default: bool) -> str:
    cells: List[str] = ["·"] * wide
    for bar in room.bars:
        first, last = bar.default if default else bar.here
        begin = min(int(first * wide), wide - 1)
        for at in range(begin, max(begin + 1, min(wide, round(last * wide)))):
            cells[at] = bar.key
    return "".join(_cell(cell, color) for cell in cells)


def _cell(key: str, color: bool) -> str:
    if key == "·":
        return paint("·", DIM, color)
    return paint(_letter(key), _COLORS.get(key, CYAN), color)


def _letter(key: str) -> str:
    return _LETTERS.get(key, key[:1].upper())


def map_text(report: Report, *, color: bool, width: int) -> str:
    """The whole drawing, with the report's head and notes."""
    out = [paint(text, BOLD if n == 0 else "", color) for n, text in enumerate(report.head)]
    out += ["", *map_lines(report, color, width)]
    out += [f"note: {note}" for note in report.notes]
    return "\n".join(out) + "\n"


__all__: Sequence[str] = ("map_lines", "map_text")
