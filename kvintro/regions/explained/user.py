# SPDX-License-Identifier: LGPL-2.1-or-later
"""What to know about the user half."""

from kvintro.regions.explained import Explanation, boot, config, macro, source, variable

EXPLAIN = Explanation(
    also=("userspace", "uvas", "lower half"),
    purpose="""
    The lower half of all addresses belongs to whatever process is running: its program, libraries, heap,
    stacks and the vDSO. Every process has page tables of its own, so the same address means other memory
    in each of them; the half above, the kernel's, is the same in all.
    """,
    users="""
    Programs, through execve, mmap and brk. The kernel itself touches it only on a process's behalf, with
    copy_from_user() and its relatives; on processors with SMAP any other access is a fault.
    """,
    definitions=(
        macro(
            "TASK_SIZE_MAX",
            "the end, one page short of the half: a system call instruction at its very end would return "
            "to a non-canonical address",
        ),
        macro(
            "DEFAULT_MAP_WINDOW",
            "2^47 - 4K: with 5 levels mmap goes above it only for those who ask by a hint",
        ),
        variable(
            "randomize_va_space",
            "2: stacks, mmap, vDSO and brk are randomised; 1: not brk; 0: nothing",
            size=4,
            shows="number",
        ),
        variable(
            "mmap_min_addr",
            "nothing is mapped below without privilege, so that NULL points to nothing",
            "dac_mmap_min_addr",
            shows="size",
        ),
        config("ADDRESS_MASKING", "user pointers may carry data in their upper bits (LAM; since 6.4)"),
        boot("norandmaps", "as if randomize_va_space were 0"),
        boot("no5lvl", "four levels on a processor that could do five: 128 TB in place of 64 PB"),
    ),
    translation="""
    By the page tables of the process, mm->pgd; CR3 points to those of the running one. Page-table isolation
    gives each process two roots side by side: the kernel's, which maps everything and marks this half as
    not executable, and user mode's, 4 KB above, which has this half and next to nothing of the kernel.
    """,
    attacker="""
    Once this was the easiest place to put code and fake structures for a kernel with a wild pointer. SMEP
    (no execution), SMAP (no access) and mmap_min_addr (nothing at NULL) closed that, so attacks moved to
    the direct map, where the same pages are mapped as well.
    """,
    debugger="""
    A faulting address like 0000000000000018 is a member of a structure that was reached through NULL. A
    core of the kernel often has no user pages; what is mapped but left out of the dump is not the same as
    not mapped.
    """,
    changed="""
    With five levels (4.14) it grew from 128 TB to 64 PB. The mm.rst of newer kernels adds rows for LAM,
    which lets user pointers use bits that the processor then ignores, and shows the last page of the half
    as a guard.
    """,
    sources=(
        source(
            "the end",
            "arch/x86/include/asm/page_64.h:task_size_max",
            "arch/x86/include/asm/page_64_types.h:DEFAULT_MAP_WINDOW",
        ),
        source("randomisation", "mm/memory.c:randomize_va_space", "mm/memory.c:norandmaps"),
        source("mmap_min_addr", "include/linux/security.h:mmap_min_addr"),
        source("LAM", "arch/x86/Kconfig:ADDRESS_MASKING", releases=("6.12", "7.3")),
        source("two roots; not executable", "arch/x86/mm/pti.c:__pti_set_user_pgtbl"),
        source("mm.rst", "Documentation/arch/x86/x86_64/mm.rst:00007ffffffff000", releases=("7.3",)),
    ),
)
