# SPDX-License-Identifier: LGPL-2.1-or-later
"""The memory map as a picture: one self-contained SVG, light and dark, or two for a page.

All text is escaped when it is written (:func:`_safe`): names and notes may contain strings of a dump.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, List, Sequence, Tuple

from kvintro.model import own_memory
from kvintro.render.drawing import (
    Bar,
    Placed,
    Space,
    largest,
    partition_rows,
    placed_rows,
    spaces,
    spread,
    weight,
    within,
)
from kvintro.render.layout import drawn_text
from kvintro.text import displacement_text, size_text

if TYPE_CHECKING:
    from kvintro.reports.layout import LayoutReport

_WIDTH = 1180
_TOP = 66  # below the column titles
_BAND_LEFT, _BAND_WIDTH = 156, 306
_BAR_LEFT, _BAR_WIDTH = 486, 300
_SPACE_LEFT, _SPACE_RIGHT = 846, _WIDTH - 8
_MAP_WIDTH = _BAR_LEFT + _BAR_WIDTH + 14
_HOLE = 17
_NOTE = 46  # characters of a note that fit into a band
_INSET = 14  # distance of a region from the edges of the one around it

_STYLE = """
.kv-map{--fg:#1d2733;--soft:#5b6876;--line:#c9d1d9;--paper:#ffffff;
font-family:system-ui,"Segoe UI","DejaVu Sans",Helvetica,Arial,sans-serif;font-size:12.5px}
.kv-map text{fill:var(--fg)}
.kv-map .soft{fill:var(--soft)}
.kv-map .mono{font-family:ui-monospace,"DejaVu Sans Mono",Menlo,Consolas,monospace;font-size:11px}
.kv-map .small{font-size:11px}
.kv-map .halo{paint-order:stroke;stroke:var(--paper);stroke-width:5px;stroke-linejoin:round}
.kv-map .head{font-weight:600}
.kv-map .paper{fill:var(--paper)}
.kv-map .rule{stroke:var(--line);stroke-width:1;fill:none}
.kv-map .hole{fill:url(#kv-hatch)}
.kv-map .hatch{stroke:var(--line);stroke-width:1.2}
.kv-map .band{fill:var(--c);fill-opacity:.17}
.kv-map .edge,.kv-map .mapped,.kv-map .here{fill:var(--c)}
.kv-map .reserved{fill:var(--c);fill-opacity:.17}
.kv-map .ribbon{fill:var(--c);fill-opacity:.25}
.kv-map .default,.kv-map .shared{fill:var(--c);fill-opacity:.45}
.kv-map a:hover .band,.kv-map a:focus .band,.kv-map a[aria-current] .band{fill-opacity:.36}
.kv-map a:focus{outline:none}
.kv-map a:focus-visible .band,.kv-map a[aria-current] .band{stroke:var(--fg);stroke-width:2}
@media (prefers-color-scheme:dark){
.kv-map{--fg:#e4e9ef;--soft:#98a5b3;--line:#3a4550;--paper:#161c23}
.kv-map .ribbon{fill-opacity:.38}.kv-map .band,.kv-map .reserved{fill-opacity:.26}}
"""
_BEFORE = (
    f"<style>{_STYLE}</style>",
    '<defs><pattern id="kv-hatch" width="7" height="7" patternUnits="userSpaceOnUse" '
    'patternTransform="rotate(45)"><path class="hatch" d="M0 0V7"/></pattern></defs>',
)
_COLORS = {
    "user": "#5d7286",
    "ldt_remap": "#8a6f5a",
    "direct_map": "#2f73c4",
    "vmalloc": "#12897b",
    "vmemmap": "#8a5cc0",
    "kasan_shadow": "#b9741a",
    "cpu_entry_area": "#c8503c",
    "espfix": "#b34b86",
    "efi": "#5f8427",
    "kernel_image": "#c08a00",
    "modules": "#96702a",
    "fixmap": "#5a68b5",
    "vsyscall": "#a04c4c",
}
_OTHER = "#4d8a99"


def color_of(key: str) -> str:
    """Colour of a region, as ``#rrggbb``."""
    return _COLORS.get(key, _OTHER)


def layout_svg(report: LayoutReport, *, links: str = "") -> str:
    """Draw a layout.

    :param links: prefix of links to sections of a page, such as ``#region-``; empty for a standalone drawing.
    :returns: one drawing. With ``links`` two, because a page puts what KASLR moved beside or below the map.
    """
    rows = partition_rows(report)
    body: List[str] = []
    y = float(_TOP)
    axis = _Axis(largest(rows))
    for row in rows:
        height = _height(row)
        body += _row(row, y, height, axis, links)
        y += height
        nested = within(report, row)
        for child in nested:
            body += _strip(row, y, _height(child))
            body += _row(child, y, _height(child), axis, links, _INSET)
            y += _height(child)
        if nested:
            body += _strip(row, y, _INSET)
            body.append(_text(_BAND_LEFT - 10, y + 4, f"{nested[-1].end + 1:016x}", "mono soft", "end"))
            y += _INSET
    body.append(_text(_BAND_LEFT - 10, y + 4, f"{rows[-1].end:016x}" if rows else "", "mono soft", "end"))
    bottom = y + 14
    # In a page the heading above already names the kernel.
    head = _head("" if links else _who(report), axis, bottom)
    moved_in = spaces(placed_rows(report))
    drawn, floor = _spaces(moved_in, _TOP, bottom)
    who = report.kernel
    title = f"Address space of Linux {who.release or 'of unknown release'}" if who else "Address space"
    made = _Drawing("kv-map", title, _description(placed_rows(report)))
    if not links:
        height = max(bottom + 10, floor) + 12
        return made.text((0, 0, _WIDTH, height), [*head, *body, *drawn], "img")
    # Screen readers treat a picture with links as a group instead of an image. Without a heading its space
    # is removed.
    out = made.text((0, 18, _MAP_WIDTH, bottom + 4), [*head, *body], "group")
    if drawn:
        moved = _Drawing("kv-moved", "What KASLR moved, to true scale", _moved(moved_in))
        left = _SPACE_LEFT - 8
        out += moved.text((left, 18, _WIDTH - left, floor - 6), drawn, "img", before=())
    return out


@dataclass(frozen=True)
class _Drawing:
    """An SVG element with a name for screen readers.

    :ivar key: prefix of its ids.
    """

    key: str
    title: str
    description: str

    def text(
        self,
        view: Tuple[float, float, float, float],
        body: Sequence[str],
        role: str,
        before: Sequence[str] = _BEFORE,
    ) -> str:
        """The element.

        :param view: left, top, width and height of what is shown.
        :param before: style and patterns; a page needs them once.
        """
        left, top, width, height = view
        lines = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{left} {top} {width} {height:.0f}" '
            f'class="kv-map" role="{role}" aria-labelledby="{self.key}-title {self.key}-desc">',
            f'<title id="{self.key}-title">{_safe(self.title)}</title>',
            f'<desc id="{self.key}-desc">{_safe(self.description)}</desc>',
            *before,
            f'<rect class="paper" x="{left}" y="{top}" width="{width}" height="{height:.0f}" rx="6"/>',
            *body,
            "</svg>",
        ]
        return "\n".join(lines) + "\n"


class _Axis:
    """Logarithmic scale of sizes, from a page to the largest region."""

    def __init__(self, size: int) -> None:
        self._top = math.log2(max(size, 1 << 30))

    def x(self, size: int) -> float:
        """x coordinate of a size."""
        if size <= 4096:
            return float(_BAR_LEFT)
        return _BAR_LEFT + _BAR_WIDTH * min(1.0, (math.log2(size) - 12) / (self._top - 12))

    def ticks(self) -> Sequence[int]:
        """Sizes that get a grid line."""
        return [1 << bits for bits in (12, 20, 30, 40, 50) if bits <= self._top]


def _height(row: Placed) -> float:
    if row.kind == "hole":
        return _HOLE
    return 26 + 30 * weight(row.size) + (13 if _note(row) else 0)


def _strip(row: Placed, y: float, height: float) -> List[str]:
    """A part of a region's band that regions inside it are drawn on."""
    place = f'x="{_BAND_LEFT}" y="{y:.1f}" height="{height:.1f}"'
    return [
        f'<g style="--c:{color_of(row.key)}"><rect class="band" width="{_BAND_WIDTH}" {place}/>'
        f'<rect class="edge" width="5" {place}/></g>'
    ]


def _row(row: Placed, y: float, height: float, axis: _Axis, links: str, inset: float = 0) -> List[str]:
    """A region or a hole.

    :param inset: distance of its left edge from that of the region around it.
    """
    middle = y + height / 2 + 4
    left, wide = _BAND_LEFT + inset, _BAND_WIDTH - inset
    out = [_text(_BAND_LEFT - 10, y + 4, f"{row.start:016x}", "mono soft", "end")]
    band = f'x="{left}" y="{y:.1f}" width="{wide}" height="{height:.1f}"'
    rule = f'<path class="rule" d="M{_BAND_LEFT - 6} {y:.1f}H{_BAND_LEFT + _BAND_WIDTH}"/>'
    if row.kind == "hole":
        name = row.note if row.key == "hole" and row.note else row.name
        out.append(f'<g><title>{_safe(_sentence(row))}</title><rect class="hole" {band}/></g>')
        out.append(rule)
        out.append(
            _text(_BAND_LEFT + _BAND_WIDTH / 2, y + _HOLE / 2 + 4, f"{name} \u00b7 {size_text(row.size)}",
                  "small soft halo", "middle")
        )  # fmt: skip
        return out
    shape = [
        f"<title>{_safe(_sentence(row))}</title>",
        f'<rect class="band" {band}/>',
        f'<rect class="edge" x="{left}" y="{y:.1f}" width="5" height="{height:.1f}"/>',
    ]
    note = _note(row)
    at = middle - (7 if note else 0)
    shape.append(_text(left + 14, at, row.name, "head"))
    shape.append(_text(_BAND_LEFT + _BAND_WIDTH - 8, at, size_text(row.size), "soft", "end"))
    if note:
        shape.append(_text(left + 14, at + 15, note, "small soft"))
    color = f'style="--c:{color_of(row.key)}"'
    bars = _bars(row, y + height / 2, axis)
    if links:
        label = _safe(_sentence(row))
        out.append(f'<a href="{_safe(links + row.key)}" aria-label="{label}" {color}>')
        out += [*shape, "</a>", f"<g {color}>", *bars, "</g>"]
    else:
        out += [f"<g {color}>", *shape, *bars, "</g>"]
    out.append(rule)
    return out


def _bars(row: Placed, middle: float, axis: _Axis) -> List[str]:
    end = axis.x(row.size)
    out = [
        f'<rect class="reserved" x="{_BAR_LEFT}" y="{middle - 5:.1f}" width="{max(end - _BAR_LEFT, 2):.1f}" '
        'height="10" rx="2"/>'
    ]
    own = own_memory(row.mapped, row.shared)
    bars = [("mapped", row.mapped)] if own is None else [("shared", row.mapped), ("mapped", own)]
    for style, size in bars:
        if size:
            width = max(axis.x(size) - _BAR_LEFT, 2)
            out.append(
                f'<rect class="{style}" x="{_BAR_LEFT}" y="{middle - 5:.1f}" width="{width:.1f}" '
                'height="10" rx="2"/>'
            )
    text = ""
    if row.mapped is not None:
        text = "nothing mapped"
        if row.mapped:
            text = " \u00b7 ".join((drawn_text(row), " ".join(row.leaves)))
    # Above the bar, so that even the longest bar does not collide with its text.
    out.append(_text(_BAR_LEFT + _BAR_WIDTH, middle - 9, text, "small", "end"))
    return out


def _note(row: Placed) -> str:
    if row.slide:
        of = "image " if row.key == "kernel_image" else ""
        return f"{of}moved by {displacement_text(row.slide)}"
    if not row.note or row.kind == "hole":
        return ""
    return row.note if len(row.note) <= _NOTE else row.note.split(",")[0][:_NOTE]


def _sentence(row: Placed) -> str:
    """Describe the row in a sentence, for tooltips and screen readers."""
    # The visible text is first, so that a voice can name what it sees.
    seen = ", ".join(filter(None, (row.name, size_text(row.size), _note(row))))
    parts = [f"{seen}: {row.start:016x} to {row.end:016x}"]
    if row.mapped is not None:
        parts.append(drawn_text(row))
    if row.slide == 0:
        parts.append("not moved by KASLR")
    return ", ".join(parts)


def _who(report: LayoutReport) -> str:
    return " \u00b7 ".join(part for part in report.head[0].split("   ") if part) if report.head else ""


def _head(who: str, axis: _Axis, bottom: float) -> List[str]:
    out: List[str] = [_text(8, 24, who, "head")] if who else []
    out.append(_text(_BAND_LEFT - 10, _TOP - 10, "first address", "small soft", "end"))
    out.append(_text(_BAND_LEFT, _TOP - 10, "region and its size", "small soft"))
    for size in axis.ticks():
        x = axis.x(size)
        out.append(f'<path class="rule" stroke-dasharray="2 4" d="M{x:.1f} {_TOP - 6}V{bottom - 14:.1f}"/>')
        out.append(_text(x, _TOP - 10, size_text(size), "small soft", "middle" if size > 4096 else "start"))
    legend = (
        "Heights grow with the logarithm of the size, holes are compressed. Bars: reserved (pale) and mapped."
    )
    out.append(_text(_BAND_LEFT, bottom + 8, legend, "small soft"))
    return out


def _spaces(found: Sequence[Space], top: float, bottom: float) -> Tuple[List[str], float]:
    """Draw the ranges of KASLR on a linear scale; returns the drawing and the y of its end."""
    if not found:
        return [], 0.0
    out: List[str] = [_text(_SPACE_LEFT, top - 30, "What KASLR moved, to true scale", "head")]
    left, right, wide = _SPACE_LEFT + 4, _SPACE_LEFT + 118, 46
    # Spaces with more bars are taller. Together they are as high as the map, within legible limits.
    total = max(min(bottom - top, 760), 420)
    shares = [3 if len(space.bars) > 1 else 1 for space in found]
    y = top
    for space, share in zip(found, shares):
        height = (total - 64 * len(found)) * share / sum(shares)
        out.append(_text(_SPACE_LEFT, y - 8, f"{space.title}: {size_text(space.size)}", "small soft"))
        y += 12
        out.append(_text(left + wide / 2, y + 2, "default", "small soft", "middle"))
        out.append(_text(right + wide / 2, y + 2, "here", "small soft", "middle"))
        y += 9
        for x in (left, right):
            out.append(
                f'<rect class="rule" x="{x}" y="{y:.1f}" width="{wide}" height="{height:.1f}"/>'
                f'<rect class="hole" x="{x}" y="{y:.1f}" width="{wide}" height="{height:.1f}"/>'
            )
        labels = spread([y + bar.here[0] * height + 11 for bar in space.bars], 30, y + 11, y + height - 18)
        for bar, at in zip(space.bars, labels):
            out += _bar(bar, y, height, left, right, wide, at)
        last = space.start + space.size - 1
        out.append(_text(left, y + height + 15, f"{space.start:016x} to {last:016x}", "mono soft"))
        y += height + 56
    return out, y - 38


def _bar(
    bar: Bar, y: float, height: float, left: float, right: float, wide: float, label: float
) -> List[str]:
    def span(part: Sequence[float]) -> Tuple[float, float]:
        first = y + part[0] * height
        # Bars are at least three pixels high, so that they are visible.
        return first, max(first + 3, y + part[1] * height)

    d0, d1 = span(bar.default)
    h0, h1 = span(bar.here)
    points = f"{left + wide},{d0:.1f} {right},{h0:.1f} {right},{h1:.1f} {left + wide},{d1:.1f}"
    moved = displacement_text(bar.slide) if bar.slide else "not moved"
    end = right + wide
    return [
        f'<g style="--c:{color_of(bar.key)}"><title>{_safe(f"{bar.name}: {moved}")}</title>',
        f'<polygon class="ribbon" points="{points}"/>',
        f'<rect class="default" x="{left}" y="{d0:.1f}" width="{wide}" height="{d1 - d0:.1f}"/>',
        f'<rect class="here" x="{right}" y="{h0:.1f}" width="{wide}" height="{h1 - h0:.1f}"/>',
        f'<path class="rule" d="M{end} {h0 + 1:.1f}H{end + 6}L{end + 12} {label - 4:.1f}"/>',
        _text(end + 16, label, bar.name.split(" of ")[0].split(",")[0], "small head"),
        _text(end + 16, label + 14, moved, "small"),
        "</g>",
    ]


def _moved(found: Sequence[Space]) -> str:
    """Describe what KASLR moved in sentences, for screen readers."""
    bars = [bar for space in found for bar in space.bars]
    moved = (f"moved by {displacement_text(bar.slide)}" if bar.slide else "not moved" for bar in bars)
    return " ".join(f"{bar.name}: {how}." for bar, how in zip(bars, moved))


def _description(rows: Sequence[Placed]) -> str:
    present = [row for row in rows if row.kind == "region"]
    return (
        f"{len(present)} regions from address 0 at the top to the last one at the bottom. "
        + ". ".join(_sentence(row) for row in present)
        + "."
    )


def _text(x: float, y: float, text: str, classes: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{classes}" text-anchor="{anchor}">{_safe(text)}</text>'


def _safe(text: str) -> str:
    """Escape markup. Control characters, which XML forbids, are already escaped."""
    return escape(text, quote=True)
