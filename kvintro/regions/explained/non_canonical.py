# SPDX-License-Identifier: LGPL-2.1-or-later
"""What to know about addresses that are none."""

from kvintro.regions.explained import Explanation, boot, macro, variable

EXPLAIN = Explanation(
    also=("noncanonical",),
    purpose="""
    Pointers have 64 bits, but the processor translates 48 of them, or 57 with five levels of paging. All
    bits above must repeat the topmost one in use; the numbers that do not are no addresses at all. They
    lie between the half that starts with zeros and the half that starts with ones, and are nearly all
    numbers there are.
    """,
    users="""
    Nobody, on purpose: the kernel marks dead list entries with dead000000000100 and dead000000000122
    (LIST_POISON1 and 2), which lie here so that whoever follows them is stopped at once.
    """,
    definitions=(
        macro("__VIRTUAL_MASK_SHIFT", "number of the topmost address bit: 47, or 56 with five levels"),
        variable(
            "__pgtable_l5_enabled",
            "1: five levels, and the hole is smaller by a factor that hardly shows",
            size=4,
            shows="number",
        ),
        macro(
            "POISON_POINTER_DELTA", "what moves poison values into this hole (CONFIG_ILLEGAL_POINTER_VALUE)"
        ),
        boot("no5lvl", "four levels on a processor that could do five"),
    ),
    translation="""
    Not at all. A use is a general protection fault, not a page fault: CR2 says nothing, and the oops has
    to guess the address from the instruction ("probably for non-canonical address").
    """,
    attacker="""
    An oops with such an address tells that some pointer is overwritten or freed already.
    """,
    debugger="""
    Look at the value: dead0000000001xx is a list entry used after it was removed; 6b6b6b6b6b6b6b6b is
    freed slab memory where slabs are debugged; ASCII letters are text written over a pointer; anything
    random may be a slab free pointer, which is kept mangled (CONFIG_SLAB_FREELIST_HARDENED). Under KASAN,
    dffffc00000000xx is the shadow of an address close to NULL.
    """,
    changed="""
    mm.rst calls its size 16M TB, which is 16 EB. With LAM the processor ignores some bits of user
    pointers, so that a program may use numbers from here; the kernel strips them first (untagged_addr).
    """,
)
