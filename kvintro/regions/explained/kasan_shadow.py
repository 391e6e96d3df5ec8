# SPDX-License-Identifier: LGPL-2.1-or-later
"""What to know about KASAN's shadow."""

from kvintro.regions.explained import Explanation, boot, config, macro

EXPLAIN = Explanation(
    also=("kasan", "shadow"),
    purpose="""
    The address sanitizer's notebook: one byte for every eight bytes of the kernel half, which says how
    many of the eight may be touched. The compiler puts a look into it before every load and store, and so
    finds use after free and accesses out of bounds when they happen.
    """,
    users="""
    Kernels built for testing. Production kernels have none: it costs an eighth of memory and half the
    speed.
    """,
    definitions=(
        macro("KASAN_SHADOW_START", "the shadow of the first address of the kernel half"),
        config("KASAN", "the sanitizer; on x86 only its generic mode", "kasan_early_shadow_page"),
        config("KASAN_SHADOW_OFFSET", "dffffc0000000000: shadow = (address >> 3) + this"),
        config("KASAN_VMALLOC", "shadow of the vmalloc area too", "kasan_populate_vmalloc"),
        config("KASAN_INLINE", "the check is in the code itself, not a call"),
        boot("kasan_multi_shot", "report every error, not only the first"),
        boot("kasan.fault=", "what to do on an error: report, panic, panic_on_write"),
    ),
    translation="""
    By page tables; but nearly all of it is one page of zeros, mapped over and over through shared tables,
    because most addresses have nothing worth noting. Only the shadow of RAM, of the image and of modules
    has memory of its own.
    """,
    attacker="""
    Who can write here can blind the sanitizer; a kernel with KASAN is not one to attack for profit.
    """,
    debugger="""
    00: all eight bytes are good. 01 to 07: so many of them. fa, fb: freed (fa with a stack trace). fc:
    redzone of a slab object; fe: of a large one; ff: free page. f9: around globals; f8: vmalloc; f1 to
    f4: stack. An oops at dffffc0000000000 and a little above is a NULL pointer whose shadow was looked
    up.
    """,
    changed="""
    KASAN switches off the randomisation of the memory bases, since the shadow needs fixed room; the
    image, modules and cpu_entry_area still move. mm.rst rounds the five-level start to ffdf000000000000,
    where the root's entry begins; the first shadow byte is at ffdffc0000000000.
    """,
)
