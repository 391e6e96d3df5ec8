# SPDX-License-Identifier: LGPL-2.1-or-later
"""What to know about the vsyscall page."""

from kvintro.regions.explained import Explanation, boot, config, macro, variable

EXPLAIN = Explanation(
    also=("[vsyscall]", "legacy vsyscall"),
    purpose="""
    Once a page of kernel code that programs called at a fixed address to ask for the time without
    entering the kernel: gettimeofday, time and getcpu at 0, 400 and 800 (hex) from the start. The vDSO
    replaced it, at an address of each process's own.
    """,
    users="Programs linked statically before about 2013, and those that run them in old containers.",
    definitions=(
        macro("VSYSCALL_ADDR", "-10 MB, slot 511 of the fixmap; part of the ABI and never moved"),
        variable("vsyscall_mode", "0 emulate, 1 xonly, 2 none", size=4, shows="number"),
        config("X86_VSYSCALL_EMULATION", "the page exists at all", "vsyscall_mode"),
        config("LEGACY_VSYSCALL_XONLY", "the default; LEGACY_VSYSCALL_NONE is the other choice"),
        boot("vsyscall=", "emulate, xonly or none"),
    ),
    translation="""
    With vsyscall=emulate a page is mapped, for reading only: a call faults, and the fault handler does
    what the call asked for. With xonly nothing is mapped, and the handler knows the address alone.
    """,
    attacker="""
    While there was code here, it was code at an address that no randomisation moved. Nothing executes
    here now.
    """,
    debugger="/proc/PID/maps has it as [vsyscall] in every process, though no process's tables need have it.",
    changed="""
    Calls trap and are done by the kernel since 3.1. Choosing "emulate" when building is gone by 6.1; the
    boot option is still there, and switches LASS off in kernels that know it.
    """,
)
