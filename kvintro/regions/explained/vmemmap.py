# SPDX-License-Identifier: LGPL-2.1-or-later
"""What to know about the virtual memory map."""

from kvintro.regions.explained import Explanation, boot, config, macro, source, variable

EXPLAIN = Explanation(
    also=("mem_map", "struct page", "vmemmap_base", "virtual memory map"),
    purpose="""
    An array with a struct page for every page frame, indexed by the frame's number. Only the parts for
    memory that exists are backed, a section of 128 MB at a time (device memory in steps of 2 MB), so the
    array may span all the memory there could be.
    """,
    users="""
    The page allocator, the page cache, reverse mapping, reference counts: all code that handles pages
    rather than addresses. pfn_to_page() is an addition, page_to_pfn() a subtraction.
    """,
    definitions=(
        macro("VMEMMAP_START", "the start, which is vmemmap_base; as an array it is called vmemmap"),
        variable("vmemmap_base", "the start on this kernel"),
        variable("max_pfn", "how far the array is in use", shows="number"),
        config("SPARSEMEM_VMEMMAP", "this way of keeping page structures; the only one since 6.16"),
        config(
            "HUGETLB_PAGE_OPTIMIZE_VMEMMAP",
            "the structures of a huge page's tail share one page",
            "vmemmap_optimize_enabled",
        ),
        config("RANDOMIZE_MEMORY", "moved by KASLR, last of the three", "kernel_randomize_memory"),
        boot("nokaslr", "it stays at its default"),
        boot("hugetlb_free_vmemmap=", "on: free what huge pages do not need of it"),
        boot("memory_hotplug.memmap_on_memory", "hot-plugged memory brings its own page structures"),
    ),
    translation="""
    By page tables, mostly with pages of 2 MB. A struct page stands for a page: its physical address is
    (address - vmemmap_base) / sizeof(struct page) * 4096.
    """,
    attacker="""
    Pipes, skbs and others keep pointers from here: one leak narrows vmemmap_base down, and each pointer
    names a physical page. Overwriting a flag or a count can free a page that is in use.
    """,
    debugger="""
    64 bytes for every 4 KB, 1.6 % of memory. "kvintro page" decodes one, "kvintro pages" counts all. A
    pointer that is not a multiple of the structure's size from the start is not a page; one into an
    unbacked section is garbage.
    """,
    changed="""
    The size that KASLR reserves follows the direct map's, in whole TB. With four levels and a struct page
    of 64 bytes it is 1 TB, whatever is reserved for the direct map. With five levels it is 64 TB of the
    0.5 PB that mm.rst shows, or less where less is reserved for the direct map.
    """,
    sources=(
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
