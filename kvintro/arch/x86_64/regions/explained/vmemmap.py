# SPDX-License-Identifier: LGPL-2.1-or-later
"""The explanation of the virtual memory map."""

from kvintro.regions.explained import Explanation, boot, config, macro, source, variable

EXPLAIN = Explanation(
    also=("mem_map", "struct page", "vmemmap_base", "virtual memory map", "sparsemem"),
    purpose="""
    An array with a struct page for every page frame, indexed by the page frame number. Only the parts for
    existing memory have memory of their own, in sections of 128 MB (steps of 2 MB for device memory). So the
    array can span all memory that the machine could ever have. This way to keep account of memory is called
    SPARSEMEM.
    """,
    users="""
    The page allocator, the page cache, the reverse map, reference counting: all code that handles pages
    instead of addresses. pfn_to_page() is an addition, and page_to_pfn() is a subtraction.
    """,
    definitions=(
        macro("VMEMMAP_START", "the start, which is vmemmap_base; the array itself is called vmemmap"),
        variable("vmemmap_base", "the start on this kernel"),
        variable("max_pfn", "the array is in use below this page frame number", shows="number"),
        config("SPARSEMEM_VMEMMAP", "this array holds the struct pages; x86-64 has no other way since 6.16"),
        config(
            "HUGETLB_PAGE_OPTIMIZE_VMEMMAP",
            "the struct pages of a huge page's tail share one page",
            "vmemmap_optimize_enabled",
        ),
        config("RANDOMIZE_MEMORY", "KASLR moves it, as the last of the three", "kernel_randomize_memory"),
        boot("nokaslr", "it stays at its default"),
        boot("hugetlb_free_vmemmap=", "on: free the struct pages that huge pages do not need"),
        boot("memory_hotplug.memmap_on_memory", "hot-plugged memory contains its own struct pages"),
    ),
    translation="""
    By page tables, mostly with 2 MB pages. The page that a struct page describes has the physical address
    (address - vmemmap_base) / sizeof(struct page) * 4096.
    """,
    attacker="""
    Pipes, skbs and other structures contain pointers to struct pages. One leaked pointer narrows down
    vmemmap_base, and each pointer reveals a physical page. Overwriting a flag or a count can free a page
    that is in use.
    """,
    debugger="""
    The array has 64 bytes for every 4 KB, which is 1.6 % of memory. "kvintro page" decodes one struct page,
    and "kvintro pages" counts all of them. A pointer is not a struct page if its distance from the start is
    not a multiple of the structure's size, or if it points to a section that does not exist.
    """,
    changed="""
    The size that KASLR reserves depends on the direct map's size, in whole TB. With four levels and a struct
    page of 64 bytes it is always 1 TB. With five levels it is 64 TB of the 0.5 PB that mm.rst shows, or less
    if less is reserved for the direct map.
    """,
    sources=(
        source("the memory model", "mm/Kconfig:config SPARSEMEM"),
        source("start", "arch/x86/include/asm/pgtable_64_types.h:VMEMMAP_START"),
        source("whole TB", "arch/x86/mm/kaslr.c:DIV_ROUND_UP(vmemmap_size"),
        source(
            "sections",
            "arch/x86/include/asm/sparsemem.h:SECTION_SIZE_BITS",
            "mm/sparse.c:subsection_map",
            releases=("6.1", "6.12"),
        ),
        source("pages of 2 MB", "arch/x86/mm/init_64.c:vmemmap_populate"),
        source("the only model", "mm/Kconfig:SPARSEMEM_VMEMMAP", releases=("7.3",)),
        source("tails share a page", "mm/hugetlb_vmemmap.c:vmemmap_optimize_enabled"),
        source("hugetlb_free_vmemmap=", "mm/hugetlb_vmemmap.c:hugetlb_free_vmemmap"),
        source("memmap_on_memory", "mm/memory_hotplug.c:memmap_on_memory"),
        source("arithmetic", "include/asm-generic/memory_model.h:vmemmap + (pfn)"),
    ),
)
