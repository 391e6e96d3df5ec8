# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which region an address lies in."""

from __future__ import annotations

from bisect import bisect_right
from typing import List, Optional, Tuple

from kvintro.kernel import Kernel
from kvintro.model import Absent, Placement, Unknown
from kvintro.regions import Region

#: Key of an address that lies in no region, as in the layout.
HOLE = "hole"


def place_regions(
    kernel: Kernel,
) -> Tuple[List[Tuple[Region, Placement]], List[Tuple[Region, "Absent | Unknown"]]]:
    """Regions that lie somewhere, without overlap; and those that do not, with the reason."""
    placed: List[Tuple[Region, Placement]] = []
    missing: List[Tuple[Region, "Absent | Unknown"]] = []
    # Constants of the paging mode first: a bound that was read and overlaps one of them is wrong.
    for region in sorted(kernel.regions, key=lambda r: not r.fixed):
        found = kernel.locate(region)
        if not isinstance(found, Placement):
            missing.append((region, found))
            continue
        other = next((r for r, p in placed if p.range.overlaps(found.range)), None)
        if other is not None:
            bounds = f"{found.range.start:016x}-{found.range.end:016x}"
            missing.append((region, Unknown(f"its bounds {bounds} overlap {other.name}")))
            continue
        placed.append((region, found))
    placed.sort(key=lambda item: item[1].range.start)
    return placed, missing


class Places:
    """The regions of a kernel by address.

    :ivar starts: first addresses of stretches, ascending from 0.
    :ivar regions: the region of each stretch, None for unused ones.
    """

    def __init__(self, kernel: Kernel) -> None:
        placed, _ = place_regions(kernel)
        self.starts: List[int] = []
        self.regions: List[Optional[Region]] = []
        cursor = 0
        for region, found in placed:
            start, end = found.range.start, found.range.end
            if start > cursor:
                self.starts.append(cursor)
                self.regions.append(None)
            self.starts.append(start)
            self.regions.append(region)
            cursor = end + 1
        if cursor < 1 << 64:
            self.starts.append(cursor)
            self.regions.append(None)

    def at(self, address: int) -> Optional[Region]:
        """The region of an address, None if it is in none."""
        return self.regions[bisect_right(self.starts, address) - 1]

    def key_at(self, address: int) -> str:
        """The key of the region, ``hole`` for none."""
        region = self.at(address)
        return HOLE if region is None else region.key
