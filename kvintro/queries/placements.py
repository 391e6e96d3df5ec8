# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which region an address lies in."""

from __future__ import annotations

from bisect import bisect_right
from typing import List, Optional, Tuple

from kvintro.kernel import Kernel
from kvintro.model import Placement
from kvintro.regions import Region

#: Key of an address that lies in no region, as in the layout.
HOLE = "hole"


class Places:
    """The regions of a kernel by address.

    :ivar starts: first addresses of stretches, ascending from 0.
    :ivar regions: the region of each stretch, None for unused ones.
    """

    def __init__(self, kernel: Kernel) -> None:
        placed: List[Tuple[int, int, Region]] = []
        # Constants of the paging mode first: a bound that was read and overlaps one of them is wrong.
        for region in sorted(kernel.regions, key=lambda r: not r.fixed):
            found = kernel.locate(region)
            if not isinstance(found, Placement):
                continue
            start, end = found.range.start, found.range.end
            if all(end < low or high < start for low, high, _ in placed):
                placed.append((start, end, region))
        self.starts: List[int] = []
        self.regions: List[Optional[Region]] = []
        cursor = 0
        for start, end, region in sorted(placed, key=lambda item: item[0]):
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
