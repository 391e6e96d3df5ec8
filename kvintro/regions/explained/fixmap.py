# SPDX-License-Identifier: LGPL-2.1-or-later
"""What to know about the fixmap."""

from kvintro.regions.explained import Explanation, boot, config, macro

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
        macro("FIXADDR_START", "the last permanent slot, which depends on the build"),
        macro("fix_to_virt()", "from a slot's number to its address; virt_to_fix() back"),
        config("X86_VSYSCALL_EMULATION", "gives slot 511 to the vsyscall page", "vsyscall_mode"),
        config("DEBUG_KMAP_LOCAL_FORCE_MAP", "slots for every CPU, and MODULES_END 16 MB lower"),
        boot("early_ioremap_debug", "prints what is mapped while booting"),
    ),
    translation="""
    By page tables, from tables that are part of the image (level1_fixmap_pgt). set_fixmap() fills a slot.
    """,
    attacker="""
    Known addresses, of pages that are mostly devices'. Patching code went through slots here until 5.1;
    it has page tables of its own since, and the slots are gone.
    """,
    debugger="""
    Mapped slots are few; APIC pages are uncached and in no dump. "kvintro show fixmap" names them.
    """,
    changed="""
    mm.rst gives no start since there is none for all kernels: it is FIXADDR_TOP less the permanent slots
    of the build, read from enum fixed_addresses.
    """,
)
