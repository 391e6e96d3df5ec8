# SPDX-License-Identifier: LGPL-2.1-or-later
"""What to know about the espfix stacks."""

from kvintro.regions.explained import Explanation, boot, config, macro, variable

EXPLAIN = Explanation(
    also=("esp fixup", "espfix64", "%esp"),
    purpose="""
    IRET to a 16-bit stack segment restores only the lower half of the stack pointer, and leaves bits 16
    to 31 of the kernel's in the program's hands. So the kernel returns to such programs from a tiny stack
    whose address already has the program's own bits there: 64 bytes, mapped once for each of the 65536
    values.
    """,
    users="The way back to programs that use 16-bit segments: Wine and DOSEMU, and hardly anybody else.",
    definitions=(
        macro("ESPFIX_BASE_ADDR", "the start; the room is one entry of a P4D, 512 GB"),
        variable(
            "page_random", "which page of the room a CPU's stack is on, and ...", size=4, shows="number"
        ),
        variable(
            "slot_random", "... which 64 bytes of it: random even without KASLR", size=4, shows="number"
        ),
        config("X86_ESPFIX64", "follows from X86_16BIT, which needs MODIFY_LDT_SYSCALL", "init_espfix_ap"),
        boot("fred=", "on: with FRED the return restores all of the pointer, and nothing is set up"),
    ),
    translation="""
    By page tables. One page of memory serves 64 CPUs and is seen every 64 KB, through tables that are
    shared: what looks like gigabytes is a few pages. Read-only here; the kernel writes by another address
    (espfix_waddr).
    """,
    attacker="""
    It closed a leak of kernel stack addresses (CVE-2014-8134 was one hole in it). User mode's tables have
    it under isolation.
    """,
    debugger="""
    The per-CPU variable espfix_stack has the bottom of each CPU's; a fault here becomes a double fault.
    """,
    changed="Kernels that run with FRED do not fill it, though they are built with it.",
)
