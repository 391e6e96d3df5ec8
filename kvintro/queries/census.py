# SPDX-License-Identifier: LGPL-2.1-or-later
"""How much of a stretch of address space is mapped, by page size, counted in the page tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, Mapping

from kvintro.arch.x86_64 import X86Geometry
from kvintro.paging import LEVEL_MASK, LEVEL_SHIFT, MAPPED, OVER_LIMIT, REPEATED, UNREADABLE, Ranges

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
    mapped = repeated = unreadable = 0
    leaves: Dict[str, int] = {}
    for low, high, key in ranges.clip(start, end).select(MAPPED | UNREADABLE | OVER_LIMIT):
        size = high - low + 1
        if not key & MAPPED:
            unreadable += size
            continue
        mapped += size
        if key & REPEATED:
            repeated += size
        level = (key & LEVEL_MASK) >> LEVEL_SHIFT
        name = PAGE_NAMES[level]
        # A page that sticks out of the stretch counts in it too.
        leaves[name] = leaves.get(name, 0) + -(-size >> geometry.shift(level))
    ordered = {name: leaves[name] for name in PAGE_NAMES.values() if name in leaves}
    return Census(mapped, repeated, ordered, unreadable)
