# SPDX-License-Identifier: LGPL-2.1-or-later
"""What to know about the virtual memory map."""

from kvintro.regions.explained import Explanation, boot, config, macro, variable

EXPLAIN = Explanation(
    also=("mem_map", "struct page", "vmemmap_base", "virtual memory map"),
    purpose="""
    An array with a struct page for every page frame, indexed by the frame's number. Only the parts for
    memory that exists are backed, a section of 128 MB at a time, so that the array may span all there
    could be.
    """,
    users="""
    The page allocator, the page cache, reverse mapping, reference counts: whoever speaks of a page and
    not of an address. pfn_to_page() is an addition, page_to_pfn() a subtraction.
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
    Pipes, skbs and others keep pointers from here: one leak gives vmemmap_base, and each names a physical
    page. Overwriting a flag or a count frees a page that is in use.
    """,
    debugger="""
    64 bytes for every 4 KB, 1.6 % of memory. "kvintro page" decodes one, "kvintro pages" counts all. A
    pointer that is not a multiple of the structure's size is no page; one into an unbacked section is
    garbage.
    """,
    changed="""
    Its reserved size follows the direct map's, which mm.rst cannot say: 1 TB where 64 TB are reserved,
    less on kernels without ZONE_DEVICE. With five levels at most 64 TB of the 0.5 PB are of use.
    """,
)
