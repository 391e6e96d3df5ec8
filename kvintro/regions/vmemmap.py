# SPDX-License-Identifier: LGPL-2.1-or-later
"""The virtual memory map: one ``struct page`` for every page frame, at its number."""

from __future__ import annotations

from typing import TYPE_CHECKING, Tuple

from kvintro.arch.x86_64 import PAGE_SHIFT, PAGE_SIZE
from kvintro.errors import Unavailable
from kvintro.model import AddressRange, Fact, Located, Placement
from kvintro.regions import Region

if TYPE_CHECKING:
    from kvintro.kernel import Kernel

# include/linux/mmzone.h: flags kept in the low bits of section_mem_map; 6 bits at most so far, while the map
# of a section is aligned to far more.
_SECTION_FLAGS = 0xFFF


class Vmemmap(Region):
    """From ``vmemmap_base``; what is reserved follows arch/x86/mm/kaslr.c:kernel_randomize_memory."""

    key = "vmemmap"
    row = 7
    name = "virtual memory map, struct page"
    macro = "VMEMMAP_START"

    def locate(self, kernel: Kernel) -> Located:
        base = kernel.first_fact(
            lambda: kernel.value("vmemmap_base"),
            lambda: kernel.number("SYMBOL(vmemmap)"),
            lambda: self._from_section(kernel),
        )
        default = kernel.geometry.vmemmap_base
        page = kernel.page_struct_size.value
        direct = kernel.locate("direct_map")
        if not isinstance(direct, Placement):
            raise Unavailable(f"its size follows the direct map's, and there {direct.reason}")
        needed = (direct.range.size >> PAGE_SHIFT) * page
        reserved = -(-needed >> 40) << 40
        used = None
        try:
            last = base.value + kernel.max_pfn.value * page - 1
            if base.value <= last < base.value + reserved:
                used = AddressRange(base.value, last)
        except Unavailable:
            pass
        return Placement(
            AddressRange(base.value, base.value + reserved - 1),
            f"{base.provenance}, size of the direct map",
            default_start=default,
            slide=base.value - default,
            used=used,
            used_note="up to max_pfn",
        )

    def pages(self, kernel: Kernel) -> Tuple[int, int, int]:
        """(address of page frame 0's struct page, size of each, how many there is room for).

        :raises Unavailable: the source does not tell.
        """
        found = kernel.locate(self)
        if not isinstance(found, Placement):
            raise Unavailable(found.reason)
        size = kernel.page_struct_size.value
        if not 0 < size <= PAGE_SIZE:
            raise Unavailable(f"a struct page of {size} bytes makes no sense")
        return found.range.start, size, found.range.size // size

    def _from_section(self, kernel: Kernel) -> Fact[int]:
        """The map of section 0, less the flags: with SPARSEMEM_VMEMMAP every section's is vmemmap itself."""
        root = kernel.number("SYMBOL(mem_section)").value
        offset = kernel.number("OFFSET(mem_section.section_mem_map)").value
        if kernel.source.vmcoreinfo.get("LENGTH(mem_section)"):
            # SPARSEMEM_EXTREME: an array of pointers to pages of sections; the key has the array's address.
            root = int.from_bytes(kernel.read(root, 8), "little")
        value = int.from_bytes(kernel.read(root + offset, 8), "little") & ~_SECTION_FLAGS
        if value < kernel.geometry.guard_hole.end:
            raise Unavailable("section 0 has no memory map")
        return Fact(value, "VMCOREINFO SYMBOL(mem_section)")


REGION = Vmemmap()
