# SPDX-License-Identifier: LGPL-2.1-or-later
"""What to know about the kernel image."""

from kvintro.regions.explained import Explanation, boot, config, macro, variable

EXPLAIN = Explanation(
    also=("text", "kernel text", "_text", "vmlinux", "high kernel mapping", "image"),
    purpose="""
    The kernel itself as it was linked: code, constants, data, the per-CPU template, what is needed only
    at boot, and bss. It lies in the last 2 GB of all addresses because the compiler's code model lets an
    instruction name an address there by 32 bits.
    """,
    users="Every instruction the kernel runs that is not in a module, and every static variable.",
    definitions=(
        macro("__START_KERNEL_map", "the start of the window; physical address phys_base would be there"),
        macro(
            "KERNEL_IMAGE_SIZE",
            "the window: 1 GB on kernels built for KASLR, booted with it or not; else 512 MB",
        ),
        config("PHYSICAL_START", "16 MB: the first place for the image in its window"),
        config("PHYSICAL_ALIGN", "2 MB: the step in which KASLR moves it"),
        config(
            "RANDOMIZE_BASE",
            "KASLR: the image's virtual and physical places, drawn independently",
            "kaslr_get_random_long",
        ),
        variable(
            "phys_base", "the physical address of the window's start, which may be negative", shows="signed"
        ),
        variable("_brk_end", "the end of what stays mapped, up to the next 2 MB"),
        boot("nokaslr", "the image stays at ffffffff81000000"),
        boot("rodata=", "off leaves code and constants writable"),
    ),
    translation="""
    physical = virtual - __START_KERNEL_map + phys_base, for addresses from _text to _brk_end only:
    modules lie above, in the same last 2 GB, and follow no such rule. The same memory is in the direct
    map as well, not executable there.
    """,
    attacker="""
    The place of code to return into. There are about 500 places, 9 bits, and one leaked pointer gives all
    the rest. Timing of prefetch instructions finds it through what user mode's tables show of the entry
    code (CVE-2022-4543). Code is not writable, data not executable; what was needed only at boot is freed
    and reused.
    """,
    debugger="""
    Subtract the displacement to get from an address in an oops to one in vmlinux. Of the region only the
    used part is mapped; the kernel unmaps the rest of the window at boot. Freed init sections belong to
    whoever allocated them since.
    """,
    changed="""
    mm.rst shows 512 MB, mapped to physical address 0: that is a kernel built without KASLR. Every kernel
    built with RANDOMIZE_BASE has a window of 1 GB, and phys_base says where it points. "ffffffff8... is
    text" holds for nokaslr only: with KASLR text starts anywhere from ffffffff81000000 to ffffffffbf...,
    and data is in there too.
    """,
)
