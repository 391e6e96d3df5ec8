# SPDX-License-Identifier: LGPL-2.1-or-later
"""What to know about the espfix stacks."""

from kvintro.regions.explained import Explanation, boot, config, macro, source, variable

EXPLAIN = Explanation(
    also=("esp fixup", "espfix64", "%esp"),
    purpose="""
    IRET to a 16-bit stack segment restores only the lower 16 bits of the stack pointer, and leaves bits 16
    to 31 of the kernel's stack pointer visible to the program. So the kernel returns to such programs from
    a tiny stack of 64 bytes that is mapped 65536 times, once for each value of those bits: it picks the
    mapping whose address already has the program's own bits there.
    """,
    users="Programs that use 16-bit segments: Wine and DOSEMU, and hardly anything else.",
    definitions=(
        macro("ESPFIX_BASE_ADDR", "the start; the room is one entry of a P4D, 512 GB"),
        variable("page_random", "which page of the room a CPU's stack is on", size=4, shows="number"),
        variable(
            "slot_random",
            "which 64 bytes of that page; both are random even without KASLR",
            size=4,
            shows="number",
        ),
        config("X86_ESPFIX64", "follows from X86_16BIT, which needs MODIFY_LDT_SYSCALL", "init_espfix_ap"),
        boot(
            "fred=",
            "with FRED the return restores the whole pointer, and nothing is set up. On processors that have "
            "FRED it is off by default when it came, and on by default in newer kernels",
        ),
    ),
    translation="""
    By page tables. One page of memory serves 64 CPUs and appears every 64 KB, through tables that are
    shared: what looks like gigabytes is a few pages. It is read-only here; the kernel writes through
    another address (espfix_waddr).
    """,
    attacker="""
    It closed a leak of kernel stack addresses (CVE-2014-8134 was a hole in it). User mode's tables map it
    under isolation.
    """,
    debugger="""
    The per-CPU variable espfix_stack has the bottom of each CPU's stack. A fault while returning from here
    becomes a double fault, which the kernel recognises and turns into a general protection fault.
    """,
    changed="Kernels that run with FRED do not fill it, even if they are built with it.",
    sources=(
        source(
            "size, clones, random place, read-only pages, espfix_waddr",
            "arch/x86/kernel/espfix_64.c:ESPFIX_STACKS_PER_PAGE",
            "arch/x86/kernel/espfix_64.c:init_espfix_random",
            "arch/x86/kernel/espfix_64.c:ESPFIX_PTE_CLONES",
            "arch/x86/kernel/espfix_64.c:espfix_waddr",
        ),
        source("base", "arch/x86/include/asm/pgtable_64_types.h:ESPFIX_BASE_ADDR"),
        source("configuration", "arch/x86/Kconfig:X86_ESPFIX64"),
        source("nothing with FRED", "arch/x86/kernel/espfix_64.c:X86_FEATURE_FRED", releases=("6.12", "7.3")),
        source(
            "FRED's default: off in 6.12, on in 7.3",
            'arch/x86/kernel/cpu/common.c:"fred"',
            releases=("6.12", "7.3"),
        ),
        source("double fault", "arch/x86/kernel/traps.c:ESPFIX_PGD_ENTRY"),
        source("user mode's tables", "arch/x86/mm/pti.c:pti_setup_espfix64"),
    ),
)
