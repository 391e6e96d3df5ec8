# SPDX-License-Identifier: LGPL-2.1-or-later
"""What to know about the gap between the two halves on riscv64."""

from kvintro.regions.explained import Explanation, macro, source

EXPLAIN = Explanation(
    also=("gap", "hole between the halves", "noncanonical"),
    purpose="""
    Addresses that the processor does not accept: all bits above those that it translates must be equal to the
    highest of these. An access to any other address faults.
    """,
    definitions=(macro("VA_BITS", "bits of addresses: 39, 48 or 57, as the kernel chose when it booted"),),
    translation="None.",
    attacker="The kernel checks that a pointer from user mode is below the end of user space.",
    debugger="""
    An address here is data that is not a pointer, or belongs to a kernel with more bits of addresses.
    """,
    sources=(source("bits", "arch/riscv/include/asm/pgtable.h:VA_BITS", releases=("6.12",)),),
)
