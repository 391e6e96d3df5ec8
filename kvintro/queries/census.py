# SPDX-License-Identifier: LGPL-2.1-or-later
"""How much of a stretch of address space is mapped, by page size, counted in the page tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Dict, List, Mapping, Optional

from kvintro.arch.x86_64 import ALL, PAGE_SHIFT, START_KERNEL_MAP, X86Geometry
from kvintro.errors import Unavailable
from kvintro.kernel import Kernel
from kvintro.paging import (
    LEVEL_MASK,
    LEVEL_SHIFT,
    MAPPED,
    NONZERO,
    OVER_LIMIT,
    REPEATED,
    UNREADABLE,
    Ranges,
)
from kvintro.readers.structures import TROUBLE, pointer_at
from kvintro.regions.vmemmap import REGION as VMEMMAP
from kvintro.regions.vmemmap import section_is_online

_MOST_SECTIONS = 1 << 12  # looked up for one region; of 128 MB each

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


def contradiction(kernel: Kernel, key: str, mapped: int) -> Optional[str]:
    """Why so much cannot be all that a region maps; None if nothing is known to be missing.

    Every section of memory that is online is in the direct map and has its struct pages
    (mm/memory_hotplug.c:add_pages, mm/sparse.c). Modules that are listed are mapped.
    """
    try:
        if key == "modules":
            return None if mapped else _listed_module(kernel)
        if key == "direct_map":
            base, size = kernel.page_offset_base.value, 1 << kernel.section_size_bits.value
        elif key == "vmemmap":
            base, page, _ = VMEMMAP.pages(kernel)
            size = page << kernel.section_size_bits.value - PAGE_SHIFT
        else:
            return None
        frames = kernel.max_pfn.value
        if not mapped:
            return f"nothing is mapped, and there is RAM up to {frames << PAGE_SHIFT:#x} ({frames:#x} pages)"
        end = base + -(-(frames << PAGE_SHIFT) >> kernel.section_size_bits.value) * size
        if end > ALL + 1:
            return None  # max_pfn or where the region begins is damaged
        lost = lost_sections(kernel, base, size, end)
    except (Unavailable, ValueError):
        return None
    if not lost:
        return None
    return f"nothing is mapped for {len(lost)} sections of memory that are online, the first is {lost[0]}"


def _listed_module(kernel: Kernel) -> Optional[str]:
    head = kernel.find_symbol("modules")
    try:
        first = head if head is None else pointer_at(kernel, head)
    except TROUBLE:
        return None
    if first == head or first is None or not START_KERNEL_MAP <= first <= ALL:
        return None
    return f"nothing is mapped, and the kernel lists a module at {first:#x}"


def lost_sections(kernel: Kernel, base: int, size: int, end: int) -> List[int]:
    """Numbers of the sections that are online, and for which nothing is mapped and no entry is kept.

    :param base: where the first section's part of a region begins.
    :param size: bytes of each section's part.
    :param end: address behind the last section's part.
    """
    lost: List[int] = []
    left = _MOST_SECTIONS
    ranges = kernel.kernel_ranges.clip(base, end - 1)
    for low, high, _ in ranges.matching([(MAPPED | NONZERO | UNREADABLE | OVER_LIMIT, 0)], _MOST_SECTIONS):
        first, behind = -(-(low - base) // size), (high + 1 - base) // size
        for index in range(first, min(behind, first + left)):
            left -= 1
            if section_is_online(kernel, index):
                lost.append(index)
    return lost
