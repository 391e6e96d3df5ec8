# SPDX-License-Identifier: LGPL-2.1-or-later
"""The explanation of the guard hole."""

from kvintro.regions.explained import Explanation, config, macro, source

EXPLAIN = Explanation(
    also=("hypervisor",),
    purpose="""
    Linux does not use the first sixteen entries in the upper half of the root table. Xen reserves them for
    itself in paravirtual guests, which share page tables with the hypervisor. On all other machines they
    separate the first address that Linux uses from the non-canonical hole.
    """,
    users="Xen, in PV guests. KVM, Hyper-V and VMware have their own page tables and use nothing here.",
    definitions=(
        macro("GUARD_HOLE_BASE_ADDR", "the start: entry -256 of the root, the lowest of the upper half"),
        macro("GUARD_HOLE_SIZE", "16 entries of the root: 8 TB, or 4 PB with five levels"),
        config("XEN_PV", "support for running as a Xen PV guest", "xen_start_kernel"),
    ),
    translation="""
    Not translated, except under Xen. The kernel's own ptdump skips it, and so does kvintro.
    """,
    attacker="Nothing. A pointer into it faults.",
    debugger="Suspicious if anything is mapped here outside of a Xen PV guest: Linux never maps this.",
    changed="""
    It has its own name and constants since 4.20. Before that it was just the space below the direct map.
    """,
    sources=(
        source(
            "entries and size",
            "arch/x86/include/asm/pgtable_64_types.h:GUARD_HOLE_PGD_ENTRY",
            "arch/x86/include/asm/pgtable_64_types.h:GUARD_HOLE_SIZE",
        ),
        source("ptdump", "arch/x86/mm/dump_pagetables.c:GUARD_HOLE_END_ADDR"),
        source("Xen", "arch/x86/xen/mmu_pv.c:GUARD_HOLE_BASE_ADDR"),
        source("4.20", "commit 16877a5570e0 x86/mm: Fix guard hole handling", releases=()),
    ),
)
