# SPDX-License-Identifier: LGPL-2.1-or-later
"""What to know about the ranges between aarch64's regions."""

from kvintro.regions.explained import Explanation, macro, source

EXPLAIN = Explanation(
    also=("unused", "holes", "top hole"),
    purpose="""
    Addresses that do not belong to any region. They keep the regions apart, so that a wrong pointer does not
    hit anything.
    """,
    users="""
    Nobody. The last page is empty so that small negative numbers are not valid pointers: the kernel returns
    errors as pointers from ffffffffffffffff down to fffffffffffff001 (-1 to -4095).
    """,
    definitions=(
        macro("IS_ERR()", "whether a pointer is one of the last 4095 numbers: an error, not an address"),
    ),
    translation="Not translated: no kernel maps anything here, so a mapping deserves a close look.",
    attacker="The holes between regions have the same place on every boot.",
    debugger="""
    A fault at an address like fffffffffffffff4 is an error code (-12, ENOMEM) that was used as a pointer.
    """,
    sources=(source("errors", "include/linux/err.h:MAX_ERRNO", "include/linux/err.h:IS_ERR_VALUE"),),
)
