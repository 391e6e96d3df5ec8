# SPDX-License-Identifier: LGPL-2.1-or-later
"""Texts that hold for the regions of several architectures."""

#: The fixmap: what it is for.
SLOTS = """
    Provides virtual addresses that are fixed when the kernel is compiled. Each slot is one page with a
    number, and gets its memory at run time. Code uses slots when it runs before there is an allocator, or
    when it cannot wait for one.
    """
#: The virtual memory map: what it is for.
PAGES = """
    An array with one struct page for each page frame. It is mapped only where there is memory, so it can be
    as large as the address space requires.
    """
#: The direct map: what uses it.
LINEAR_USERS = """
    Nearly everything. kmalloc, the slab caches and alloc_pages return memory that the kernel uses at its
    address here; this includes page tables, the page cache and per-CPU data. The pages of processes are
    also mapped here, in addition to their addresses in user space.
    """
