# SPDX-License-Identifier: LGPL-2.1-or-later
"""What to know about the LDT remap."""

from kvintro.regions.explained import Explanation, boot, config, macro, source

EXPLAIN = Explanation(
    also=("ldt", "modify_ldt"),
    purpose="""
    A process may bring segments of its own, in a local descriptor table. The processor reads that table
    by its virtual address while it runs the process's code, and under page-table isolation the kernel's
    memory is not mapped then. So the table's pages are mapped once more, here, in a place that user
    mode's tables may show.

    It is often said that the remap keeps the LDT from attackers. The opposite is nearer the truth: it
    makes the table visible to the processor in user mode again, which isolation had taken away.
    """,
    users="""
    Processes that call modify_ldt: Wine and DOSEMU for 16-bit code, some old thread libraries. Almost no
    other process does.
    """,
    definitions=(
        macro("LDT_BASE_ADDR", "the start: entry -240 of the root, just behind the guard hole"),
        macro("LDT_SLOT_STRIDE", "64 KB, the largest LDT: two slots, one in use while the next is filled"),
        config("MODIFY_LDT_SYSCALL", "the system call, without which there are no LDTs", "ldt_dup_context"),
        config(
            "MITIGATION_PAGE_TABLE_ISOLATION",
            "(PAGE_TABLE_ISOLATION up to 6.8) the reason for it all",
            "pti_init",
        ),
        boot("pti=", "on, off or auto: only processors that leak kernel memory to user mode need it"),
        boot("nopti", "as pti=off"),
        boot("mitigations=", "off switches isolation off with all the rest"),
    ),
    translation="""
    By the page tables of the one process: this is the only part of the kernel half that differs from
    process to process, and init_top_pgt has nothing here. Pages are 4 KB, read-only and the same memory
    as mm->context.ldt->entries.
    """,
    attacker="""
    The address is known and the same everywhere, and a process partly controls the descriptors; that is
    why it is mapped read-only. Without isolation the region stays empty.
    """,
    debugger="""
    mm->context.ldt has entries, nr_entries and the slot: 0 or 1, or -1 for a table that is not mapped
    here.
    """,
    changed="""
    4.20 moved it here. Before, it lay near the end of the address space with four levels, and with five
    in the middle of what KASLR hands out.
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
