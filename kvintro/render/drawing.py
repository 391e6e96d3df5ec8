# SPDX-License-Identifier: LGPL-2.1-or-later
"""Scales for drawings of the address space, shared by the picture and the drawing in the terminal.

Sizes span 52 powers of two, so heights grow with the logarithm of the size, and holes are compressed to a
thin line. Regions that KASLR moved are drawn again on a linear scale, because a displacement has no meaning
on a logarithmic one.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, List, Mapping, NamedTuple, Optional, Protocol, Sequence, Tuple, cast

from kvintro.model import Address, Displacement, Size

if TYPE_CHECKING:
    from kvintro.reports.layout import LayoutReport

# Keys of the regions that KASLR moves relative to each other, and of the region after their range.
_MOVED = ("direct_map", "vmalloc", "vmemmap")
_SPACE_ENDS = "cpu_entry_area"


class Placed(Protocol):
    """Fields of a layout row that drawings use, for regions that have a place (see ``RegionRow``)."""

    @property
    def key(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def parent(self) -> Optional[str]: ...
    @property
    def start(self) -> Address: ...
    @property
    def end(self) -> Address: ...
    @property
    def offset(self) -> Displacement: ...
    @property
    def size(self) -> Size: ...
    @property
    def default_start(self) -> Optional[Address]: ...
    @property
    def slide(self) -> Optional[Displacement]: ...
    @property
    def used_start(self) -> Optional[Address]: ...
    @property
    def used_end(self) -> Optional[Address]: ...
    @property
    def used_note(self) -> str: ...
    @property
    def provenance(self) -> Optional[str]: ...
    @property
    def mapped(self) -> Optional[Size]: ...
    @property
    def shared(self) -> Optional[Size]: ...
    @property
    def at_least(self) -> bool: ...
    @property
    def unreadable(self) -> Optional[Size]: ...
    @property
    def leaves(self) -> Mapping[str, int]: ...
    @property
    def roots(self) -> Optional[int]: ...
    @property
    def root_noun(self) -> str: ...
    @property
    def note(self) -> str: ...


class Bar(NamedTuple):
    """One region on a linear scale.

    :ivar default: position without KASLR: (start, end) as fractions of the scale, from 0 to 1.
    :ivar here: position on this kernel.
    :ivar slide: displacement in bytes.
    """

    key: str
    name: str
    default: Tuple[float, float]
    here: Tuple[float, float]
    slide: int


class Space(NamedTuple):
    """A range of addresses in which KASLR moves regions, on a linear scale.

    :ivar start: first address.
    :ivar size: size in bytes.
    """

    title: str
    start: int
    size: int
    bars: Sequence[Bar]


def placed_rows(report: LayoutReport) -> List[Placed]:
    """Rows of a layout that have a place, by address."""
    # Rows whose state is "present" have all addresses.
    return [cast(Placed, row) for row in report.tables[0].rows if row.state == "present"]


def partition_rows(report: LayoutReport) -> List[Placed]:
    """Rows of :func:`placed_rows` outside other regions: each address is in one of them."""
    return [row for row in placed_rows(report) if not row.parent]


def within(report: LayoutReport, row: Placed) -> List[Placed]:
    """The regions inside a region, by address: arm64's image and modules are in vmalloc."""
    return [other for other in placed_rows(report) if other.parent == row.key]


def weight(size: int) -> float:
    """Relative height of a region: from 0 for a page to 1 for the largest region that paging allows."""
    return max(0.0, min(1.0, (math.log2(max(size, 1)) - 12) / 44))


def largest(rows: Sequence[Placed]) -> int:
    """Size of the largest region that is not a hole, which ends the scale of sizes."""
    return max((row.size for row in rows if row.kind == "region"), default=1 << 47)


def spaces(rows: Sequence[Placed]) -> List[Space]:
    """Ranges in which KASLR moves regions: default direct map to cpu_entry_area, and the image's window.

    :param rows: rows of :func:`placed_rows`.
    """
    found: List[Space] = []
    by_key = {row.key: row for row in rows}
    moved = [by_key[key] for key in _MOVED if key in by_key and by_key[key].slide is not None]
    end = by_key.get(_SPACE_ENDS)
    if moved and end is not None:
        start = min(row.default_start for row in moved if row.default_start is not None)
        size = end.start - start
        bars = [_bar(row, row.start, row.end, row.slide or 0, start, size) for row in moved]
        found.append(Space("memory regions", start, size, [bar for bar in bars if bar]))
    image = by_key.get("kernel_image")
    around = by_key.get(image.parent or "") if image is not None else None
    if image is not None and around is not None and image.slide is not None:
        bar = _bar(image, image.start, image.end, image.slide, around.start, around.size)
        if bar:
            found.append(Space(f"kernel image in {around.key}", around.start, around.size, [bar]))
    elif image is not None and None not in (image.slide, image.used_start, image.used_end):
        first, last = image.used_start or 0, image.used_end or 0
        bar = _bar(image, first, last, image.slide or 0, image.start, image.size)
        if bar:
            found.append(Space("kernel image in its window", image.start, image.size, [bar]))
    return [space for space in found if space.bars]


def _bar(row: Placed, first: int, last: int, slide: int, start: int, size: int) -> Optional[Bar]:
    def part(address: int) -> float:
        return min(1.0, max(0.0, (address - start) / size))

    here = part(first), part(last + 1)
    # If a kernel's bases are invalid, the default may be outside. Then there is nothing to compare.
    default = part(first - slide), part(last + 1 - slide)
    if here[0] == here[1] or default[0] == default[1]:
        return None
    return Bar(row.key, row.name, default, here, slide)


def spread(wanted: Sequence[float], distance: float, low: float, high: float) -> List[float]:
    """Positions of labels from low to high: near the wanted ones (ascending), at least ``distance`` apart."""
    out: List[float] = []
    for value in wanted:
        out.append(max(value, out[-1] + distance if out else low))
    over = out[-1] - high if out else 0
    if over > 0:
        out[-1] = high
        for index in range(len(out) - 2, -1, -1):
            out[index] = min(out[index], out[index + 1] - distance)
    return out
