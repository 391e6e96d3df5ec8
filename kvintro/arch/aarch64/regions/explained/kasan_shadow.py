# SPDX-License-Identifier: LGPL-2.1-or-later
"""What to know about KASAN's shadow on aarch64."""

from kvintro.regions.explained import Explanation, config, macro, source

EXPLAIN = Explanation(
    also=("kasan", "address sanitizer", "shadow memory"),
    purpose="""
    A byte here says of each 8 bytes of the kernel's memory (16 with tags in software) how many of them may be
    accessed. The compiler adds a check of that byte to each access.
    """,
    users="Kernels that were built to find errors. Those of distributions have none.",
    definitions=(
        macro("KASAN_SHADOW_OFFSET", "where the shadow of address 0 would be"),
        macro("KASAN_SHADOW_END", "the end: the same address as MODULES_VADDR"),
        config("KASAN_GENERIC", "a byte for each 8", "__asan_load8"),
        config(
            "KASAN_SW_TAGS",
            "a byte for each 16, with the tag that a pointer must have in its top byte",
            "__hwasan_tag_memory",
        ),
        config("KASAN_HW_TAGS", "the processor compares tags (MTE): there is no shadow"),
    ),
    translation="By page tables. What is never checked shares one page of zeros.",
    attacker="The kernel is slow, and it has reports about its own errors in its log.",
    debugger="The linear map ends where the shadow starts.",
    sources=(
        source("bounds", "arch/arm64/include/asm/memory.h:KASAN_SHADOW_OFFSET"),
        source(
            "its end",
            "arch/arm64/include/asm/memory.h:KASAN_SHADOW_END",
        ),
    ),
)
