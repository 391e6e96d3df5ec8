# SPDX-License-Identifier: LGPL-2.1-or-later
"""What to know about the stretches between regions."""

from kvintro.regions.explained import Explanation, config, macro

EXPLAIN = Explanation(
    also=("unused", "holes", "top hole", "gap"),
    purpose="""
    What no region takes. Some holes are room to grow (behind vmalloc and vmemmap), some are what KASLR
    had to share out and did not use, some are distances that keep mistakes from meeting anything.
    """,
    users="""
    Nobody. The last 2 MB are empty so that small negative numbers point to nothing: the kernel returns
    errors as pointers from ffffffffffffffff down to fffffffffffff001 (-1 to -4095), and poison values lie
    there.
    """,
    definitions=(
        macro("IS_ERR()", "whether a pointer is one of the last 4095 numbers, an error and no address"),
        macro("STACKLEAK_POISON", "ffffffffffff4111 (-0xbeef), what used stack is overwritten with"),
        macro(
            "vaddr_end",
            "KASLR's room ends at the cpu_entry_area; after each of its regions at least 1 GB is free",
        ),
        config(
            "RANDOMIZE_MEMORY", "where the holes are differs from boot to boot", "kernel_randomize_memory"
        ),
    ),
    translation="They do not: no kernel maps anything here, and a mapping would be worth a close look.",
    attacker="Sizes of holes tell where KASLR put the regions, and to read them is to have won already.",
    debugger="""
    A fault at an address like fffffffffffffff4 is an error code (-12, ENOMEM) that somebody used as a
    pointer.
    """,
    changed="""
    mm.rst draws holes of fixed size, as they are without KASLR. kvintro shows them as they are on this
    kernel.
    """,
)
