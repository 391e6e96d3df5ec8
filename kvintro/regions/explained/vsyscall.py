# SPDX-License-Identifier: LGPL-2.1-or-later
"""What to know about the vsyscall page."""

from kvintro.regions.explained import Explanation, boot, config, macro, source, variable

EXPLAIN = Explanation(
    also=("[vsyscall]", "legacy vsyscall"),
    purpose="""
    Once a page of kernel code that programs called at a fixed address to ask for the time without
    entering the kernel: gettimeofday, time and getcpu at 0, 400 and 800 (hex) from the start. The vDSO
    replaced it, at an address that differs from process to process.
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
    what the call asked for. With xonly nothing is mapped, and the fault handler recognises the address.
    """,
    attacker="""
    While there was code here, it was code at an address that no randomisation moved. Nothing executes
    here now.
    """,
    debugger="""
    /proc/PID/maps shows it as [vsyscall] in 64-bit processes, although their tables map nothing here
    unless the mode is emulate. It is missing from 32-bit processes, and from all with vsyscall=none.
    """,
    changed="""
    Since 3.1 calls trap, and the kernel emulates them. "emulate" was dropped as a build-time choice
    before 6.1; the boot option is still there, and switches LASS off in kernels that know it.
    """,
    sources=(
        source(
            "modes, what is mapped, /proc/PID/maps",
            "arch/x86/entry/vsyscall/vsyscall_64.c:vsyscall_mode",
            "arch/x86/entry/vsyscall/vsyscall_64.c:get_gate_vma",
            "arch/x86/entry/vsyscall/vsyscall_64.c:map_vsyscall",
            "arch/x86/entry/vsyscall/vsyscall_64.c:MM_CONTEXT_HAS_VSYSCALL",
        ),
        source("three calls", "arch/x86/entry/vsyscall/vsyscall_emu_64.S:__NR_getcpu"),
        source("address", "arch/x86/include/uapi/asm/vsyscall.h:VSYSCALL_ADDR"),
        source(
            "choices when building",
            "arch/x86/Kconfig:LEGACY_VSYSCALL_XONLY",
            "commit bf00745e7791 x86/vsyscall: Remove CONFIG_LEGACY_VSYSCALL_EMULATE",
        ),
        source("LASS", "arch/x86/entry/vsyscall/vsyscall_64.c:X86_FEATURE_LASS", releases=("7.3",)),
    ),
)
