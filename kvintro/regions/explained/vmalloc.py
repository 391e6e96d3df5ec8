# SPDX-License-Identifier: LGPL-2.1-or-later
"""What to know about the vmalloc area."""

from kvintro.regions.explained import Explanation, boot, config, macro, variable

EXPLAIN = Explanation(
    also=("ioremap", "vmap", "vmalloc_base"),
    purpose="""
    Room to map anything in one piece that lies in many: pages from all over memory appear side by side.
    Each piece is an area with unmapped space around it, so that running off its end is noticed.
    """,
    users="""
    vmalloc() and kvmalloc() for large tables; vmap() for pages that exist already; ioremap() for devices'
    registers and memory, where nothing is allocated but addresses; the stacks of all kernel threads and
    processes (VMAP_STACK); BPF maps and per-CPU memory beyond the first chunk.
    """,
    definitions=(
        macro("VMALLOC_START", "the start, which is vmalloc_base"),
        macro("VMALLOC_END", "the last byte: unlike most ends of the kernel it is inclusive"),
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
    By page tables only: neighbours here need not be neighbours in memory. vmalloc_to_page() walks. Large
    areas may be mapped by pages of 2 MB or 1 GB. The root's entries are filled at boot, so that all
    processes share what comes later.
    """,
    attacker="""
    Kernel stacks, BPF programs' data and large buffers, at addresses of which one leak gives the base to
    1 GB. The gaps stop straight overruns; jumping over them is another matter. /proc/vmallocinfo is for
    root only.
    """,
    debugger="""
    "kvintro show vmalloc" lists the areas with their callers. A pointer from here in place of one from
    the direct map is a bug wherever memory must be contiguous: virt_to_page() and DMA do not work on it.
    Memory of devices is mapped but not in any dump.
    """,
    changed="""
    Nothing here is "highmem": that word is of 32-bit kernels. Stacks came in 4.9, large pages for
    vmalloc() on x86 in 5.18, and the list of areas was split over vmap_nodes in 6.9.
    """,
)
