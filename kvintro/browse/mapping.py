# SPDX-License-Identifier: LGPL-2.1-or-later
"""The map as lines: a block for each box, taller for larger sizes, in the colours of ``layout --map``."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Dict, List, Mapping, Optional, Sequence

from kvintro.browse.lines import Line, Link, Part, plain
from kvintro.browse.stretches import Box
from kvintro.model import Displacement
from kvintro.render.colors import region_style
from kvintro.render.drawing import weight
from kvintro.render.pages import SIGNS
from kvintro.render.text import BOLD, DIM, RED, YELLOW, columns_of
from kvintro.text import displacement_text, size_text

if TYPE_CHECKING:
    from kvintro.reports.pages import CellRow, PagesReport

_ADDRESS = 16
_LEAST_BITS = 12  # log2 of the smallest size that a bar shows
_BAR = 14  # width of a bar of mapped bytes, in columns


def map_lines(boxes: Sequence[Box], width: int) -> List[Line]:
    """Draw the map as lines.

    :param width: width in columns.
    """
    top = max((box.size for box in boxes if box.kind != "hole"), default=1 << 30)
    out: List[Line] = []
    for item, box in enumerate(boxes):
        out += _lines(box, item, width, top)
    return out


def _lines(box: Box, item: int, width: int, top: int) -> List[Line]:
    style = region_style(box.key)
    address = f"{box.start:016x} "
    room = width - len(address) - 2
    if box.kind in ("absent", "unknown"):
        where = "not here" if box.kind == "absent" else "not known"
        return [Line((Part(f"{where:>{_ADDRESS}}   ", DIM), Part(cut(box.text, room), DIM)), item=item)]
    if box.kind in ("hole", "empty"):
        text = f"{size_text(box.size)} {box.text}"
        return [Line((Part(address, DIM), Part("╎ ", DIM), Part(cut(text, room), DIM)), item=item)]
    edge = Part("▌" if box.inside else "█", style)
    size = size_text(box.size)
    text = box.text
    if box.kind == "region" and columns_of(text) > room - len(size) - 1:
        text = box.key.replace("_", " ")
    name = cut(text, room - len(size) - 1)
    gap = " " * max(room - columns_of(name) - len(size), 1)
    bold = ";".join(filter(None, (BOLD, style)))
    first = Line((Part(address), edge, Part(" "), Part(name, bold), Part(gap), Part(size)), item=item)
    out = [first]
    if box.kind == "region":
        out.append(_second(box, edge, item, room, top, style))
        more = round(2 * weight(box.size)) - 1
        out += [Line((Part(" " * len(address)), edge), item=item) for _ in range(more)]
    elif box.kind == "table":
        out.append(_second(box, edge, item, room, box.size, style))
    elif box.note:
        at = len(first.text) - len(size)
        out = [_with_note(first, box.note, at, item)]
    return out


def _with_note(line: Line, note: str, at: int, item: int) -> Line:
    """Insert the rights of a page before its size."""
    parts = list(line.parts)
    gap = parts[-2].text
    if len(gap) > len(note) + 1:
        style = RED if "w" in note and "x" in note else DIM
        parts[-2:-1] = [Part(gap[: -len(note) - 1]), Part(note, style), Part(" ")]
    return Line(tuple(parts), item=item)


def _second(box: Box, edge: Part, item: int, room: int, top: int, style: str) -> Line:
    """Line with the mapped size as a bar and a number, and the KASLR offset or the rights."""
    note = box.note
    if box.kind == "region":
        note = displacement_text(Displacement(int(note))) if note else ""
    left = Part(f"{note:>{_ADDRESS}} ", YELLOW if box.kind == "region" else DIM)
    if box.mapped is None:
        says = (" how much is mapped is not known", " mapped: not known") if box.unknown else ("",)
        text = next((text for text in says if len(text) <= room + 1), says[-1])
        return Line((left, edge, Part(text, DIM)), item=item)
    mapped = _mapped_text(box, room)
    wide = min(_BAR, max(room - len(mapped) - 2, 0))
    bar = _bar(box, wide, top) if wide >= 4 else ""
    return Line((left, edge, Part(" "), Part(bar, style), Part(f" {mapped}", DIM)), item=item)


def _mapped_text(box: Box, room: int) -> str:
    """What is mapped, with shared pages apart from memory of its own if there is room for it."""
    if not box.mapped:
        return "nothing mapped"
    more = "≥ " if box.at_least else ""
    if box.own is None:
        return f"{more}{size_text(box.mapped)} mapped"
    own = f"{more}{size_text(box.own)} mapped"
    both = f"{own} + {size_text(box.mapped - box.own)} shared"
    return both if len(both) < room else own


def _bar(box: Box, wide: int, top: int) -> str:
    def cells(size: int) -> int:
        if size <= 1 << _LEAST_BITS:
            return 1
        scale = math.log2(max(top, 1 << 14)) - _LEAST_BITS
        return max(1, min(wide, round(wide * (math.log2(size) - _LEAST_BITS) / scale)))

    mapped = cells(box.mapped) if box.mapped else 0
    own = mapped if box.own is None else cells(box.own)
    whole = max(cells(box.size), mapped)
    return ("█" * own + "▒" * (mapped - own) + "░" * (whole - mapped)).ljust(wide)


def cell_lines(report: PagesReport, width: int) -> List[Line]:
    """Draw physical memory as rows of cells, each in the colour of its most frequent page type."""
    cell = int(report.extra["cell_size"])
    (picture,) = [table for table in report.tables if table.key == "map"]
    wide = 8
    while _ADDRESS + 1 + 2 * wide <= width and wide < 64:
        wide *= 2
    rows: Dict[int, Dict[int, Mapping[str, int]]] = {}
    for row in picture.rows:
        number = row.start // cell
        rows.setdefault(number // wide, {})[number % wide] = row.types
    out: List[Line] = []
    before = None
    for number in sorted(rows):
        if before is not None and number > before + 1:
            gap = (number - before - 1) * wide * cell
            out.append(Line((Part(f"{'':{_ADDRESS}} {size_text(gap)} without memory", DIM),), head=True))
        before = number
        start = number * wide * cell
        parts = [Part(f"{start:016x} ", DIM)]
        for at in range(wide):
            parts.append(_cell(rows[number].get(at), start + at * cell, cell))
        out.append(Line(tuple(parts)))
    return [*out, plain("", head=True), *_legend(picture.rows, width)]


def _cell(types: Optional[Mapping[str, int]], start: int, cell: int) -> Part:
    if not types:
        return Part(" ")
    kind = max(types, key=lambda name: types[name])
    letter, color = SIGNS.get(kind, ("*", 255))
    return Part(letter, f"48;5;{color}", Link("cells", start, start + cell - 1))


def _legend(rows: Sequence[CellRow], width: int) -> List[Line]:
    """Legend of the letters and colours of the types that occur."""
    found = {name for row in rows for name in row.types}
    out: List[Line] = []
    parts: List[Part] = []
    used = 0
    for name in (name for name in SIGNS if name in found):
        letter, color = SIGNS[name]
        if parts and used + len(name) + 4 > width:
            out.append(Line(tuple(parts), head=True))
            parts, used = [], 0
        parts += [Part(letter, f"48;5;{color}"), Part(f" {name}  ", DIM)]
        used += len(name) + 4
    return [*out, Line(tuple(parts), head=True)] if parts else out


def cut(text: str, room: int) -> str:
    """Cut a text to a width."""
    if columns_of(text) <= room:
        return text
    while text and columns_of(text) > room - 1:
        text = text[:-1]
    return text + "…"
