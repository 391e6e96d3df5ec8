# SPDX-License-Identifier: LGPL-2.1-or-later
"""What to know about user space on aarch64."""

from kvintro.regions.explained import Explanation, boot, config, macro, source

EXPLAIN = Explanation(
    also=("userspace", "user space", "user half", "process memory", "ttbr0"),
    purpose="""
    The addresses of processes. Each process has its own page tables for them, whose root the processor has
    in TTBR0_EL1. The kernel's addresses have another root, in TTBR1_EL1, so that the tables of a process
    never map the kernel.
    """,
    users="Programs: code, data, heap, stacks, shared libraries, files and the vDSO.",
    definitions=(
        macro("TASK_SIZE_64", "the end: 2 to the number of address bits that the processor has"),
        macro(
            "DEFAULT_MAP_WINDOW_64",
            "where mmap() stops unless its hint asks for more: 2^48, or 2^47 with pages of 16 KB",
        ),
        config("ARM64_VA_BITS_52", "addresses of 52 bits, on processors that have them"),
        config("UNMAP_KERNEL_AT_EL0", "KPTI: in user mode TTBR1_EL1 has tramp_pg_dir", "tramp_vectors"),
        boot("norandmaps", "no randomisation of stacks, libraries and mmap()"),
    ),
    translation="""
    By the tables of the process. The highest byte of a pointer may hold a tag, which the processor ignores
    (TBI) and memory tagging (MTE) compares with the memory's.
    """,
    attacker="""
    With KPTI almost nothing of the kernel is mapped in user mode; processors with E0PD need no KPTI for
    that. Kernel mode cannot execute pages of user mode (PXN), and cannot access them by mistake where the
    processor has PAN.
    """,
    debugger="""
    Tags of memory (MTE) are not in dumps. Signed pointers (PAC) have other bits above the address.
    """,
    changed="""
    A mapping above 2^48 exists only if a program asked for one with its hint.
    """,
    sources=(
        source(
            "bounds",
            "arch/arm64/include/asm/processor.h:TASK_SIZE_64",
            "arch/arm64/include/asm/processor.h:DEFAULT_MAP_WINDOW_64",
        ),
        source("tags", "arch/arm64/include/asm/memory.h:untagged_addr"),
    ),
)
