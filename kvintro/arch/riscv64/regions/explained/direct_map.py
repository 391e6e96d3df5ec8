# SPDX-License-Identifier: LGPL-2.1-or-later
"""What to know about riscv64's direct map."""

from kvintro.regions.explained import Explanation, boot, macro, source, variable
from kvintro.regions.explained.shared import LINEAR_USERS

EXPLAIN = Explanation(
    also=("linear mapping", "physmap", "lowmem", "logical addresses", "page_offset", "direct_mapping"),
    purpose="""
    Maps all of RAM at a constant offset, so that the kernel can use any page without mapping it first. A
    quarter of the addresses of the mode is reserved for it.
    """,
    users=LINEAR_USERS,
    definitions=(
        macro("PAGE_OFFSET", "the start, which is also VMALLOC_END"),
        macro("KERN_VIRT_SIZE", "the size: 128 GB, 64 TB or 32 PB"),
        variable("phys_ram_base", "the physical address that PAGE_OFFSET has"),
        variable("max_pfn", "one more than the last page frame of RAM", shows="number"),
        variable("high_memory", "the virtual address after the last byte of RAM"),
        boot("debug_pagealloc=", "on: use the smallest pages only, and unmap free ones"),
        boot("mem=", "limits the memory that the kernel uses and maps"),
    ),
    translation="""
    physical = virtual - PAGE_OFFSET + phys_ram_base. This gives the place of each page, but only the page
    tables say whether it is mapped.
    """,
    attacker="""
    Every page has a second address here, even the pages of processes. Neither the range nor the place of RAM
    in it is random, so the address of each page frame is known. Pages of modules' code are executable here,
    too: the kernel gives them the same rights in both places.
    """,
    debugger="""
    Most pointers in structures point here. The image's code and constants are mapped here read-only, in small
    pages. The firmware's memory before the kernel is not the kernel's, and may not be mapped.
    """,
    sources=(
        source("bounds", "arch/riscv/include/asm/pgtable.h:KERN_VIRT_SIZE", releases=("6.12",)),
        source("what is mapped", "arch/riscv/mm/init.c:create_linear_mapping_page_table", releases=("6.12",)),
        source("rights of modules", "arch/riscv/mm/pageattr.c:__set_memory", releases=("6.12",)),
    ),
)
