# SPDX-License-Identifier: LGPL-2.1-or-later
"""The census as text: what there is, and physical memory as a strip of cells."""

from __future__ import annotations

from itertools import groupby
from typing import Any, Dict, List, Mapping, Tuple

from kvintro.arch.x86_64 import PAGE_SHIFT
from kvintro.model import Column, Report, Table
from kvintro.render.text import BOLD, DIM, Line, lines_of, paint, table_text
from kvintro.render.values import value_text
from kvintro.text import size_text

# Each type's letter and colour (256-colour palette). What is free is dim, what processes use is green and
# blue, what the kernel uses is warm.
SIGNS: Dict[str, Tuple[str, int]] = {
    "free": (".", 238),
    "free_cpu": (",", 240),
    "anon": ("a", 34),
    "thp": ("A", 46),
    "ksm": ("m", 84),
    "file": ("f", 33),
    "shmem": ("s", 39),
    "swapcache": ("w", 30),
    "hugetlb": ("H", 51),
    "hugetlb_free": ("h", 30),
    "zero": ("0", 250),
    "slab": ("S", 208),
    "large_kmalloc": ("L", 214),
    "pgtable": ("t", 201),
    "zsmalloc": ("z", 141),
    "unnamed_type": ("T", 201),
    "movable": ("v", 140),
    "kernel": ("K", 220),
    "reserved": ("r", 244),
    "kernel_or_reserved": ("k", 220),
    "offline": ("o", 236),
    "guard": ("g", 160),
    "unaccepted": ("u", 237),
    "device": ("d", 99),
    "hwpoison": ("X", 196),
    "uninitialised": ("-", 235),
    "broken": ("!", 196),
    "not_in_dump": ("?", 124),
}
_UNKNOWN = ("*", 255)
_FREE = ("free", "free_cpu", "hugetlb_free")
_LABEL = 16
_MOST = 128  # cells in a line
_SPARE = ("meaning", "share")
_WORTH_A_RATE = 1 << 20  # counting fewer pages takes no time worth speaking of


def pages_lines(report: Report, color: bool, width: int) -> List[str]:
    """The list that was asked for; by default types, picture and free blocks."""
    tables = {table.key: table for table in report.tables}
    if report.extra.get("by"):
        chosen = report.tables[0]
        return _table(chosen, color, width)
    total = value_text(report.extra["total"])
    rate = report.extra.get("rate")
    size = size_text(report.extra["total"] << PAGE_SHIFT)
    out = [paint(f"{total} page frames, {size}", BOLD, color) + _aside(report, rate), ""]
    out += _table(tables["types"], color, width)
    out += ["", *strip(tables["map"], report.extra["cell_size"], color, width)]
    if tables["free"].rows:
        out += ["", paint("free blocks by size, as in /proc/buddyinfo", BOLD, color)]
        out += _free(tables["free"], color, width)
    return out


def _aside(report: Report, rate: Any) -> str:
    parts = []
    if report.extra.get("holes"):
        parts.append(f"{size_text(report.extra['holes'] << PAGE_SHIFT)} of holes without struct pages")
    if rate and report.extra["total"] >= _WORTH_A_RATE:
        parts.append(f"counted at {rate / 1e6:.0f} million a second")
    return "".join(f"   {part}" for part in parts)


def _table(table: Table, color: bool, width: int) -> List[str]:
    if table.key == "free":
        return _free(table, color, width)
    lines = lines_of(table)
    if table.key == "types":
        for row, line in zip(table.rows, lines):
            line.cells["type"] = f"{_sign(row.type, color)} {row.type}" if not color else row.type
            line.cells["share"] = f"{row.share:.1f}"
        if color:
            lines = [
                Line(line.cells, "" if row.type not in _FREE else DIM) for row, line in zip(table.rows, lines)
            ]
    return table_text(table.columns, lines, color=color, width=width, spare=_SPARE)


def _free(table: Table, color: bool, width: int) -> List[str]:
    """Blocks in a column of their own for each order, with its size on top."""
    orders = max((len(row.blocks) for row in table.rows), default=0)
    sizes = [size_text(1 << order + PAGE_SHIFT) for order in range(orders)]
    blocks = [Column(size, size.replace(" ", "").rstrip("B"), "right") for size in sizes]
    lines = lines_of(table)
    for row, line in zip(table.rows, lines):
        line.cells.update({column.key: str(count) for column, count in zip(blocks, row.blocks)})
    columns = [column for column in table.columns if column.key != "blocks"]
    return table_text(
        [*columns[:2], *blocks, *columns[2:]], lines, color=color, width=width, spare=("pages",)
    )


def _sign(kind: str, color: bool) -> str:
    letter, number = SIGNS.get(kind, _UNKNOWN)
    return paint("█", f"38;5;{number}", color) if color else letter


def strip(table: Table, cell_size: int, color: bool, width: int) -> List[str]:
    """Physical memory as lines of cells, each with the address of its first.

    With colour a cell has the colour of what most of its memory in use is, and is the fuller the more is in
    use; without, it has the letter of what most of it is. Lines without any struct page are left out, and how
    many bytes those are is said.
    """
    if not table.rows:
        return []
    room = (width or 100) - _LABEL - 2
    per_line = 8
    while per_line * 2 <= min(room, _MOST):
        per_line *= 2
    cells: Dict[int, Mapping[str, int]] = {row.start // cell_size: row.types for row in table.rows}
    out = [
        paint(
            f"physical memory, {size_text(cell_size)} a cell, {size_text(cell_size * per_line)} a line",
            BOLD,
            color,
        )
    ]
    following = None
    for line in sorted({cell // per_line for cell in cells}):
        if following is not None and line > following:
            gap = (line - following) * per_line * cell_size
            out.append(paint(f"{'':{_LABEL}}  ... {size_text(gap)} without struct pages", DIM, color))
        following = line + 1
        signs = [_cell(cells.get(line * per_line + i, {}), color) for i in range(per_line)]
        # One escape sequence for neighbours of one colour: lines of cells would be ten times as long.
        text = "".join(
            paint("".join(glyph for glyph, _ in group), style, color and bool(style))
            for style, group in groupby(signs, key=lambda sign: sign[1])
        )
        out.append(f"{line * per_line * cell_size:0{_LABEL}x}  {text}".rstrip())
    used = {kind for types in cells.values() for kind in types}
    legend = [f"{_sign(kind, color)} {kind}" for kind in SIGNS if kind in used]
    out += ["", *_wrap(legend, max(room + _LABEL, 40), color)]
    return out


def _cell(types: Mapping[str, int], color: bool) -> Tuple[str, str]:
    """(glyph, style) of a cell."""
    if not types:
        return " ", ""
    if not color:
        return SIGNS.get(max(types, key=lambda kind: types[kind]), _UNKNOWN)[0], ""
    used = {kind: count for kind, count in types.items() if kind not in _FREE}
    if not used:
        return "·", f"38;5;{SIGNS['free'][1]}"
    share = sum(used.values()) / sum(types.values())
    most = max(used, key=lambda kind: used[kind])
    return "░▒▓█"[min(int(share * 4), 3)], f"38;5;{SIGNS.get(most, _UNKNOWN)[1]}"


def _wrap(words: List[str], width: int, color: bool) -> List[str]:
    lines: List[str] = []
    length = width + 1
    for word in words:
        visible = len(word) if not color else len(word) - len(paint("", "38;5;000", True))
        if length + 3 + visible > width:
            lines.append(word)
            length = visible
        else:
            lines[-1] += "   " + word
            length += 3 + visible
    return lines
