# SPDX-License-Identifier: LGPL-2.1-or-later
"""What to know about the fixmap."""

from kvintro.regions.explained import Explanation, boot, config, macro, source
from kvintro.regions.explained.shared import SLOTS

EXPLAIN = Explanation(
    also=("fixaddr", "fix-mapped", "fixmap range"),
    purpose=SLOTS,
    users="""
    The registers of the local APIC and the I/O APICs, ACPI's error reports (GHES) and early consoles. During
    boot early_ioremap() uses the slots below the permanent ones. On kernels with
    CONFIG_DEBUG_KMAP_LOCAL_FORCE_MAP, kmap_local() uses slots too.
    """,
    definitions=(
        macro("FIXADDR_TOP", "ffffffffff7ff000, the address of slot 0; each next slot is one page lower"),
        macro("FIXADDR_START", "one page below the last permanent slot; depends on the build"),
        macro("fix_to_virt()", "converts a slot's number to its address; virt_to_fix() converts back"),
        config("X86_VSYSCALL_EMULATION", "reserves slot 511 for the vsyscall page", "vsyscall_mode"),
        config("DEBUG_KMAP_LOCAL_FORCE_MAP", "slots for every CPU, and MODULES_END 16 MB lower"),
        boot("early_ioremap_debug", "prints what is mapped during boot"),
    ),
    translation="""
    By page tables that are part of the image (level1_fixmap_pgt). set_fixmap() fills a slot.
    """,
    attacker="""
    The addresses are known, but most pages belong to devices. Until 5.1 the kernel patched its code through
    slots here. Since then it uses separate page tables for this, and those slots no longer exist.
    """,
    debugger="""
    Few slots are mapped. APIC pages are uncached, and no dump contains them. "kvintro show fixmap" names the
    slots. If the kernel has the vsyscall page, the first slot with a name is 511. Slots 0 to 510 have no
    names, although they count as permanent.
    """,
    changed="""
    mm.rst does not give a start, because it depends on the build. The start is FIXADDR_TOP minus the size of
    the permanent slots; kvintro reads their number from enum fixed_addresses.
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
