# SPDX-License-Identifier: LGPL-2.1-or-later
"""What to know about aarch64's virtual memory map."""

from kvintro.regions.explained import Explanation, macro, source
from kvintro.regions.explained.shared import PAGES

EXPLAIN = Explanation(
    also=("struct page", "mem_map", "memmap", "page structures"),
    purpose=PAGES,
    users="The memory manager. Every page of RAM has an entry here, which says how the page is used.",
    definitions=(
        macro("VMEMMAP_START", "the start of the range that the build reserves"),
        macro("VMEMMAP_END", "its end"),
        macro("vmemmap", "the address of page frame 0's entry: VMEMMAP_START - memstart_addr / page size"),
    ),
    translation="""
    page = vmemmap + pfn * sizeof(struct page). The array itself is translated by page tables, in blocks if
    they fit.
    """,
    attacker="Its place is known if the place of RAM in the linear map is known.",
    debugger="""
    The entry of page frame 0 is usually outside the region, as there is no memory at physical address 0:
    only entries of memory sections are mapped.
    """,
    changed="""
    On a processor with fewer bits than the kernel was built for, the first part is not used, and newer
    kernels give it to vmalloc. VMCOREINFO still says where the whole range begins, below the end of
    vmalloc. Since 6.9 the range ends 1 GB below the top of the address space; before, its start was a power
    of two below the top.
    """,
    sources=(
        source(
            "bounds",
            "arch/arm64/include/asm/memory.h:VMEMMAP_START",
            "arch/arm64/include/asm/memory.h:VMEMMAP_END",
            "arch/arm64/include/asm/pgtable.h:vmemmap",
        ),
        source(
            "what vmalloc gets",
            "arch/arm64/include/asm/pgtable.h:VMEMMAP_UNUSED_NPAGES",
            releases=("6.12", "7.3"),
        ),
    ),
)
