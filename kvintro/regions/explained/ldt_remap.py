# SPDX-License-Identifier: LGPL-2.1-or-later
"""What to know about the LDT remap."""

from kvintro.regions.explained import Explanation, boot, config, macro

EXPLAIN = Explanation(
    also=("ldt", "modify_ldt"),
    purpose="""
    A process may bring segments of its own, in a local descriptor table. The processor reads that table
    by its virtual address while it runs the process's code, and under page-table isolation the kernel's
    memory is not mapped then. So the table's pages are mapped once more, here, in a place that user
    mode's tables may show.
    """,
    users="""
    Processes that call modify_ldt: Wine and DOSEMU for 16-bit code, some old thread libraries. Almost no
    process does.
    """,
    definitions=(
        macro("LDT_BASE_ADDR", "the start: entry -240 of the root, just behind the guard hole"),
        macro("LDT_SLOT_STRIDE", "64 KB, the largest LDT: two slots, one in use while the next is filled"),
        config("MODIFY_LDT_SYSCALL", "the system call, without which there are no LDTs", "ldt_dup_context"),
        config(
            "MITIGATION_PAGE_TABLE_ISOLATION",
            "(PAGE_TABLE_ISOLATION up to 6.7) the reason for it all",
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
    The address is known and the same everywhere, and a descriptor is halfway under a process's control;
    it is mapped read-only for that reason. Without isolation the region stays empty.
    """,
    debugger="""
    mm->context.ldt has entries, nr_entries and the slot: 0 or 1, or -1 for a table that is not mapped
    here.
    """,
    changed="""
    4.20 moved it here. Before, it lay near the end of the address space with four levels, and with five
    in the middle of what KASLR hands out.
    """,
)
