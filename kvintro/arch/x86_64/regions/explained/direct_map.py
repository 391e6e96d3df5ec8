# SPDX-License-Identifier: LGPL-2.1-or-later
"""What to know about the direct map."""

from kvintro.regions.explained import Explanation, boot, config, macro, source, variable
from kvintro.regions.explained.shared import LINEAR_USERS

EXPLAIN = Explanation(
    also=(
        "physmap",
        "linear map",
        "lowmem",
        "kernel logical addresses",
        "logical addresses",
        "page_offset",
        "direct_mapping",
    ),
    purpose="""
    Maps all of RAM at a constant offset, so that the kernel can use any page without mapping it first. An
    address here is the physical address plus that offset; it is called a kernel logical address.
    """,
    users=LINEAR_USERS,
    definitions=(
        macro("PAGE_OFFSET", "the start, which is page_offset_base; __pa() and __va() convert"),
        macro("__PAGE_OFFSET_BASE_L4", "the default start with four levels; _L5 with five"),
        macro(
            "vaddr_start",
            "the start of the space in which KASLR places this, vmalloc and vmemmap; the default start",
        ),
        variable("page_offset_base", "the start on this kernel"),
        variable(
            "direct_map_physmem_end",
            "the last physical address for which space is reserved (since 6.11, and in some earlier stable "
            "kernels)",
            "physmem_end",
        ),
        variable("max_pfn", "one more than the last page frame of RAM", shows="number"),
        variable("high_memory", "the virtual address after the last byte of RAM"),
        config(
            "RANDOMIZE_MEMORY",
            "KASLR moves this, vmalloc and vmemmap at boot, by multiples of 1 GB",
            "kernel_randomize_memory",
        ),
        config(
            "ZONE_DEVICE",
            "device memory may be added anywhere, so all 64 TB (4 PB) stay reserved, and less is left to "
            "randomise. In some earlier releases only PCI_P2PDMA had this effect, and before those neither",
            "memremap_pages",
        ),
        config(
            "RANDOMIZE_MEMORY_PHYSICAL_PADDING",
            "otherwise, how many TB to reserve for hot-plugged memory: 10 by default with "
            "MEMORY_HOTPLUG, else 0",
        ),
        boot("nokaslr", "all three stay at their defaults"),
        boot("nogbpages", "do not use 1 GB pages; gbpages allows them"),
        boot("debug_pagealloc=", "on: use 4 KB pages only, and unmap free ones"),
        boot("mem=", "limits the memory that the kernel uses and maps"),
        boot("mem_encrypt=", "on: entries contain AMD's encryption bit, which is not part of the address"),
    ),
    translation="""
    physical = virtual - page_offset_base. This gives the place of each page, but only the page tables say
    whether it is mapped. They use the largest pages that fit, and 4 KB pages where rights or caching differ
    within a larger one.
    """,
    attacker="""
    Every page has a second, writable address here, even the pages of processes. So an attacker can make the
    kernel use data that a program prepared, without any access to user space (ret2dir). KASLR does not
    change the lower 30 bits of the base. So after the leak of one heap pointer, the number of candidates for
    the base is only the number of GB that physical addresses of RAM span. With four levels and all 64 TB
    reserved, the base has about 12.8 bits of entropy. Nothing here should be executable, except the
    real-mode trampoline below 1 MB.
    """,
    debugger="""
    Most pointers in structures point here. Not every address in the region is mapped. Device memory, pages
    of memfd_secret, KFENCE's guard pages, poisoned memory, the cache of executable memory, and free pages
    under debug_pagealloc are holes. DirectMap4k, DirectMap2M and DirectMap1G in /proc/meminfo show how much
    is mapped by each page size, and so how many large pages have been split.
    """,
    changed="""
    The often quoted start ffff888000000000 is the default since 4.20; before that it was ffff880000000000.
    With KASLR it is usually neither. mm.rst gives the direct map 32 PB with five levels, but a physical
    address has at most 52 bits, which is 4 PB. The name lowmem comes from 32-bit machines, where the rest of
    memory was highmem. 64-bit kernels do not have this division.
    """,
    sources=(
        source("where KASLR begins", "arch/x86/mm/kaslr.c:vaddr_start"),
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
