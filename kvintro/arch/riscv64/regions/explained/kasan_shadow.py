# SPDX-License-Identifier: LGPL-2.1-or-later
"""What to know about KASAN's shadow on riscv64."""

from kvintro.regions.explained import Explanation, config, macro, source

EXPLAIN = Explanation(
    also=("kasan", "address sanitizer", "shadow memory"),
    purpose="""
    A byte here says of each 8 bytes of the kernel's memory how many of them may be accessed. The compiler
    adds a check of that byte to each access.
    """,
    users="Kernels that were built to find errors. Those of distributions have none.",
    definitions=(
        macro("KASAN_SHADOW_OFFSET", "where the shadow of address 0 would be"),
        macro("KASAN_SHADOW_END", "the end: the lowest address that modules can have"),
        config("KASAN_GENERIC", "a byte for each 8", "__asan_load8"),
    ),
    translation="By page tables. What is never checked shares one page of zeros.",
    attacker="The kernel is slow, and it has reports about its own errors in its log.",
    debugger="The start is rounded down, so that the shadow fills whole entries of the root.",
    sources=(source("bounds", "arch/riscv/include/asm/kasan.h:KASAN_SHADOW_START", releases=("6.12",)),),
)
