# SPDX-License-Identifier: LGPL-2.1-or-later
"""How much of a stretch of address space is mapped, by page size, counted in the page tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Dict, Mapping

from kvintro.arch.x86_64 import X86Geometry
from kvintro.paging import LEVEL_MASK, LEVEL_SHIFT, MAPPED, OVER_LIMIT, REPEATED, UNREADABLE, Ranges

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

PAGE_NAMES = {1: "4K", 2: "2M", 3: "1G"}


@dataclass(frozen=True)
class Census:
    """What is mapped in a stretch.

    :ivar mapped: bytes of address space that some entry maps to memory.
    :ivar repeated: bytes of those that lie below a table already counted elsewhere in the same tree.
    :ivar leaves: number of entries that map, by page size.
    :ivar unreadable: bytes of address space whose tables are not in the source or were not walked.
    :ivar limited: the tree has more tables than there can be, and was not walked to its end.
    """

    mapped: int
    repeated: int
    leaves: Mapping[str, int]
    unreadable: int
    limited: bool = False


def count(ranges: Ranges, geometry: X86Geometry, start: int, end: int) -> Census:
    """Count what is mapped from start to end, both inclusive and within the ranges."""
    import numpy

    part = ranges.clip(start, end)
    sizes, keys = part.sizes(), part.keys

    def total(chosen: "NDArray[numpy.bool_]") -> int:
        return int(sizes[chosen].sum())

    here = (keys & numpy.uint64(MAPPED)) != 0
    repeated = here & ((keys & numpy.uint64(REPEATED)) != 0)
    lost = ~here & ((keys & numpy.uint64(UNREADABLE | OVER_LIMIT)) != 0)
    leaves: Dict[str, int] = {}
    levels = (keys & numpy.uint64(LEVEL_MASK)) >> numpy.uint64(LEVEL_SHIFT)
    for level, name in PAGE_NAMES.items():
        shift = geometry.shift(level)
        # A page that sticks out of the stretch counts in it too.
        whole = sizes[here & (levels == level)] + numpy.uint64((1 << shift) - 1) >> numpy.uint64(shift)
        if len(whole):
            leaves[name] = int(whole.sum())
    return Census(total(here), total(repeated), leaves, total(lost))
