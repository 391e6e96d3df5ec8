# SPDX-License-Identifier: LGPL-2.1-or-later
"""What to know about the cpu_entry_area."""

from kvintro.regions.explained import Explanation, boot, config, macro, source

EXPLAIN = Explanation(
    also=("cea", "entry area", "vaddr_end"),
    purpose="""
    Holds what the processor itself reads or writes at the moment it enters the kernel: the interrupt
    table, and for each CPU the GDT, the TSS, a small stack to start on, and stacks for NMI, machine check,
    debug and double fault. Page-table isolation needs them in one place, because user mode's page tables
    must map them before the kernel's own tables are loaded.
    """,
    users="The entry code and the processor; perf, for Intel's debug store.",
    definitions=(
        macro("CPU_ENTRY_AREA_BASE", "the start: one page with the IDT, then the CPUs' areas"),
        macro("CPU_ENTRY_AREA_MAP_SIZE", "the room: one entry of a P4D, 512 GB"),
        macro(
            "vaddr_end",
            "the end of the space that KASLR shares out to direct map, vmalloc and vmemmap is this start",
        ),
        config(
            "RANDOMIZE_BASE",
            "each CPU's area is at a random place, about 21 bits (since 6.2)",
            "kaslr_get_random_long",
        ),
        config("AMD_MEM_ENCRYPT", "SEV-ES guests map stacks for the #VC exception too"),
        boot("nokaslr", "CPU n's area is the n-th"),
        boot("pti=", "on: user mode's tables share all of this, and little else"),
    ),
    translation="""
    By page tables, in 4 KB pages. Most pages are per-CPU memory that has another address as well: in the
    direct map, or in the vmalloc area for CPUs whose per-CPU memory lies there. The IDT is a page of the
    kernel image, and Intel's debug-store buffers are allocated page by page. IDT, GDT and TSS are
    read-only here.
    """,
    attacker="""
    User mode's tables map it even under isolation, so a processor that leaks what is mapped leaks this.
    While its place was fixed, the registers that an exception saves here were attacker-chosen data at a
    known address (CVE-2023-0597); that is why the place is random now. Before UMIP, any program could
    read the addresses with SIDT and SGDT.
    """,
    debugger="""
    A stack pointer in this region is on an exception's stack. The page below each such stack is a guard
    page, and a fault there is an overflow. "kvintro show cpu_entry_area" names the members.
    """,
    changed="""
    mm.rst says nothing of the random places: only the first page, the IDT's, is always at the start.
    """,
    sources=(
        source(
            "base, size; one page for the IDT, then the areas",
            "arch/x86/include/asm/pgtable_64_types.h:CPU_ENTRY_AREA_BASE",
            "arch/x86/include/asm/pgtable_areas.h:CPU_ENTRY_AREA_RO_IDT",
            "arch/x86/include/asm/pgtable_areas.h:CPU_ENTRY_AREA_MAP_SIZE",
        ),
        source(
            "members and their rights; per-CPU memory",
            "arch/x86/include/asm/cpu_entry_area.h:struct cpu_entry_area",
            "arch/x86/mm/cpu_entry_area.c:setup_cpu_entry_area",
            "arch/x86/mm/cpu_entry_area.c:cea_map_percpu_pages",
        ),
        source(
            "guard pages; stacks for #VC have their place always and are mapped in SEV-ES guests",
            "arch/x86/include/asm/cpu_entry_area.h:ESTACKS_MEMBERS",
            "arch/x86/mm/cpu_entry_area.c:cea_map_stack(VC)",
        ),
        source("the IDT is idt_table", "arch/x86/kernel/idt.c:idt_map_in_cea"),
        source("buffers of the debug store", "arch/x86/events/intel/ds.c:dsalloc_pages"),
        source(
            "random places, never the first; nokaslr",
            "arch/x86/mm/cpu_entry_area.c:init_cea_offsets",
            "commit 97e3d26b5e5f x86/mm: Randomize per-cpu entry area",
            releases=("6.12", "7.3"),
        ),
        source("vaddr_end", "arch/x86/mm/kaslr.c:vaddr_end"),
        source("user mode's tables", "arch/x86/mm/pti.c:pti_clone_user_shared"),
    ),
)
