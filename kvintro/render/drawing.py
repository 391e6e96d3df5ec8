# SPDX-License-Identifier: LGPL-2.1-or-later
"""How the address space is drawn to a readable scale; shared by the picture and the drawing in the terminal.

Sizes span 52 powers of two, so heights grow with the logarithm, and holes are compressed to a thin line. What
KASLR moved is drawn a second time to true scale, since a displacement means nothing on a logarithmic one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, List, Optional, Sequence, Tuple

from kvintro.model import Report

# The keys of regions that KASLR moves against each other, and which two bound the room that it has.
_MOVED = ("direct_map", "vmalloc", "vmemmap")
_ROOM_ENDS = "cpu_entry_area"


@dataclass(frozen=True)
class Bar:
    """One region on a true scale.

    :ivar default: (first, last) part of the scale, from 0 to 1, where it is without KASLR.
    :ivar here: the same on this kernel.
    :ivar slide: displacement in bytes.
    """

    key: str
    name: str
    default: Tuple[float, float]
    here: Tuple[float, float]
    slide: int


@dataclass(frozen=True)
class Room:
    """Room in which KASLR moves something, to true scale.

    :ivar start: its first address.
    :ivar size: bytes.
    """

    title: str
    start: int
    size: int
    bars: Sequence[Bar]


def placed_rows(report: Report) -> List[Any]:
    """The rows of a layout that lie somewhere, ascending."""
    return [row for row in report.tables[0].rows if row.state == "present"]


def weight(size: int) -> float:
    """How large a region is drawn: 0 for a page, 1 for all that can be used."""
    return max(0.0, min(1.0, (math.log2(max(size, 1)) - 12) / 44))


def largest(rows: Sequence[Any]) -> int:
    """The size that the scale of sizes must have room for: the largest that is no hole."""
    return max((row.size for row in rows if row.kind == "region"), default=1 << 47)


def rooms(rows: Sequence[Any]) -> List[Room]:
    """Where KASLR moves things: from the default direct map to cpu_entry_area, and in the image's window."""
    found: List[Room] = []
    by_key = {row.key: row for row in rows}
    moved = [by_key[key] for key in _MOVED if key in by_key and by_key[key].slide is not None]
    end = by_key.get(_ROOM_ENDS)
    if moved and end is not None:
        start = min(row.default_start for row in moved)
        bars = [_bar(row, row.start, row.end, start, end.start - start) for row in moved]
        found.append(Room("memory regions", start, end.start - start, [bar for bar in bars if bar]))
    image = by_key.get("kernel_image")
    if image is not None and image.slide is not None and image.used_start is not None:
        bar = _bar(image, image.used_start, image.used_end, image.start, image.size)
        if bar:
            found.append(Room("kernel image in its window", image.start, image.size, [bar]))
    return [room for room in found if room.bars]


def _bar(row: Any, first: int, last: int, start: int, size: int) -> Optional[Bar]:
    def part(address: int) -> float:
        return min(1.0, max(0.0, (address - start) / size))

    here = part(first), part(last + 1)
    # The default may lie outside on a kernel whose bases make no sense; then there is nothing to compare.
    default = part(first - row.slide), part(last + 1 - row.slide)
    if here[0] == here[1] or default[0] == default[1]:
        return None
    return Bar(row.key, row.name, default, here, row.slide)


def spread(wanted: Sequence[float], distance: float, low: float, high: float) -> List[float]:
    """Places for labels close to those wanted (ascending), at least so far apart, within low and high."""
    out: List[float] = []
    for value in wanted:
        out.append(max(value, out[-1] + distance if out else low))
    over = out[-1] - high if out else 0
    if over > 0:
        out[-1] = high
        for index in range(len(out) - 2, -1, -1):
            out[index] = min(out[index], out[index + 1] - distance)
    return out
