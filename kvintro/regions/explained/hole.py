# SPDX-License-Identifier: LGPL-2.1-or-later
"""The explanation of the ranges between regions, for architectures without their own."""

from kvintro.regions.explained import Explanation, macro, source

EXPLAIN = Explanation(
    also=("unused", "holes", "gap"),
    purpose="""
    Addresses that do not belong to any region. Some are left over because regions begin at round addresses.
    Some are guards, so that a wrong pointer does not hit anything.
    """,
    users="""
    Nobody. The last page is empty so that small negative numbers are not valid pointers: the kernel returns
    errors as pointers from ffffffffffffffff down to fffffffffffff001 (-1 to -4095).
    """,
    definitions=(
        macro("IS_ERR()", "whether a pointer is one of the last 4095 numbers: an error, not an address"),
    ),
    translation="Not translated: no kernel maps anything here, so a mapping deserves a close look.",
    debugger="""
    A fault at an address like fffffffffffffff4 is an error code (-12, ENOMEM) that was used as a pointer.
    """,
    sources=(source("errors as pointers", "include/linux/err.h:MAX_ERRNO"),),
)
