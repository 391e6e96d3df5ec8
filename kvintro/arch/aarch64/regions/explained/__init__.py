# SPDX-License-Identifier: LGPL-2.1-or-later
"""aarch64: what to know about its regions."""

#: Background that a reader needs before the regions make sense.
INTRODUCTION = """
    Of the 2^64 addresses, the processor accepts two ranges. The lower range belongs to the process, and each
    process has a root table for it (TTBR0_EL1). The upper range belongs to the kernel, which has another root
    (TTBR1_EL1), the same for every process. The processor does not accept the numbers between the two ranges
    as addresses.

    User mode cannot access the kernel's half. With page-table isolation (KPTI), user mode runs with another
    root in TTBR1_EL1, which maps only the code that enters the kernel.

    The size of a page (4, 16 or 64 KB) and the number of bits of an address (36 to 52) decide how many levels
    the page tables have. KASLR moves the kernel image and modules within the vmalloc area, and in older
    kernels RAM within the direct map. The start of every other region depends only on these numbers and on
    how the kernel was built.
"""
