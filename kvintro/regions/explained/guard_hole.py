# SPDX-License-Identifier: LGPL-2.1-or-later
"""What to know about the guard hole."""

from kvintro.regions.explained import Explanation, config, macro

EXPLAIN = Explanation(
    also=("hypervisor",),
    purpose="""
    The first sixteen entries of the root table's upper half are left empty. They belong to the hypervisor
    by Xen's contract with paravirtual guests, which share page tables with it; everywhere else they put a
    distance between the last number that is no address and the first one that Linux uses.
    """,
    users="Xen, in PV guests. KVM, Hyper-V and VMware run in page tables of their own and need no room here.",
    definitions=(
        macro("GUARD_HOLE_BASE_ADDR", "the start: entry -256 of the root, the lowest of the upper half"),
        macro("GUARD_HOLE_SIZE", "16 entries of the root: 8 TB, or 4 PB with five levels"),
        config("XEN_PV", "support for running as such a guest", "xen_start_kernel"),
    ),
    translation="It does not, outside of Xen. The kernel's own ptdump passes over it, and so does kvintro.",
    attacker="Nothing to be had; a wild pointer into it faults.",
    debugger="""
    On anything but a Xen PV guest a mapping here would be somebody's who is neither Linux nor welcome.
    """,
    changed="""
    It got its own name and constants in 4.20; before, it was just what lay below the direct map.
    """,
)
