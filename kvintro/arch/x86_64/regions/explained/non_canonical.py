# SPDX-License-Identifier: LGPL-2.1-or-later
"""The explanation of non-canonical addresses."""

from kvintro.regions.explained import Explanation, boot, macro, source, variable

EXPLAIN = Explanation(
    also=("noncanonical",),
    purpose="""
    Pointers have 64 bits, but the processor translates only 48 of them, or 57 with five levels of paging.
    All higher bits must equal the topmost translated bit. Other numbers are not addresses. They are between
    the half that starts with zeros and the half that starts with ones, and they are nearly all of the
    64-bit numbers.
    """,
    users="""
    Nobody maps anything here. The kernel marks removed list entries with dead000000000100 and
    dead000000000122 (LIST_POISON1 and LIST_POISON2). These values are non-canonical, so following one faults
    at once.
    """,
    definitions=(
        macro("__VIRTUAL_MASK_SHIFT", "number of the topmost address bit: 47, or 56 with five levels"),
        variable(
            "__pgtable_l5_enabled",
            "1: five levels, so the hole starts later and ends earlier",
            size=4,
            shows="number",
        ),
        macro(
            "POISON_POINTER_DELTA",
            "moves poison values into this hole (CONFIG_ILLEGAL_POINTER_VALUE)",
        ),
        boot("no5lvl", "use four levels on a processor that supports five"),
    ),
    translation="""
    Not translated. An access causes a general protection fault, not a page fault. So CR2 does not contain
    the address, and the oops has to infer it from the instruction ("probably for non-canonical address").
    """,
    attacker="""
    An oops with such an address means that a pointer was overwritten, or that freed memory was used.
    """,
    debugger="""
    The value shows the cause. dead0000000001xx is a list entry that was used after it was removed.
    6b6b6b6b6b6b6b6b is freed slab memory, if slab debugging is on. ASCII letters are text that overwrote a
    pointer. Random bits may be a slab's free pointer, which is stored mangled
    (CONFIG_SLAB_FREELIST_HARDENED). With KASAN, dffffc00000000xx is the shadow of an address close to
    NULL.
    """,
    changed="""
    Up to 6.12, mm.rst has one row of 16M TB, which is 16 EB. Newer versions have two rows of 8 EB, because
    LAM and LAM_SUP let the processor ignore some upper bits of user and kernel pointers, and a row of 4 KB
    for the guard at the end of the user half. A program that uses LAM may use numbers from here as pointers;
    the kernel removes the extra bits first (untagged_addr). Linux does not use LAM_SUP.
    """,
    sources=(
        source(
            "bits",
            "arch/x86/include/asm/page_64_types.h:__VIRTUAL_MASK_SHIFT",
            "arch/x86/include/asm/pgtable_64_types.h:__pgtable_l5_enabled",
        ),
        source("poison", "include/linux/poison.h:LIST_POISON1", "include/linux/poison.h:POISON_FREE"),
        source(
            "the general protection fault and the guess",
            "arch/x86/kernel/traps.c:get_kernel_gp_address",
            "arch/x86/kernel/traps.c:probably for non-canonical address",
        ),
        source("mangled free pointers", "mm/slub.c:freelist_ptr"),
        source("no5lvl", 'arch/x86/boot/compressed/pgtable_64.c:"no5lvl"'),
        source("LAM", "arch/x86/include/asm/uaccess_64.h:untagged_addr", releases=("6.12", "7.3")),
        source(
            "one row",
            "Documentation/arch/x86/x86_64/mm.rst:~16M TB",
            releases=("6.12",),
        ),
        source(
            "two rows and a guard",
            "Documentation/arch/x86/x86_64/mm.rst:LAM_SUP",
            "Documentation/arch/x86/x86_64/mm.rst:00007ffffffff000",
            releases=("7.3",),
        ),
    ),
)
