# SPDX-License-Identifier: LGPL-2.1-or-later
"""The explanation of the espfix stacks."""

from kvintro.regions.explained import Explanation, boot, config, macro, source, variable

EXPLAIN = Explanation(
    also=("esp fixup", "espfix64", "%esp"),
    purpose="""
    IRET to a 16-bit stack segment restores only the lower 16 bits of the stack pointer. Bits 16 to 31 of the
    kernel's stack pointer stay visible to the program. So the kernel returns to such programs from a tiny
    stack of 64 bytes. It is mapped 65536 times, once for each value of those bits, and the kernel uses the
    mapping whose address already has the program's own value in them.
    """,
    users="Programs that use 16-bit segments: Wine and DOSEMU, and hardly anything else.",
    definitions=(
        macro("ESPFIX_BASE_ADDR", "the start; the size is one entry of a P4D, 512 GB"),
        variable("page_random", "which page of the region holds a CPU's stack", size=4, shows="number"),
        variable(
            "slot_random",
            "which 64 bytes of that page hold it; both are random even without KASLR",
            size=4,
            shows="number",
        ),
        config("X86_ESPFIX64", "on if X86_16BIT is on, which needs MODIFY_LDT_SYSCALL", "init_espfix_ap"),
        boot(
            "fred=",
            "with FRED the return restores the whole stack pointer, so espfix is not set up. The first "
            "kernels that support FRED switch it off by default; newer ones switch it on if the processor "
            "has it",
        ),
    ),
    translation="""
    By page tables. One page of memory serves 64 CPUs. Shared tables map it again every 64 KB, so a few pages
    look like gigabytes. It is read-only here; the kernel writes through another address (espfix_waddr).
    """,
    attacker="""
    espfix closed a leak of kernel stack addresses (CVE-2014-8134 was a hole in it). With isolation, user
    mode's tables map it.
    """,
    debugger="""
    The per-CPU variable espfix_stack holds the bottom of each CPU's stack. A fault during a return from here
    becomes a double fault, which the kernel recognises and turns into a general protection fault.
    """,
    changed="Kernels that run with FRED do not use the region, even if they are built with espfix.",
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
