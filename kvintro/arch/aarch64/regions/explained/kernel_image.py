# SPDX-License-Identifier: LGPL-2.1-or-later
"""What to know about aarch64's kernel image."""

from kvintro.regions.explained import Explanation, boot, config, macro, source, variable

EXPLAIN = Explanation(
    also=("text", "kernel text", "_text", "vmlinux", "image", "kimage"),
    purpose="""
    The kernel itself, as it was linked: code, constants, the fixed page tables, parts that are needed only
    at boot, data and bss. It is within the vmalloc area.
    """,
    users="Every instruction the kernel runs that is not in a module, and every static variable.",
    definitions=(
        macro("KIMAGE_VADDR", "where it is without KASLR: at the end of the modules' window"),
        variable("kimage_voffset", "virtual minus physical address"),
        config("RANDOMIZE_BASE", "KASLR moves the image", "kaslr_init"),
        config("RELOCATABLE", "the image can be moved; RANDOMIZE_BASE needs it"),
        boot("nokaslr", "the image stays at KIMAGE_VADDR"),
        boot("rodata=", "off leaves code and constants writable"),
    ),
    translation="""
    physical = virtual - kimage_voffset, for addresses from _text to _end. The linear map maps the same
    memory, but not as executable.
    """,
    attacker="""
    Code to jump to. KASLR moves the image in steps of 2 MB, and there are millions of them; but one leaked
    pointer reveals all its addresses. Whether KASLR works depends on the boot loader: without a seed in the
    device tree, EFI's random numbers or the processor's (RNDR), the image stays where it was linked.
    """,
    debugger="""
    To find an address from an oops in vmlinux, subtract the displacement (KERNELOFFSET). The first 64 KB,
    up to _stext, are the boot header; older kernels do not map it. Return addresses on stacks may be signed
    (PAC), so that their upper bits differ.
    """,
    changed="""
    Before 6.9 KASLR drew from a quarter of the address space of 48 bits (fewer if the build has fewer);
    since then it draws from the middle half of the vmalloc area. By EFI, the physical place is random, too.
    """,
    sources=(
        source(
            "place and rule",
            "arch/arm64/include/asm/memory.h:KIMAGE_VADDR",
            "arch/arm64/include/asm/memory.h:kimage_voffset",
            "arch/arm64/include/asm/boot.h:MIN_KIMG_ALIGN",
        ),
        source("the draw", "arch/arm64/kernel/pi/kaslr_early.c:kaslr_early_init"),
    ),
)
