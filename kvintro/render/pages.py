# SPDX-License-Identifier: LGPL-2.1-or-later
"""The census as text: page frames by type, and physical memory as a strip of cells."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Dict, List, Mapping, Optional, Tuple

from kvintro.model import Column, Table
from kvintro.render.text import BOLD, DIM, Line, lines_of, paint, table_text, wrapped
from kvintro.render.values import value_text
from kvintro.text import size_text

if TYPE_CHECKING:
    from kvintro.reports.excluded import ExcludedRow
    from kvintro.reports.pages import CellRow, FreeRow, PagesReport, TypeRow

# Letter and colour (256-colour palette) of each type. Free pages are dim, pages of processes green and blue,
# and pages of the kernel have warm colours.
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
_WORTH_A_RATE = 1 << 20  # counting fewer pages takes too little time for a meaningful rate


def pages_lines(report: PagesReport, color: bool, width: int) -> List[str]:
    """The requested breakdown; by default types, picture and free blocks."""
    if report.extra["by"]:
        return _table(report.tables[0], _page_size(report), color, width)
    tables = {table.key: table for table in report.tables}
    total = value_text(report.extra["total"])
    size = size_text(report.extra["total"] * _page_size(report))
    head = f"{total} page frames, {size}"
    first, *rest = wrapped(head + _aside(report), width, "", "  ")
    out = [paint(head, BOLD, color) + first[len(head) :], *rest, ""]
    out += _table(tables["types"], _page_size(report), color, width)
    if tables["excluded"].rows:
        out += ["", *(paint(line, BOLD, color) for line in wrapped(_excluded(report), width, "", "  "))]
        out += _excluded_lines(tables["excluded"], color, width)
    out += ["", *strip(tables["map"], report.extra["cell_size"], color, width)]
    if tables["free"].rows:
        out += ["", paint("free blocks by size, as in /proc/buddyinfo", BOLD, color)]
        out += _free(tables["free"], _page_size(report), color, width)
    return out


def _aside(report: PagesReport) -> str:
    parts = []
    rate: Optional[int] = report.extra["rate"]
    if report.extra["holes"]:
        parts.append(f"{size_text(report.extra['holes'] * _page_size(report))} of holes without struct pages")
    if rate and report.extra["total"] >= _WORTH_A_RATE:
        parts.append(f"counted at {rate / 1e6:.0f} million a second")
    return "".join(f"   {part}" for part in parts)


def _excluded_lines(table: Table[ExcludedRow], color: bool, width: int) -> List[str]:
    """Missing pages; the column for truncated dumps only if it says something."""
    columns = [c for c in table.columns if c.key != "lost" or any(row.lost != 0 for row in table.rows)]
    return table_text(columns, lines_of(table), color=color, width=width)


def _excluded(report: PagesReport) -> str:
    level, said = report.extra["filter_level"], report.extra["recorded_level"]
    text = f"excluded from the dump: {size_text(report.extra['left_out'] or 0)}"
    if level is not None:
        return f"{text}, as by makedumpfile -d {level}"
    return text if said is None else f"{text}; the file says -d {said}, which does not explain it"


def _page_size(report: PagesReport) -> int:
    assert report.kernel is not None
    return report.kernel.page_size


def _table(table: Table, page: int, color: bool, width: int) -> List[str]:
    if table.key == "free":
        return _free(table, page, color, width)
    lines = _type_lines(table, color) if table.key == "types" else lines_of(table)
    return table_text(table.columns, lines, color=color, width=width)


def _type_lines(table: Table[TypeRow], color: bool) -> List[Line]:
    """Types with their letters; on a colour terminal, free ones are dimmed."""
    lines = lines_of(table)
    for row, line in zip(table.rows, lines):
        line.cells["type"] = f"{_sign(row.type, color)} {row.type}"
        line.cells["share"] = f"{row.share:.1f}"
    if not color:
        return lines
    return [Line(line.cells, DIM if row.type in _FREE else "") for row, line in zip(table.rows, lines)]


def _free(table: Table[FreeRow], page: int, color: bool, width: int) -> List[str]:
    """Free blocks, one column per order, with the size of a block as its title."""
    orders = max((len(row.blocks) for row in table.rows), default=0)
    sizes = [size_text(page << order) for order in range(orders)]
    blocks = [Column(size, size.replace(" ", "").rstrip("B"), "right") for size in sizes]
    lines = lines_of(table)
    for row, line in zip(table.rows, lines):
        line.cells.update({column.key: str(count) for column, count in zip(blocks, row.blocks)})
    columns = [column for column in table.columns if column.key != "blocks"]
    return table_text([*columns[:2], *blocks, *columns[2:]], lines, color=color, width=width)


def _sign(kind: str, color: bool) -> str:
    letter, number = SIGNS.get(kind, _UNKNOWN)
    return paint("█", f"38;5;{number}", color) if color else letter


def strip(table: Table[CellRow], cell_size: int, color: bool, width: int) -> List[str]:
    """Physical memory as lines of cells, each line with its first address.

    With colour, a cell has the colour of the most frequent type among its used pages, and is the fuller the
    more of its pages are used. Without colour, it is the letter of its most frequent type. Lines without
    struct pages are replaced by their size.
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
        # One escape sequence for adjacent cells of one colour; otherwise lines would be ten times as long.
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
