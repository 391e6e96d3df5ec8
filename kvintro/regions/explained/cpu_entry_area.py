# SPDX-License-Identifier: LGPL-2.1-or-later
"""What to know about the cpu_entry_area."""

from kvintro.regions.explained import Explanation, boot, config, macro

EXPLAIN = Explanation(
    also=("cea", "entry area", "vaddr_end"),
    purpose="""
    What the processor itself reads or writes in the instant that it enters the kernel: the interrupt
    table, and for each CPU the GDT, the TSS, a small stack to start on and stacks for NMI, machine check,
    debug and double fault. Page-table isolation needs them in one place, since they must be there before
    the kernel's tables are.
    """,
    users="The entry code and the processor; perf, for Intel's debug store.",
    definitions=(
        macro("CPU_ENTRY_AREA_BASE", "the start; a page with the IDT, then the CPUs' areas"),
        macro("CPU_ENTRY_AREA_MAP_SIZE", "the room: one entry of a P4D, 512 GB"),
        macro(
            "vaddr_end",
            "this start is also the end of what KASLR shares out among direct map, vmalloc and vmemmap",
        ),
        config(
            "RANDOMIZE_BASE",
            "each CPU's area is at a random place, about 21 bits (since 6.2)",
            "kaslr_get_random_long",
        ),
        config("AMD_MEM_ENCRYPT", "adds stacks for the #VC exception of SEV-ES guests"),
        boot("nokaslr", "CPU n's area is the n-th"),
        boot("pti=", "on: user mode's tables share all of this, and little else"),
    ),
    translation="""
    By page tables, 4 KB each. Everything is an alias of per-CPU memory that has another address in the
    direct map. IDT, GDT and TSS are read-only here.
    """,
    attacker="""
    User mode's tables map it even under isolation, so that a processor which leaks what is mapped leaks
    this. While its place was fixed, the registers that an exception saves here were chosen data at a
    known address (CVE-2023-0597); that is why it is random now. SIDT and SGDT told the place to any
    program until UMIP.
    """,
    debugger="""
    A stack pointer from here is an exception's stack; the page below each is a guard, and a fault there
    is an overflow. "kvintro show cpu_entry_area" names the members.
    """,
    changed="""
    mm.rst says nothing of the randomised places: only the first page, the IDT's, is where it always was.
    """,
)
