# SPDX-License-Identifier: LGPL-2.1-or-later
"""What to know about the vmalloc area."""

from kvintro.regions.explained import Explanation, boot, config, macro, source, variable

EXPLAIN = Explanation(
    also=("ioremap", "vmap", "vmalloc_base"),
    purpose="""
    Maps scattered physical pages as one contiguous virtual range. Each range is an area, with an unmapped
    guard page behind it, so that running off its end faults.
    """,
    users="""
    vmalloc() and kvmalloc() for large tables; vmap() for pages that exist already; ioremap() for devices'
    registers and memory, which allocates nothing but addresses; the stacks of all kernel threads and
    processes (VMAP_STACK); BPF maps, and per-CPU memory beyond the first chunk.
    """,
    definitions=(
        macro("VMALLOC_START", "the start, which is vmalloc_base"),
        macro("VMALLOC_END", "the last byte: unlike most ends in the kernel it is inclusive"),
        macro("VMALLOC_SIZE_TB", "32, or 12800 with five levels"),
        variable("vmalloc_base", "the start on this kernel"),
        variable(
            "nr_vmap_nodes",
            "over how many lists the areas are spread (since 6.9; before it was one)",
            size=4,
            shows="number",
        ),
        config(
            "RANDOMIZE_MEMORY",
            "moved by KASLR after the direct map, by a multiple of 1 GB",
            "kernel_randomize_memory",
        ),
        config("VMAP_STACK", "kernel stacks lie here, each with a guard page"),
        config(
            "KASAN_VMALLOC",
            "real shadow memory for it, in place of one shared page of zeros",
            "kasan_populate_vmalloc",
        ),
        config("KMSAN", "three quarters go to the sanitizer's metadata", "kmsan_enabled"),
        boot("nokaslr", "it stays at its default"),
        boot("nohugevmalloc", "no large pages for vmalloc()"),
        boot("nohugeiomap", "no large pages for ioremap()"),
    ),
    translation="""
    By page tables only: neighbours here need not be neighbours in memory. vmalloc_to_page() walks them.
    Large areas may be mapped by pages of 2 MB, and ioremap() uses 1 GB too. The root's entries are filled
    at boot, so that all processes share what comes later.
    """,
    attacker="""
    Kernel stacks, BPF programs' data and large buffers. Areas are placed from the start of the region up,
    so one leaked pointer usually gives the base away, a multiple of 1 GB. The guard pages stop overruns
    that go byte by byte, but not a write that jumps over them. /proc/vmallocinfo is for root only.
    """,
    debugger="""
    "kvintro show vmalloc" lists the areas with their callers. A pointer from here in place of one from
    the direct map is a bug wherever memory must be contiguous: virt_to_page() and DMA do not work on it.
    Memory of devices is mapped but not in any dump.
    """,
    changed="""
    Nothing here is "highmem": that word belongs to 32-bit kernels. Stacks came in 4.9, large pages for
    vmalloc() on x86 in 5.18, and the list of areas was split over vmap_nodes in 6.9.
    """,
    sources=(
        source(
            "bounds; KMSAN's quarters",
            "arch/x86/include/asm/pgtable_64_types.h:VMALLOC_SIZE_TB",
            "arch/x86/include/asm/pgtable_64_types.h:VMEMORY_END",
            "arch/x86/include/asm/pgtable_64_types.h:VMALLOC_QUARTER_SIZE",
        ),
        source(
            "one guard page, behind the area", "mm/vmalloc.c:VM_NO_GUARD", "mm/vmalloc.c:size += PAGE_SIZE"
        ),
        source("large pages", "mm/vmalloc.c:vmap_allow_huge", "mm/vmalloc.c:nohugeiomap"),
        source("lists", "mm/vmalloc.c:vmap_area_list", releases=("6.1",)),
        source("lists", "mm/vmalloc.c:nr_vmap_nodes", releases=("6.12", "7.3")),
        source("the root's entries", "arch/x86/mm/init_64.c:preallocate_vmalloc_pages"),
        source("the lowest place that fits", "mm/vmalloc.c:find_vmap_lowest_match"),
        source("/proc/vmallocinfo", "mm/vmalloc.c:0400"),
        source("stacks", "kernel/fork.c:VMAP_STACK"),
        source("per-CPU memory", "mm/percpu-vm.c:pcpu_get_vm_areas"),
        source("shadow", "arch/x86/mm/kasan_init_64.c:CONFIG_KASAN_VMALLOC"),
        source("5.18", "commit eed1fcee556f x86: Support huge vmalloc mappings", releases=()),
    ),
)
