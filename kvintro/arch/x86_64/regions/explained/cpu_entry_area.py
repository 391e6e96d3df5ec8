# SPDX-License-Identifier: LGPL-2.1-or-later
"""The explanation of the cpu_entry_area."""

from kvintro.regions.explained import Explanation, boot, config, macro, source

EXPLAIN = Explanation(
    also=("cea", "entry area", "struct cpu_entry_area", "vaddr_end"),
    purpose="""
    Holds the data that the processor itself reads or writes when it enters the kernel: the interrupt table,
    and for each CPU the GDT, the TSS, a small entry stack, and stacks for NMI, machine check, debug and
    double fault. Page-table isolation needs them in one place: user mode's page tables must map them,
    because the processor uses them before the kernel's own tables are loaded. struct cpu_entry_area has the
    members.
    """,
    users="The entry code and the processor; perf, for Intel's debug store.",
    definitions=(
        macro("CPU_ENTRY_AREA_BASE", "the start: one page with the IDT, then the CPUs' areas"),
        macro("CPU_ENTRY_AREA_MAP_SIZE", "the size: one entry of a P4D, 512 GB"),
        macro(
            "vaddr_end",
            "the end of the space for the direct map, vmalloc and vmemmap under KASLR; it equals this start",
        ),
        config(
            "RANDOMIZE_BASE",
            "each CPU's area is at a random place, with about 21 bits of entropy (since 6.2)",
            "kaslr_get_random_long",
        ),
        config("AMD_MEM_ENCRYPT", "SEV-ES guests also map stacks for the #VC exception"),
        boot("nokaslr", "the areas follow each other in the order of the CPUs"),
        boot("pti=", "on: user mode's tables share all of this, and little else of the kernel"),
    ),
    translation="""
    By page tables, in 4 KB pages. Most pages are per-CPU memory that also has another address: in the direct
    map, or in the vmalloc area for CPUs whose per-CPU memory is there. The IDT is a page of the kernel
    image, and Intel's debug-store buffers are allocated page by page. IDT, GDT and TSS are read-only here.
    """,
    attacker="""
    User mode's tables map it even with isolation, so a processor that leaks mapped memory leaks this. An
    exception saves registers here, and an attacker can choose their values. While the place was fixed, this
    was attacker-chosen data at a known address (CVE-2023-0597), so the place is random now. Before UMIP,
    any program could read the addresses with SIDT and SGDT.
    """,
    debugger="""
    A stack pointer in this region is on an exception's stack. The page below each such stack is a guard
    page, so a fault there is a stack overflow. "kvintro show cpu_entry_area" names the members.
    """,
    changed="""
    mm.rst does not mention the random places. Only the first page, the IDT's, is always at the start.
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
