# SPDX-License-Identifier: LGPL-2.1-or-later
"""What to know about riscv64's region for modules."""

from kvintro.regions.explained import Explanation, macro, source

EXPLAIN = Explanation(
    also=("module area", "loadable modules"),
    purpose="""
    Code and data of loaded modules, before the image. It ends where the image starts, and starts 2 GB before
    the image ends, so that code reaches every symbol by an offset of 32 bits.
    """,
    users="Modules, and programs of BPF in the last 128 MB.",
    definitions=(
        macro("MODULES_VADDR", "the start: the end of the image, rounded up to pages, less 2 GB"),
        macro("MODULES_END", "the end: the start of the image"),
        macro("BPF_JIT_REGION_START", "the last 128 MB, for programs of BPF"),
    ),
    translation="By page tables only.",
    attacker="Code to jump to. Code is not writable here, and data is not executable.",
    debugger="It moves with the image. Pages of code have the same rights in the direct map.",
    sources=(
        source(
            "bounds",
            "arch/riscv/include/asm/pgtable.h:MODULES_VADDR",
            "arch/riscv/include/asm/pgtable.h:BPF_JIT_REGION_SIZE",
            releases=("6.12",),
        ),
    ),
)
