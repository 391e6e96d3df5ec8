# SPDX-License-Identifier: LGPL-2.1-or-later
"""The explanation of the user half."""

from kvintro.regions.explained import Explanation, boot, config, macro, source, variable

EXPLAIN = Explanation(
    also=("userspace", "uvas", "lower half"),
    purpose="""
    The lower half of all addresses belongs to the process that is running: its program, libraries, heap,
    stacks and the vDSO. Every process has its own page tables, so the same address means different memory
    in each process. The upper half, the kernel's, is the same in all of them.
    """,
    users="""
    Programs, through execve, mmap and brk. The kernel accesses it only on behalf of a process, with
    copy_from_user() and similar functions. On processors with SMAP any other access faults.
    """,
    definitions=(
        macro(
            "TASK_SIZE_MAX",
            "the end, one page below the end of the half, because a system call instruction at the very end "
            "would return to a non-canonical address",
        ),
        macro(
            "DEFAULT_MAP_WINDOW",
            "2^47 - 4K: with five levels, mmap uses higher addresses only for programs that pass a hint",
        ),
        variable(
            "randomize_va_space",
            "2: stacks, mmap, vDSO and brk are randomised; 1: all of these but brk; 0: nothing",
            size=4,
            shows="number",
        ),
        variable(
            "mmap_min_addr",
            "unprivileged programs cannot map anything below it, so that NULL is never a valid pointer",
            "dac_mmap_min_addr",
            shows="size",
        ),
        config("ADDRESS_MASKING", "user pointers may carry data in their upper bits (LAM; since 6.4)"),
        boot("norandmaps", "sets randomize_va_space to 0"),
        boot("no5lvl", "use four levels on a processor that supports five: 128 TB instead of 64 PB"),
    ),
    translation="""
    By the page tables of the process, mm->pgd; CR3 points to those of the running process. With page-table
    isolation, each process has two roots, one after the other in memory. The kernel's root maps everything,
    and marks this half as not executable. User mode's root, 4 KB above, maps this half and almost nothing of
    the kernel.
    """,
    attacker="""
    Once this was the easiest place for code and fake structures that a corrupted kernel pointer could lead
    to. SMEP (no execution), SMAP (no access) and mmap_min_addr (nothing at NULL) prevent that, so attacks
    moved to the direct map, which maps the same pages.
    """,
    debugger="""
    A fault at an address like 0000000000000018 means that the kernel accessed a member of a structure
    through a NULL pointer. A dump often does not contain user pages. A page that is mapped but was excluded
    from the dump is not the same as an unmapped page.
    """,
    changed="""
    With five levels (since 4.14) it has 64 PB instead of 128 TB. In newer kernels, mm.rst has more rows for
    LAM, which makes the processor ignore some bits of user pointers, and it shows the last page of the half
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
