# SPDX-License-Identifier: LGPL-2.1-or-later
"""The explanation of the vmalloc area."""

from kvintro.regions.explained import Explanation, boot, config, macro, source, variable

EXPLAIN = Explanation(
    also=("ioremap", "vmap", "vmalloc_base"),
    purpose="""
    Maps scattered physical pages as one contiguous virtual range. Each range is called an area. It has an
    unmapped guard page after it, so that an access beyond its end faults.
    """,
    users="""
    vmalloc() and kvmalloc() for large tables; vmap() for pages that already exist; ioremap() for registers
    and memory of devices, which allocates only addresses; the kernel stacks of all threads (VMAP_STACK); BPF
    maps; and per-CPU memory beyond the first chunk.
    """,
    definitions=(
        macro("VMALLOC_START", "the start, which is vmalloc_base"),
        macro("VMALLOC_END", "the last byte: unlike most ends in the kernel it is inclusive"),
        macro("VMALLOC_SIZE_TB", "32, or 12800 with five levels"),
        variable("vmalloc_base", "the start on this kernel"),
        variable(
            "nr_vmap_nodes",
            "the number of lists that hold the areas (since 6.9; earlier kernels have one list)",
            size=4,
            shows="number",
        ),
        config(
            "RANDOMIZE_MEMORY",
            "KASLR places it after the direct map, at a multiple of 1 GB",
            "kernel_randomize_memory",
        ),
        config("VMAP_STACK", "kernel stacks are here, each with a guard page"),
        config(
            "KASAN_VMALLOC",
            "it has real shadow memory instead of one shared page of zeros",
            "kasan_populate_vmalloc",
        ),
        config("KMSAN", "three quarters of it are for the sanitizer's metadata", "kmsan_enabled"),
        boot("nokaslr", "it stays at its default"),
        boot("nohugevmalloc", "do not use large pages for vmalloc()"),
        boot("nohugeiomap", "do not use large pages for ioremap()"),
    ),
    translation="""
    By page tables only, because pages that are neighbours here may be apart in memory. vmalloc_to_page()
    walks the tables. Large areas may be mapped by 2 MB pages, and ioremap() also uses 1 GB pages. The kernel
    fills the root's entries at boot, so that all processes share later changes.
    """,
    attacker="""
    Kernel stacks, data of BPF programs and large buffers. Areas are placed from the start of the region up,
    so one leaked pointer usually reveals the base, which is a multiple of 1 GB. Guard pages stop an overrun
    that goes byte by byte, but not a write that skips over them. Only root can read /proc/vmallocinfo.
    """,
    debugger="""
    "kvintro show vmalloc" lists the areas with their callers. Where memory must be contiguous, a pointer
    from here instead of one from the direct map is a bug: virt_to_page() and DMA do not work with it. Device
    memory is mapped here, but no dump contains it.
    """,
    changed="""
    "Highmem" has nothing to do with this region; the word belongs to 32-bit kernels. Stacks are here since
    4.9, vmalloc() uses large pages on x86 since 5.18, and the list of areas is split over vmap_nodes since
    6.9.
    """,
    sources=(
        source(
            "bounds; KMSAN's quarters",
            "arch/x86/include/asm/pgtable_64_types.h:VMALLOC_SIZE_TB",
            "arch/x86/include/asm/pgtable_64_types.h:VMEMORY_END",
            "arch/x86/include/asm/pgtable_64_types.h:VMALLOC_QUARTER_SIZE",
        ),
        source(
            "one guard page, after the area", "mm/vmalloc.c:VM_NO_GUARD", "mm/vmalloc.c:size += PAGE_SIZE"
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
