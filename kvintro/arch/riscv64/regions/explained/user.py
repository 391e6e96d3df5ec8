# SPDX-License-Identifier: LGPL-2.1-or-later
"""What to know about user space on riscv64."""

from kvintro.regions.explained import Explanation, boot, macro, source

EXPLAIN = Explanation(
    also=("userspace", "user space", "user half", "process memory"),
    purpose="""
    The addresses of processes: the lower half of what the root of a process translates. The upper half of
    each root has the kernel's entries.
    """,
    users="Programs: code, data, heap, stacks, shared libraries, files and the vDSO.",
    definitions=(
        macro("TASK_SIZE_64", "the end: 2^38, 2^47 or 2^56 by the mode"),
        macro("DEFAULT_MAP_WINDOW", "where mmap() stops unless its hint asks for more: 2^47 with sv57"),
        boot("no4lvl", "sv39, even if the processor has more"),
        boot("no5lvl", "at most sv48"),
        boot("norandmaps", "no randomisation of stacks, libraries and mmap()"),
    ),
    translation="By the tables of the process, which have one root for both halves.",
    attacker="""
    There is no page-table isolation: the kernel stays in the tables while user mode runs, and its pages lack
    the U bit. Kernel mode never executes pages of user mode, and accesses them only while SUM is set in
    sstatus.
    """,
    debugger="The mode is the number of levels: sv39 has three, sv48 four, sv57 five.",
    sources=(
        source(
            "bounds",
            "arch/riscv/include/asm/pgtable.h:TASK_SIZE_64",
            "arch/riscv/include/asm/processor.h:DEFAULT_MAP_WINDOW",
            releases=("6.12",),
        ),
        source("modes", "arch/riscv/kernel/pi/cmdline_early.c:no4lvl", releases=("6.12",)),
    ),
)
