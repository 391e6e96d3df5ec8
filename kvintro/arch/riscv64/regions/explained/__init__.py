# SPDX-License-Identifier: LGPL-2.1-or-later
"""riscv64: what to know about its regions."""

#: Background that a reader needs before the regions make sense.
INTRODUCTION = """
    Of the 2^64 addresses, the processor accepts two ranges. The lower range belongs to the process: each
    process has its own page tables for it. The upper range belongs to the kernel and is the same in every
    process. The processor does not accept the numbers between the two ranges as addresses.

    User mode cannot access the kernel's half: pages there lack the U bit. One root translates both halves,
    and there is no page-table isolation.

    Page tables have three, four or five levels, which translate 39, 48 or 57 bits of an address (sv39, sv48,
    sv57). The kernel chooses the mode when it boots. KASLR moves the kernel image within 1 GB, and the region
    of modules with it. The start of every other region depends only on the mode and on how the kernel was
    built.
"""
