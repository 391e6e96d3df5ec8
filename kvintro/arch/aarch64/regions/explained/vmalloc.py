# SPDX-License-Identifier: LGPL-2.1-or-later
"""What to know about aarch64's vmalloc area."""

from kvintro.regions.explained import Explanation, boot, config, macro, source, variable

EXPLAIN = Explanation(
    also=("ioremap", "vmap", "vmalloc area"),
    purpose="""
    Maps scattered physical pages as one contiguous virtual range. Each range is called an area. It has an
    unmapped guard page after it, so that an access beyond its end faults. The kernel's image is in it,
    and with KASLR its modules, too.
    """,
    users="""
    vmalloc() and kvmalloc() for large tables; vmap() for pages that already exist; ioremap() for registers
    and memory of devices; the kernel stacks of all threads (VMAP_STACK) and those for interrupts; BPF
    programs and maps; per-CPU memory beyond the first chunk; and the segments of the image.
    """,
    definitions=(
        macro("VMALLOC_START", "the start, which is the end of the modules' window"),
        macro("VMALLOC_END", "the end, exclusive: below vmemmap, or below the region before it"),
        variable(
            "nr_vmap_nodes",
            "the number of lists that hold the areas (since 6.9; earlier kernels have one list)",
            size=4,
            shows="number",
        ),
        config("VMAP_STACK", "kernel stacks are here, each with a guard page"),
        boot("nokaslr", "the image is at the beginning, and modules are in their own window below"),
    ),
    translation="""
    By page tables only. Addresses of the image also follow a rule: see kernel_image.
    """,
    attacker="""
    Its bounds are the same on every boot. Kernel stacks are here, each between guard pages. No page should
    be both writable and executable.
    """,
    debugger="""
    /proc/vmallocinfo lists the areas with their callers. The image's segments are among them, made by
    paging_init; those of its init sections stay listed after their pages were freed and unmapped.
    """,
    changed="""
    Its end moved with 6.9, when the regions above it got another order.
    """,
    sources=(
        source(
            "bounds",
            "arch/arm64/include/asm/pgtable.h:VMALLOC_START",
            "arch/arm64/include/asm/pgtable.h:VMALLOC_END",
        ),
        source("stacks", "arch/arm64/include/asm/vmap_stack.h:arch_alloc_vmap_stack"),
        source("segments of the image", "arch/arm64/mm/mmu.c:declare_kernel_vmas", releases=("6.12", "7.3")),
    ),
)
