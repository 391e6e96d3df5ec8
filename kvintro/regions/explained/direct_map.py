# SPDX-License-Identifier: LGPL-2.1-or-later
"""What to know about the direct map."""

from kvintro.regions.explained import Explanation, boot, config, macro, source, variable

EXPLAIN = Explanation(
    also=("physmap", "linear map", "lowmem", "logical addresses", "page_offset", "direct_mapping"),
    purpose="""
    Maps all of RAM at a constant offset, so that the kernel can use any page without mapping it first. An
    address here is the physical address plus that offset.
    """,
    users="""
    Nearly everything: the kernel uses what kmalloc, the slab caches and alloc_pages return at its address
    here, and so also page tables, the page cache and per-CPU data. The pages of processes are mapped here
    a second time.
    """,
    definitions=(
        macro("PAGE_OFFSET", "the start, which is page_offset_base; __pa() and __va() convert"),
        macro("__PAGE_OFFSET_BASE_L4", "the default start with four levels; _L5 with five"),
        variable("page_offset_base", "the start on this kernel"),
        variable(
            "direct_map_physmem_end",
            "the last physical address that there is room for (since 6.11, and in stable kernels before)",
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
            "left to randomise. For some releases only PCI_P2PDMA did this, and before them neither",
            "memremap_pages",
        ),
        config(
            "RANDOMIZE_MEMORY_PHYSICAL_PADDING",
            "otherwise, how many TB of room to leave for hot-plugged memory: 10 by default with "
            "MEMORY_HOTPLUG, else 0",
        ),
        boot("nokaslr", "all three stay at their defaults"),
        boot("nogbpages", "no 1 GB pages; gbpages allows them"),
        boot("debug_pagealloc=", "on: 4 KB pages only, and free ones are unmapped"),
        boot("mem=", "ends memory early, and with it what is mapped"),
        boot("mem_encrypt=", "on: entries have AMD's encryption bit, which is not part of the address"),
    ),
    translation="""
    physical = virtual - page_offset_base. That is where a page belongs; whether it is mapped, only the page
    tables say. They use the largest pages that fit, and 4 KB pages where rights or caching change within a
    larger one.
    """,
    attacker="""
    Gives every page a second, writable address, including pages of processes: the kernel can be pointed at
    data that a program prepared without ever touching user space (ret2dir). KASLR leaves the lower 30 bits
    of the base alone, so one leaked heap pointer leaves only as many candidates for the base as the
    machine has GB of address space for RAM. With four levels and all 64 TB reserved the base has about
    12.8 bits of entropy. Nothing here should be executable, except the real-mode trampoline below 1 MB.
    """,
    debugger="""
    Most pointers in structures point here. Not every address in the region is mapped: device windows,
    pages of memfd_secret, KFENCE's guard pages, poisoned memory, the cache of executable memory, and free
    pages under debug_pagealloc are holes in it. DirectMap4k and its neighbours in /proc/meminfo show how
    many large pages have been split.
    """,
    changed="""
    The often quoted start ffff888000000000 is the default since 4.20; before that it was ffff880000000000.
    With KASLR it is usually neither. mm.rst gives five levels 32 PB, but a physical address has 52 bits at
    most, 4 PB. The name lowmem comes from 32-bit machines, where the rest was highmem: 64-bit kernels have
    no such division.
    """,
    sources=(
        source(
            "base, conversion, defaults",
            "arch/x86/include/asm/page_64_types.h:__PAGE_OFFSET_BASE_L4",
            "arch/x86/include/asm/page_64_types.h:page_offset_base",
        ),
        source(
            "the size that is reserved, with ZONE_DEVICE; multiples of PUD_SIZE",
            "arch/x86/mm/kaslr.c:CONFIG_ZONE_DEVICE",
            "arch/x86/mm/kaslr.c:CONFIG_RANDOMIZE_MEMORY_PHYSICAL_PADDING",
            "commit 7ffb791423c7 x86/kaslr: Reduce KASLR entropy on most x86 systems",
            "commit 269031b15c14 x86/kaslr: Recognize all ZONE_DEVICE users as physaddr consumers",
        ),
        source("the padding's defaults", "arch/x86/Kconfig:RANDOMIZE_MEMORY_PHYSICAL_PADDING"),
        source(
            "physmem_end",
            "arch/x86/mm/kaslr.c:physmem_end",
            "commit ea72ce5da228 x86/kaslr: Expose and use the end of the physical memory address space",
        ),
        source("direct_map_physmem_end", "arch/x86/mm/kaslr.c:direct_map_physmem_end", releases=("7.3",)),
        source("46 or 52 bits", "arch/x86/include/asm/sparsemem.h:MAX_PHYSMEM_BITS"),
        source("high_memory", "arch/x86/kernel/setup.c:high_memory", releases=("6.1", "6.12")),
        source("high_memory", "mm/mm_init.c:high_memory = phys_to_virt", releases=("7.3",)),
        source(
            "page sizes, gbpages, debug_pagealloc",
            "arch/x86/mm/init.c:probe_page_size_mask",
            "arch/x86/mm/init.c:nogbpages",
        ),
        source("the trampoline", "arch/x86/realmode/init.c:set_real_mode_permissions"),
        source("mem=", "arch/x86/kernel/e820.c:parse_memopt"),
        source(
            "the default before 4.20",
            "commit d52888aa2753 x86/mm: Move LDT remap out of KASLR region on 5-level paging",
            releases=(),
        ),
    ),
)
