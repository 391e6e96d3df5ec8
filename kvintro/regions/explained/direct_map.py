# SPDX-License-Identifier: LGPL-2.1-or-later
"""What to know about the direct map."""

from kvintro.regions.explained import Explanation, boot, config, macro, variable

EXPLAIN = Explanation(
    also=("physmap", "linear map", "lowmem", "logical addresses", "page_offset", "direct_mapping"),
    purpose="""
    All physical memory, mapped once from its first byte to its last, so that the kernel can use any page
    without mapping it first. An address here is its physical address plus a constant.
    """,
    users="""
    Nearly everything: what kmalloc, the slab caches and alloc_pages hand out is used at its address here,
    and so are page tables, the page cache and per-CPU data. The pages of processes are here too, a second
    time.
    """,
    definitions=(
        macro("PAGE_OFFSET", "the start, which is page_offset_base; __pa() and __va() convert"),
        macro("__PAGE_OFFSET_BASE_L4", "the default start with four levels; _L5 with five"),
        variable("page_offset_base", "the start on this kernel"),
        variable(
            "direct_map_physmem_end",
            "the last physical address that there is room for (since 6.11)",
            "physmem_end",
        ),
        variable("max_pfn", "one more than the last page frame of RAM", shows="number"),
        variable("high_memory", "the virtual address behind the last byte of RAM"),
        config(
            "RANDOMIZE_MEMORY",
            "KASLR moves this, vmalloc and vmemmap at boot, by multiples of 1 GB",
            "kernel_randomize_memory",
        ),
        config(
            "ZONE_DEVICE",
            "device memory may be added anywhere: all 64 TB (4 PB) stay reserved, and less is "
            "left to randomise",
            "memremap_pages",
        ),
        config(
            "RANDOMIZE_MEMORY_PHYSICAL_PADDING",
            "without ZONE_DEVICE, how many TB of room for hot-plugged memory, 10 by default",
        ),
        boot("nokaslr", "all three stay at their defaults"),
        boot("nogbpages", "no 1 GB pages; gbpages allows them"),
        boot("debug_pagealloc=", "on: 4 KB pages only, and free ones are unmapped"),
        boot("mem=", "ends memory early, and with it what is mapped"),
        boot("mem_encrypt=", "on: entries have AMD's encryption bit, which is no part of the address"),
    ),
    translation="""
    physical = virtual - page_offset_base. That is only where things belong: what is really there, the
    page tables say. They use the largest pages that fit, and pages of 4 KB where rights or caching change
    within a larger one.
    """,
    attacker="""
    A second, writable address for every page, those of processes included: data that a program has filled
    can be found by the kernel without ever touching user space (ret2dir). One leaked heap pointer gives
    the base to 1 GB, since KASLR leaves the lower 30 bits alone. With four levels and ZONE_DEVICE the
    base has about 12.8 bits of entropy. Nothing here should be executable.
    """,
    debugger="""
    Most pointers in structures are from here. Not everything within the region is mapped: devices'
    windows, pages of memfd_secret, KFENCE's guard pages, poisoned memory and free pages under
    debug_pagealloc are holes in it. How many large pages have been split shows in /proc/meminfo,
    DirectMap4k and its neighbours.
    """,
    changed="""
    The often quoted start ffff888000000000 is the default since 4.20, before it was ffff880000000000;
    with KASLR it is neither. mm.rst gives five levels 32 PB, but a physical address has 52 bits at most,
    4 PB. To call it lowmem is a habit from 32-bit machines, where the rest was highmem: 64-bit kernels
    have no such division.
    """,
)
