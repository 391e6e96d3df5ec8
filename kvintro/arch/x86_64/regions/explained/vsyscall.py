# SPDX-License-Identifier: LGPL-2.1-or-later
"""The explanation of the vsyscall page."""

from kvintro.regions.explained import Explanation, boot, config, macro, source, variable

EXPLAIN = Explanation(
    also=("[vsyscall]", "legacy vsyscall"),
    purpose="""
    This was once a page of kernel code. Programs called it at a fixed address to get the time without
    entering the kernel: gettimeofday, time and getcpu are at offsets 0, 400 and 800 (hex). The vDSO replaced
    it; its address differs between processes.
    """,
    users="Programs that were linked statically before about 2013, for example in old containers.",
    definitions=(
        macro("VSYSCALL_ADDR", "-10 MB, slot 511 of the fixmap; it is part of the ABI and never moves"),
        variable("vsyscall_mode", "0: emulate, 1: xonly, 2: none", size=4, shows="number"),
        config("X86_VSYSCALL_EMULATION", "the kernel has the page", "vsyscall_mode"),
        config("LEGACY_VSYSCALL_XONLY", "the default; LEGACY_VSYSCALL_NONE is the other choice"),
        boot("vsyscall=", "emulate, xonly or none"),
    ),
    translation="""
    With vsyscall=emulate, a page is mapped read-only. A call faults, and the fault handler does the work of
    the call. With xonly nothing is mapped, and the fault handler recognises the address.
    """,
    attacker="""
    Once there was code here, at an address that no randomisation moved. Nothing executes here now.
    """,
    debugger="""
    /proc/PID/maps shows it as [vsyscall] in 64-bit processes, although their tables map nothing here unless
    the mode is emulate. 32-bit processes do not have it. With vsyscall=none no process has it.
    """,
    changed="""
    Since 3.1 calls trap, and the kernel emulates them. "emulate" was removed as a build option before 6.1.
    The boot option still exists, and switches off LASS in kernels that support it.
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
