# SPDX-License-Identifier: LGPL-2.1-or-later
"""The explanation of the LDT remap."""

from kvintro.regions.explained import Explanation, boot, config, macro, source

EXPLAIN = Explanation(
    also=("ldt", "modify_ldt"),
    purpose="""
    A process can have its own segments, in a local descriptor table (LDT). The processor reads that table by
    its virtual address while it runs the process's code. With page-table isolation, the kernel's memory is
    not mapped at that time. So the table's pages are mapped a second time, here, where user mode's tables
    can map them too.

    It is often said that the remap hides the LDT from attackers. The opposite is nearer the truth:
    isolation had hidden the table, and the remap makes it visible to the processor in user mode again.
    """,
    users="""
    Processes that call modify_ldt: Wine and DOSEMU for 16-bit code, and some old thread libraries. Almost no
    other process does.
    """,
    definitions=(
        macro("LDT_BASE_ADDR", "the start: entry -240 of the root, right after the guard hole"),
        macro(
            "LDT_SLOT_STRIDE",
            "64 KB, the largest LDT; there are two slots, so that one can be filled while the other is used",
        ),
        config(
            "MODIFY_LDT_SYSCALL",
            "the system call modify_ldt; without it there are no LDTs",
            "ldt_dup_context",
        ),
        config(
            "MITIGATION_PAGE_TABLE_ISOLATION",
            "page-table isolation, the reason for the remap (up to 6.8 called PAGE_TABLE_ISOLATION)",
            "pti_init",
        ),
        boot("pti=", "on, off or auto: only processors that leak kernel memory to user mode need it"),
        boot("nopti", "the same as pti=off"),
        boot("mitigations=", "the value off turns off isolation and all other mitigations"),
    ),
    translation="""
    By the page tables of the process. This is the only part of the kernel half that differs between
    processes, and init_top_pgt maps nothing here. Pages are 4 KB and read-only, and they are the same memory
    as mm->context.ldt->entries.
    """,
    attacker="""
    The address is known and the same on all machines, and a process partly controls the descriptors. That is
    why the table is mapped read-only. Without isolation the region is empty.
    """,
    debugger="""
    mm->context.ldt has entries, nr_entries and slot. The slot is 0 or 1, or -1 for a table that is not
    mapped here.
    """,
    changed="""
    It is here since 4.20. Before that, with four levels it was near the end of the address space, and with
    five levels it was in the middle of KASLR's space.
    """,
    sources=(
        source(
            "why, two slots, read-only, per process",
            "arch/x86/kernel/ldt.c:map_ldt_struct",
            "arch/x86/kernel/ldt.c:Map it RO so the easy to find address",
            "arch/x86/kernel/ldt.c:map_ldt_struct_to_user",
            "arch/x86/kernel/ldt.c:LDT_SLOT_STRIDE",
        ),
        source("only with isolation", "arch/x86/kernel/ldt.c:X86_FEATURE_PTI"),
        source("place", "arch/x86/include/asm/pgtable_64_types.h:LDT_PGD_ENTRY"),
        source("the option's name", "arch/x86/Kconfig:config PAGE_TABLE_ISOLATION", releases=("6.1",)),
        source(
            "the option's name",
            "arch/x86/Kconfig:config MITIGATION_PAGE_TABLE_ISOLATION",
            "commit ea4654e08852 x86/bugs: Rename CONFIG_PAGE_TABLE_ISOLATION => "
            "CONFIG_MITIGATION_PAGE_TABLE_ISOLATION",
            releases=("6.12", "7.3"),
        ),
        source("pti=, nopti, mitigations=", "arch/x86/mm/pti.c:pti_check_boottime_disable"),
        source("modify_ldt", "arch/x86/include/asm/mmu_context.h:ldt_dup_context"),
        source(
            "4.20",
            "commit d52888aa2753 x86/mm: Move LDT remap out of KASLR region on 5-level paging",
            releases=(),
        ),
    ),
)
