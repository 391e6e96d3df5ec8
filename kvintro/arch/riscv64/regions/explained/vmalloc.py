# SPDX-License-Identifier: LGPL-2.1-or-later
"""What to know about riscv64's vmalloc area."""

from kvintro.regions.explained import Explanation, config, macro, source, variable

EXPLAIN = Explanation(
    also=("ioremap", "vmap", "vmalloc area"),
    purpose="""
    Maps scattered physical pages as one contiguous virtual range. Each range is called an area. It has an
    unmapped guard page after it, so that an access beyond its end faults.
    """,
    users="""
    vmalloc() and kvmalloc() for large tables; vmap() for pages that already exist; ioremap() for registers
    and memory of devices; the kernel stacks of all threads (VMAP_STACK); BPF maps; the code of
    kprobes; and per-CPU memory beyond the first chunk. Modules and BPF programs have a region of their own.
    """,
    definitions=(
        macro("VMALLOC_START", "the start, which is the end of vmemmap"),
        macro("VMALLOC_END", "the end, exclusive: PAGE_OFFSET"),
        macro("VMALLOC_SIZE", "half as large as the direct map"),
        variable("nr_vmap_nodes", "the number of lists that hold the areas", size=4, shows="number"),
        config("VMAP_STACK", "kernel stacks are here, each with a guard page"),
    ),
    translation="By page tables only.",
    attacker="""
    Its bounds are the same on every boot of a mode. Only pages with the code of kprobes should be executable.
    """,
    debugger="""
    /proc/vmallocinfo lists the areas with their callers. ioremap() marks pages as IO (MT(IO) in ptdump) if
    the processor has Svpbmt.
    """,
    sources=(
        source("bounds", "arch/riscv/include/asm/pgtable.h:VMALLOC_SIZE", releases=("6.12",)),
        source("kprobes", "arch/riscv/mm/init.c:EXECMEM_KPROBES", releases=("6.12",)),
        source("IO", "arch/riscv/include/asm/pgtable.h:_PAGE_IO", releases=("6.12",)),
    ),
)
