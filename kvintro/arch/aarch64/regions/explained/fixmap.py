# SPDX-License-Identifier: LGPL-2.1-or-later
"""What to know about aarch64's fixmap."""

from kvintro.regions.explained import Explanation, config, macro, source
from kvintro.regions.explained.shared import SLOTS

EXPLAIN = Explanation(
    also=("fixaddr", "fix-mapped", "fixmap range"),
    purpose=SLOTS,
    users="""
    The device tree (FIX_FDT), early consoles, patching of code (FIX_TEXT_POKE0), ACPI's error reports
    (GHES), and with KPTI the code that enters the kernel from user mode. During boot early_ioremap() and
    the code that makes page tables use the slots below the permanent ones.
    """,
    definitions=(
        macro("FIXADDR_TOP", "the end; slots count downwards from it, and slot 0 is not used"),
        macro("FIXADDR_START", "the last permanent slot; depends on the build"),
        macro("FIXADDR_TOT_START", "the last slot of all, those of early boot among them (since 6.4)"),
        macro("TRAMP_VALIAS", "where user mode's tables have the code that enters the kernel, under KPTI"),
        config("UNMAP_KERNEL_AT_EL0", "slots for KPTI's trampoline", "tramp_vectors"),
        config("ACPI_APEI_GHES", "slots for error reports"),
    ),
    translation="By page tables that are part of the image. set_fixmap() fills a slot.",
    attacker="""
    The addresses are known. KPTI's trampoline is mapped here in user mode, and does not show where the
    kernel is.
    """,
    debugger="The device tree that the kernel was booted with stays mapped here, read-only.",
    changed="""
    Until 6.8 it was below vmemmap. Since then it is 8 MB below the top of the address space.
    """,
    sources=(
        source(
            "slots and bounds",
            "arch/arm64/include/asm/fixmap.h:enum fixed_addresses",
            "arch/arm64/include/asm/fixmap.h:FIXADDR_START",
            "arch/arm64/include/asm/memory.h:FIXADDR_TOP",
        ),
        source("all slots", "arch/arm64/include/asm/fixmap.h:FIXADDR_TOT_START", releases=("6.12", "7.3")),
    ),
)
