# SPDX-License-Identifier: LGPL-2.1-or-later
"""What ``kvintro explain`` says of the regions that only x86-64 has."""

#: Background that a reader needs before the regions make sense.
INTRODUCTION = """
    Of the 2^64 addresses, the processor accepts two ranges. The lower range belongs to the process: each
    process has its own page tables for it. The upper range belongs to the kernel and is the same in every
    process, because all root tables point to the same tables below. So the kernel maps something there for
    all processes at once. The only exception is the LDT remap. The processor does not accept the numbers
    between the two ranges as addresses.

    User mode cannot access the kernel's half, except the vsyscall page. On the way to every other page
    there, at least one level of the page tables lacks the USER bit (upper levels may have it). With
    page-table isolation, user mode runs on a second root, which maps only the part of that half that is
    needed to enter the kernel. A system call, an interrupt or a fault enters the kernel, through code and
    stacks in the cpu_entry_area and the kernel image.

    Page tables have four levels, which translate 48 bits of an address, or five, which translate 57 bits.
    KASLR moves the kernel image within its window, modules within their region, and each CPU's area within
    the cpu_entry_area. It also moves the direct map, vmalloc and vmemmap, in this order, within the space
    below the cpu_entry_area. The start of every other region depends only on the number of levels and on
    how the kernel was built.
"""
