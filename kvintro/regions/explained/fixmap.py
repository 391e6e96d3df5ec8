# SPDX-License-Identifier: LGPL-2.1-or-later
"""What to know about the fixmap."""

from kvintro.regions.explained import Explanation, boot, config, macro, source

EXPLAIN = Explanation(
    also=("fixaddr", "fix-mapped", "fixmap range"),
    purpose="""
    Addresses that are constants of the program: each slot is one page with a number, known when the
    kernel is compiled, and gets its memory at run time. Code that runs before there is an allocator, or
    that may not wait for one, uses them.
    """,
    users="""
    The local APIC's and the I/O APICs' registers, ACPI's error reports (GHES), early consoles, and below
    the permanent slots early_ioremap() while booting. On kernels with CONFIG_DEBUG_KMAP_LOCAL_FORCE_MAP
    kmap_local().
    """,
    definitions=(
        macro("FIXADDR_TOP", "ffffffffff7ff000: slot 0; numbers count downwards, a page each"),
        macro("FIXADDR_START", "one page below the last permanent slot; depends on the build"),
        macro("fix_to_virt()", "from a slot's number to its address; virt_to_fix() back"),
        config("X86_VSYSCALL_EMULATION", "gives slot 511 to the vsyscall page", "vsyscall_mode"),
        config("DEBUG_KMAP_LOCAL_FORCE_MAP", "slots for every CPU, and MODULES_END 16 MB lower"),
        boot("early_ioremap_debug", "prints what is mapped while booting"),
    ),
    translation="""
    By page tables, from tables that are part of the image (level1_fixmap_pgt). set_fixmap() fills a slot.
    """,
    attacker="""
    The addresses are known; the pages are mostly devices'. Until 5.1, patching kernel code went through
    slots here. It has page tables of its own since, and those slots are gone.
    """,
    debugger="""
    Few slots are mapped. APIC pages are uncached and in no dump. "kvintro show fixmap" names the slots. With
    the vsyscall page the slots that have a name start at 511: the 511 above it have none, although they
    count as permanent.
    """,
    changed="""
    mm.rst gives no start, because it differs between builds: FIXADDR_TOP minus the number of permanent
    slots, which kvintro reads from enum fixed_addresses.
    """,
    sources=(
        source(
            "slots, their users, FIXADDR_START",
            "arch/x86/include/asm/fixmap.h:enum fixed_addresses",
            "arch/x86/include/asm/fixmap.h:FIXADDR_START",
            "arch/x86/include/asm/fixmap.h:FIX_APEI_GHES_IRQ",
        ),
        source("conversion", "include/asm-generic/fixmap.h:__fix_to_virt"),
        source("slot 511", "arch/x86/include/uapi/asm/vsyscall.h:VSYSCALL_ADDR"),
        source("MODULES_END", "arch/x86/include/asm/pgtable_64_types.h:CONFIG_DEBUG_KMAP_LOCAL_FORCE_MAP"),
        source("tables of the image", "arch/x86/kernel/head_64.S:level1_fixmap_pgt"),
        source("early_ioremap_debug", "mm/early_ioremap.c:early_ioremap_debug"),
        source(
            "page tables for patching",
            "arch/x86/kernel/alternative.c:text_poke",
            "commit 4fc19708b165 x86/alternatives: Initialize temporary mm for patching",
        ),
    ),
)
