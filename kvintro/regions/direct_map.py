# SPDX-License-Identifier: LGPL-2.1-or-later
"""All physical memory at one stretch of addresses: where most of what the kernel allocates is used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Tuple

from kvintro.arch.x86_64 import ALL, PAGE_SHIFT
from kvintro.errors import Unavailable
from kvintro.model import AddressRange, Located, Placement
from kvintro.regions import Region

if TYPE_CHECKING:
    from kvintro.kernel import Kernel


class DirectMap(Region):
    """From ``page_offset_base``; what is reserved follows arch/x86/mm/kaslr.c:kernel_randomize_memory."""

    key = "direct_map"
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
        raise Unavailable("nothing tells where the direct map ends")


REGION = DirectMap()
