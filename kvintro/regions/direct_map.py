# SPDX-License-Identifier: LGPL-2.1-or-later
"""All physical memory at one stretch of addresses: where most of what the kernel allocates is used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Optional, Tuple

from kvintro.arch.x86_64 import ALL, CPU_ENTRY_AREA_BASE, PAGE_SHIFT
from kvintro.errors import Unavailable
from kvintro.model import AddressRange, Located, Placement
from kvintro.paging import MAPPED
from kvintro.regions import Linear, Region

if TYPE_CHECKING:
    from kvintro.kernel import Kernel


# Memory that is not RAM leaves holes in the direct map, up to where devices' 64-bit windows lie.
_LARGEST_GAP = 1 << 40


class DirectMap(Region):
    """From ``page_offset_base``; what is reserved follows arch/x86/mm/kaslr.c:kernel_randomize_memory."""

    key = "direct_map"
    row = 5
    name = "direct map of physical memory"
    macro = "PAGE_OFFSET"

    def locate(self, kernel: Kernel) -> Located:
        base = kernel.page_offset_base
        default = kernel.geometry.page_offset_base
        end, source = self._reserved_end(kernel, base.value, base.value - default)
        used = None
        try:
            last = base.value + (kernel.max_pfn.value << PAGE_SHIFT) - 1
            if base.value <= last <= end:
                used = AddressRange(base.value, last)
        except Unavailable:
            pass
        return Placement(
            AddressRange(base.value, end),
            f"{base.provenance}, {source}",
            default_start=default,
            slide=base.value - default,
            used=used,
            used_note="up to max_pfn",
        )

    def linear(self, kernel: Kernel) -> Optional[Linear]:
        """``__pa()`` below the image."""
        found = kernel.locate(self)
        if not isinstance(found, Placement):
            raise Unavailable(found.reason)
        return Linear(found.range, kernel.page_offset_base.value)

    def _reserved_end(self, kernel: Kernel, base: int, slide: int) -> Tuple[int, str]:
        try:
            # 6.12 calls it physmem_end, later kernels direct_map_physmem_end; both inclusive.
            last = kernel.first_value("direct_map_physmem_end", "physmem_end")
            if last.value < 1 << kernel.geometry.max_physmem_bits:
                return base + last.value & ALL, last.provenance
        except Unavailable:
            pass
        if slide == 0:
            return base + (1 << kernel.geometry.max_physmem_bits) - 1, "MAX_PHYSMEM_BITS"
        # Before the variable existed the reserved size was gone after boot: only what comes next bounds it.
        following = kernel.locate("vmalloc")
        if isinstance(following, Placement) and following.range.start > base:
            return following.range.start - 1, "up to vmalloc_base"
        return self._mapped_end(kernel, base), "mapped at least up to there"

    def _mapped_end(self, kernel: Kernel, base: int) -> int:
        """Last address of what page tables map from the base on as the direct map would."""
        end = None
        for low, high, _ in kernel.kernel_ranges.clip(base, CPU_ENTRY_AREA_BASE - 1).select(MAPPED):
            if end is not None and low > end + _LARGEST_GAP:
                break
            if kernel.walk(low).physical != low - base:
                break
            end = high
        if end is None:
            raise Unavailable("nothing tells where the direct map ends")
        return end


REGION = DirectMap()
