# SPDX-License-Identifier: LGPL-2.1-or-later
"""What to know about aarch64's linear map."""

from kvintro.regions.explained import Explanation, boot, config, macro, source, variable
from kvintro.regions.explained.shared import LINEAR_USERS

EXPLAIN = Explanation(
    also=("linear mapping", "physmap", "lowmem", "logical addresses", "page_offset", "direct_mapping"),
    purpose="""
    Maps all of RAM at a constant offset, so that the kernel can use any page without mapping it first. The
    kernel's documentation calls it the linear map. It is the lower half of the kernel's addresses.
    """,
    users=LINEAR_USERS,
    definitions=(
        macro("PAGE_OFFSET", "-2^VA_BITS; the range begins higher if the processor has fewer bits"),
        macro("PAGE_END", "the end: -2^(VA_BITS_MIN - 1), or where KASAN's shadow starts"),
        variable(
            "memstart_addr",
            "the physical address that PAGE_OFFSET has; PHYS_OFFSET is a macro for it. It may be negative",
            shows="signed",
        ),
        variable("max_pfn", "one more than the last page frame of RAM", shows="number"),
        variable("high_memory", "the virtual address after the last byte of RAM"),
        config(
            "RANDOMIZE_BASE",
            "KASLR also moves RAM within the linear map, in kernels older than 7.3",
            "kaslr_init",
        ),
        config("RODATA_FULL_DEFAULT_ENABLED", "what is read-only elsewhere is read-only here, too"),
        boot("nokaslr", "RAM begins at PAGE_OFFSET, or as near to it as its alignment allows"),
        boot("rodata=", "full, the default: read-only aliases, and small pages where rights differ"),
        boot("debug_pagealloc=", "on: use the smallest pages only, and unmap free ones"),
        boot("mem=", "limits the memory that the kernel uses and maps"),
    ),
    translation="""
    physical = virtual - PAGE_OFFSET + memstart_addr. This gives the place of each page, but only the page
    tables say whether it is mapped. They use blocks and runs of entries with the contiguous bit where
    rights are the same.
    """,
    attacker="""
    Every page has a second address here, even the pages of processes, and it is not executable. The range
    has the same place on every boot. Where RAM begins in it is random only on processors whose physical
    addresses are shorter than the range, and on newer kernels never. Without that an attacker knows the
    address of each page frame.
    """,
    debugger="""
    Most pointers in structures point here. Physical memory seldom begins at 0 on aarch64, so the lowest
    address of RAM is not that of page frame 0. Pages of memfd_secret, KFENCE's guard pages and poisoned
    memory are holes. The image's code and constants are mapped here read-only; newer kernels do not map its
    data here at all.
    """,
    changed="""
    Until 5.3 the linear map was the upper half, and everything else was below it. Before 6.9 the kernel's
    own dump of its tables began at PAGE_OFFSET even where the processor has fewer bits. A kernel for 52
    bits on such a processor keeps PAGE_OFFSET, and makes memstart_addr smaller instead, often negative.
    """,
    sources=(
        source(
            "bounds and conversion",
            "arch/arm64/include/asm/memory.h:PAGE_OFFSET",
            "arch/arm64/include/asm/memory.h:_PAGE_END",
            "arch/arm64/include/asm/memory.h:memstart_addr",
        ),
        source("where RAM begins", "arch/arm64/mm/init.c:arm64_memblock_init"),
        source("the draw", "arch/arm64/mm/init.c:memstart_offset_seed", releases=("6.1", "6.12")),
        source(
            "the upper half before 5.4", "commit 14c127c957c1 arm64: mm: Flip kernel VA space", releases=()
        ),
    ),
)
