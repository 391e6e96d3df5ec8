# SPDX-License-Identifier: LGPL-2.1-or-later
"""Maps addresses to regions."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import replace
from typing import Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

from kvintro.kernels import Kernel, Region
from kvintro.model import ALL, Absent, AddressRange, Placement, Unknown

#: Key of addresses outside all regions, as in the layout.
HOLE = "hole"


Placed = Tuple[Region, Placement]


class Placements(NamedTuple):
    """Places of all regions of a kernel.

    :ivar placed: regions outside other regions, by address, without overlaps.
    :ivar inside: regions inside another, by the key of that one; each list is like ``placed``.
    :ivar missing: regions without a place, each with the reason.
    """

    placed: List[Placed]
    inside: Dict[str, List[Placed]]
    missing: List[Tuple[Region, Union[Absent, Unknown]]]

    def nested(self) -> Iterator[Placed]:
        """All regions by address; inner ones follow the region that contains them."""
        waiting = self.placed[::-1]
        while waiting:
            region, found = waiting.pop()
            yield region, found
            waiting += self.inside.get(region.key, ())[::-1]


def place_regions(kernel: Kernel) -> Placements:
    """Place all regions of a kernel.

    A region inside one whose place is unknown is placed on its own.
    """
    out = Placements([], {}, [])
    waiting: List[Placed] = []
    # Regions with constant bounds come first: if a bound that was read overlaps one of them, it is wrong.
    for region in sorted(kernel.regions, key=lambda r: not r.fixed):
        found = kernel.locate(region)
        if not isinstance(found, Placement):
            out.missing.append((region, found))
        elif found.parent:
            waiting.append((region, found))
        else:
            _put(out, region, found, out.placed)
    known = {region.key: place.range for region, place in out.placed}
    while waiting:
        # The outer region may itself be inside one that is not placed yet.
        unplaced = {region.key for region, _ in waiting}
        now = next((one for one in waiting if one[1].parent not in unplaced), waiting[0])
        waiting.remove(now)
        region, found = now
        # If the outer region has no place, use the region that would contain that one.
        for _ in kernel.regions:
            if not found.parent or found.parent in known:
                break
            between = kernel.locate(found.parent)
            found = replace(found, parent=between.parent if isinstance(between, Placement) else "")
        outer = known.get(found.parent)
        if outer is not None and not (found.range.start in outer and found.range.end in outer):
            out.missing.append(
                (region, Unknown(f"its bounds {_bounds(found)} are not inside {found.parent}"))
            )
            continue
        among = out.placed if outer is None else out.inside.setdefault(found.parent, [])
        if _put(out, region, found, among):
            known[region.key] = found.range
    for rows in (out.placed, *out.inside.values()):
        rows.sort(key=lambda item: item[1].range.start)
    return out


def _put(out: Placements, region: Region, found: Placement, among: List[Placed]) -> bool:
    """Place a region among others, or make it unknown if it overlaps one of them."""
    other = next((r for r, p in among if p.range.overlaps(found.range)), None)
    if other is not None:
        out.missing.append((region, Unknown(f"its bounds {_bounds(found)} overlap {other.name}")))
        return False
    among.append((region, found))
    return True


def _bounds(found: Placement) -> str:
    return f"{found.range.start:016x}-{found.range.end:016x}"


def lies_in(kernel: Kernel, place: Placement, outer: Region) -> bool:
    """Whether a placement names a region as its parent, directly or indirectly."""
    for _ in kernel.regions:
        if place.parent in ("", outer.key):
            break
        between = kernel.locate(place.parent)
        if not isinstance(between, Placement):
            return False
        place = between
    return place.parent == outer.key


def own_parts(kernel: Kernel, region: Region) -> List[AddressRange]:
    """The parts of a region outside all its inner regions, ascending.

    :raises Unavailable: this kernel has no such region, or the source does not say where it is.
    """
    where = kernel.place(region).range
    others = [found for found in map(kernel.locate, kernel.regions) if isinstance(found, Placement)]
    inner = [found.range for found in others if lies_in(kernel, found, region)]
    return without(where, inner)


def without(where: AddressRange, holes: Iterable[AddressRange]) -> List[AddressRange]:
    """The parts of a range outside all holes, ascending."""
    parts, cursor = [], where.start
    for hole in sorted(holes, key=lambda hole: hole.start):
        if hole.start > where.end:
            break
        if hole.start > cursor:
            parts.append(AddressRange(cursor, hole.start - 1))
        cursor = max(cursor, hole.end + 1)
    if cursor <= where.end:
        parts.append(AddressRange(cursor, where.end))
    return parts


def only_image_moved(kernel: Kernel) -> bool:
    """Whether KASLR moved the kernel's image but no region, as with KASAN."""
    image = kernel.locate("kernel_image")
    if not isinstance(image, Placement) or not image.slide:
        return False
    others = [found for found in map(kernel.locate, kernel.regions) if found != image]
    slides = [other.slide for other in others if isinstance(other, Placement) and other.slide is not None]
    return bool(slides) and not any(slides)


class Places:
    """The innermost region at each address.

    :ivar starts: first addresses of ranges, ascending from 0.
    :ivar regions: region of each range, None for unused ones.
    """

    def __init__(self, kernel: Kernel) -> None:
        self.starts: List[int] = []
        self.regions: List[Optional[Region]] = []
        placements = place_regions(kernel)
        self._add(placements, placements.placed, AddressRange(0, ALL), None)

    def _add(
        self, placements: Placements, rows: Sequence[Placed], where: AddressRange, outer: Optional[Region]
    ) -> None:
        """Add the ranges of a region, or of all addresses."""
        cursor = where.start
        for region, found in rows:
            if found.range.start > cursor:
                self._stretch(cursor, outer)
            self._add(placements, placements.inside.get(region.key, ()), found.range, region)
            cursor = found.range.end + 1
        if cursor <= where.end:
            self._stretch(cursor, outer)

    def _stretch(self, start: int, region: Optional[Region]) -> None:
        self.starts.append(start)
        self.regions.append(region)

    def at(self, address: int) -> Optional[Region]:
        """The region that contains an address, None if none does."""
        return self.regions[bisect_right(self.starts, address) - 1]

    def key_at(self, address: int) -> str:
        """Key of the region that contains an address, ``hole`` if none does."""
        region = self.at(address)
        return HOLE if region is None else region.key
