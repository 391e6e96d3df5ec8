# SPDX-License-Identifier: LGPL-2.1-or-later
"""What to know about the guard hole."""

from kvintro.regions.explained import Explanation, config, macro, source

EXPLAIN = Explanation(
    also=("hypervisor",),
    purpose="""
    Linux leaves the first sixteen entries of the root table's upper half empty. Xen's interface for
    paravirtual guests, which share page tables with the hypervisor, reserves them. On all other machines
    they put a distance between the non-canonical hole and the first address that Linux uses.
    """,
    users="Xen, in PV guests. KVM, Hyper-V and VMware use page tables of their own and need no room here.",
    definitions=(
        macro("GUARD_HOLE_BASE_ADDR", "the start: entry -256 of the root, the lowest of the upper half"),
        macro("GUARD_HOLE_SIZE", "16 entries of the root: 8 TB, or 4 PB with five levels"),
        config("XEN_PV", "support for running as such a guest", "xen_start_kernel"),
    ),
    translation="""
    Not translated, except under Xen. The kernel's own ptdump skips it, and so does kvintro.
    """,
    attacker="Nothing of use; a wild pointer into it faults.",
    debugger="Suspicious if anything is mapped here outside of a Xen PV guest: Linux never maps this.",
    changed="""
    It got its own name and constants in 4.20; before that it was simply the space below the direct map.
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
