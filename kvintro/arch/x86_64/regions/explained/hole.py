# SPDX-License-Identifier: LGPL-2.1-or-later
"""The explanation of the ranges between regions."""

from kvintro.regions.explained import Explanation, config, macro, source

EXPLAIN = Explanation(
    also=("unused", "holes", "top hole", "gap"),
    purpose="""
    Addresses that do not belong to any region. Some holes are space that KASLR could have used and did not.
    Some are left over because regions begin at round addresses. Some are guards, so that a wrong pointer
    does not hit anything.
    """,
    users="""
    Nobody. The last 2 MB are empty so that small negative numbers are not valid pointers: the kernel returns
    errors as pointers from ffffffffffffffff down to fffffffffffff001 (-1 to -4095), and poison values are
    in this range too.
    """,
    definitions=(
        macro("IS_ERR()", "whether a pointer is one of the last 4095 numbers: an error, not an address"),
        macro(
            "KSTACK_ERASE_POISON",
            "ffffffffffff4111 (-0xbeef), the value that overwrites used stack; formerly STACKLEAK_POISON",
        ),
        macro(
            "vaddr_end",
            "the end of KASLR's space: the cpu_entry_area. KASLR leaves at least 1 GB free after the direct "
            "map and after vmalloc, but none after vmemmap",
        ),
        config("RANDOMIZE_MEMORY", "the holes differ from boot to boot", "kernel_randomize_memory"),
    ),
    translation="Not translated: no kernel maps anything here, so a mapping deserves a close look.",
    attacker="""
    The sizes of the holes reveal where KASLR put the regions, but anyone who can read them already knows.
    """,
    debugger="""
    A fault at an address like fffffffffffffff4 is an error code (-12, ENOMEM) that was used as a pointer.
    """,
    changed="""
    mm.rst shows holes of fixed size, as they are without KASLR. kvintro shows them as they are on this
    kernel. KASLR does not subtract the two gaps of 1 GB from the space that it distributes. So in about one
    boot in ten thousand, vmemmap's reserved end passes vaddr_end by up to 2 GB. The part in use does not
    reach that far.
    """,
    sources=(
        source("errors", "include/linux/err.h:MAX_ERRNO", "include/linux/err.h:IS_ERR_VALUE"),
        source("poison", "include/linux/stackleak.h:STACKLEAK_POISON", releases=("6.1", "6.12")),
        source(
            "poison",
            "include/linux/kstack_erase.h:KSTACK_ERASE_POISON",
            "commit 57fbad15c2ee stackleak: Rename STACKLEAK to KSTACK_ERASE",
            releases=("7.3",),
        ),
        source(
            "gaps, and what is not subtracted",
            "arch/x86/mm/kaslr.c:round_up(vaddr + 1, PUD_SIZE)",
            "arch/x86/mm/kaslr.c:remain_entropy -= entropy",
            "arch/x86/mm/kaslr.c:vaddr_end",
        ),
    ),
)
