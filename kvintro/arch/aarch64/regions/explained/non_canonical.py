# SPDX-License-Identifier: LGPL-2.1-or-later
"""What to know about the gap between the two halves on aarch64."""

from kvintro.regions.explained import Explanation, macro, source

EXPLAIN = Explanation(
    also=("gap", "hole between the halves", "noncanonical"),
    purpose="""
    Addresses that neither root translates: TCR_EL1 tells the processor how many bits the addresses of each
    half have, and an access to any other faults.
    """,
    definitions=(
        macro("VA_BITS", "bits of addresses that the kernel was built for"),
        macro("vabits_actual", "those that the processor has: they can be fewer with VA_BITS of 52"),
    ),
    translation="None.",
    attacker="""
    A pointer with a wrong signature (PAC) becomes an address in this gap, so that its use faults.
    """,
    debugger="""
    An address here is often a pointer with a tag or with a signature in its upper bits, or data that is not a
    pointer.
    """,
    sources=(source("bits", "arch/arm64/include/asm/memory.h:vabits_actual"),),
)
