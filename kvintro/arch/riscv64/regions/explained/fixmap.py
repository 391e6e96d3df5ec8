# SPDX-License-Identifier: LGPL-2.1-or-later
"""What to know about riscv64's fixmap."""

from kvintro.regions.explained import Explanation, macro, source
from kvintro.regions.explained.shared import SLOTS

EXPLAIN = Explanation(
    also=("fixaddr", "fix-mapped", "fixmap range"),
    purpose=SLOTS,
    users="""
    The device tree (FIX_FDT), which has 4 MB of slots; page tables that are made early (FIX_PTE to FIX_P4D);
    patching of code (FIX_TEXT_POKE0); early consoles, and early_ioremap() during boot.
    """,
    definitions=(
        macro("FIXADDR_TOP", "the end: where the window for I/O ports starts; slots count downwards from it"),
        macro("FIXADDR_SIZE", "6 MB; 2 MB before 6.4"),
    ),
    translation="By page tables that are part of the image. The device tree is mapped in blocks of 2 MB.",
    attacker="The addresses depend on the mode only, and are the same on every boot.",
    debugger="The device tree that the kernel was booted with stays mapped here.",
    changed="Before 6.4 the device tree was mapped elsewhere.",
    sources=(
        source(
            "slots and bounds",
            "arch/riscv/include/asm/fixmap.h:enum fixed_addresses",
            "arch/riscv/include/asm/pgtable.h:FIXADDR_SIZE",
            releases=("6.12",),
        ),
        source(
            "its size",
            "commit ef69d2559fe9 riscv: Move early dtb mapping into the fixmap region",
            releases=(),
        ),
    ),
)
