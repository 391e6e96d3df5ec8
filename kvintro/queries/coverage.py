# SPDX-License-Identifier: LGPL-2.1-or-later
"""Counts in the page tables how much of an address range is mapped, by page size."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, Dict, List, Mapping, Optional, Set

from kvintro.arch.form import PagingForm
from kvintro.errors import Unavailable
from kvintro.kernels import Kernel, Region
from kvintro.model import ALL
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
from kvintro.readers.memory import SYSTEM_RAM, Physical
from kvintro.readers.structures import TROUBLE, pointer_at
from kvintro.regions.vmemmap import REGION as VMEMMAP
from kvintro.regions.vmemmap import section_is_online

_MOST_SECTIONS = 1 << 12  # maximum number of sections, of 128 MB each, to look up for one region

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Coverage:
    """What is mapped in an address range.

    :ivar mapped: bytes of address space that are mapped to memory.
    :ivar repeated: number of those that are below a table already counted elsewhere in the same tree.
    :ivar leaves: number of mapping entries, by page size.
    :ivar unreadable: bytes of address space whose tables are not in the source or were not walked.
    :ivar limited: whether the tree has an impossible number of tables, and was not walked to its end.
    """

    mapped: int
    repeated: int
    leaves: Mapping[str, int]
    unreadable: int
    limited: bool = False


def count(ranges: Ranges, form: PagingForm, start: int, end: int) -> Coverage:
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
    for level, name in form.page_names.items():
        shift = form.shift(level)
        # A page that extends beyond the range counts too.
        whole = sizes[here & (levels == level)] + numpy.uint64((1 << shift) - 1) >> numpy.uint64(shift)
        if len(whole):
            leaves[name] = int(whole.sum())
    return Coverage(total(here), total(repeated), leaves, total(lost))


def contradiction(kernel: Kernel, region: Region, mapped: int) -> Optional[str]:
    """Why a region must map more than is seen; None if nothing is known to be missing.

    Every online section of memory is in the direct map and has its struct pages
    (mm/memory_hotplug.c:add_pages, mm/sparse.c). Listed modules are mapped.
    """
    try:
        if region is kernel.regions.modules:
            return None if mapped else _listed_module(kernel)
        if region is kernel.regions.direct_map:
            base, size = kernel.linear_offset.value, 1 << kernel.section_size_bits.value
        elif region is kernel.regions.vmemmap:
            base, page, _ = VMEMMAP.pages(kernel)
            size = page << kernel.section_size_bits.value - kernel.page_shift
        else:
            return None
        frames = kernel.max_pfn.value
        if not mapped:
            ram = frames << kernel.page_shift
            return f"nothing is mapped, and there is RAM up to {ram:#x} ({frames:#x} pages)"
        sections = -(-(frames << kernel.page_shift) >> kernel.section_size_bits.value)
        start, last = kernel.place(region).range.start, base + sections * size - 1 & ALL
        if last < start:
            return None  # max_pfn or the region's start is damaged
        lost = lost_sections(kernel, base, size, start, last)
        if region is kernel.regions.direct_map:
            lost = _with_ram(kernel, lost)
    except (Unavailable, ValueError):
        return None
    if not lost:
        return None
    return f"nothing is mapped for {len(lost)} sections of memory that are online, the first is {lost[0]}"


def _with_ram(kernel: Kernel, sections: List[int]) -> List[int]:
    """Keep sections that have RAM: firmware's memory can have struct pages and no mapping
    (memblock_mark_nomap). If the kernel's list of RAM is unknown, keep those of which the dump has memory.
    """
    physical = Physical(kernel) if sections else None
    if physical is None:
        return sections
    shift = kernel.section_size_bits.value
    if not physical.resources:
        return _held(kernel, sections, shift)

    def has_ram(number: int) -> bool:
        names = physical.overlapping(number << shift, (number + 1 << shift) - 1)
        return any(name.startswith(SYSTEM_RAM) for name in names)

    return [number for number in sections if has_ram(number)]


def _held(kernel: Kernel, sections: List[int], shift: int) -> List[int]:
    """The sections, ascending, of which the dump has or excludes memory; all of them if that is unknown."""
    if kernel.source.held is None:
        return sections
    found: Set[int] = set()
    for one in kernel.source.held():
        first = bisect_left(sections, one.start >> shift)
        found.update(sections[first : bisect_right(sections, one.end - 1 >> shift)])
    return sorted(found)


def _listed_module(kernel: Kernel) -> Optional[str]:
    head = kernel.find_symbol("modules")
    try:
        first = head if head is None else pointer_at(kernel, head)
    except TROUBLE:
        return None
    if first == head or first is None or first not in kernel.form.kernel:
        return None
    return f"nothing is mapped, and the kernel lists a module at {first:#x}"


def lost_sections(kernel: Kernel, base: int, size: int, start: int, last: int) -> List[int]:
    """Numbers of the sections that are online but have neither a mapping nor a non-empty entry.

    :param base: address of section 0's part of the region, even if it does not exist, modulo 2^64.
    :param size: size of each section's part in bytes.
    :param start: first address of the region.
    :param last: last address of the last section's part.
    """
    lost: List[int] = []
    left = _MOST_SECTIONS
    ranges = kernel.kernel_ranges.clip(start, last)
    for low, high, _ in ranges.matching([(MAPPED | NONZERO | UNREADABLE | OVER_LIMIT, 0)], _MOST_SECTIONS):
        first, behind = ((low - base & ALL) + size - 1) // size, (high + 1 - base & ALL) // size
        for index in range(first, min(behind, first + left)):
            left -= 1
            if section_is_online(kernel, index):
                lost.append(index)
    return lost
