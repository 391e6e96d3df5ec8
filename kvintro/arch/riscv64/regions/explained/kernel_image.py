# SPDX-License-Identifier: LGPL-2.1-or-later
"""What to know about riscv64's kernel image."""

from kvintro.regions.explained import Explanation, boot, config, macro, source

EXPLAIN = Explanation(
    also=("text", "kernel text", "_text", "vmlinux", "image", "kimage"),
    purpose="""
    The kernel itself, as it was linked: code, parts that are needed only at boot, constants, data and bss.
    """,
    users="Every instruction the kernel runs that is not in a module, and every static variable.",
    definitions=(
        macro("KERNEL_LINK_ADDR", "where it is without KASLR: 2 GB before the end of all addresses"),
        config("RANDOMIZE_BASE", "KASLR moves the image", "kaslr_offset"),
        boot("nokaslr", "the image stays at KERNEL_LINK_ADDR"),
    ),
    translation="""
    physical = virtual - va_kernel_pa_offset. It is mapped in blocks of 2 MB at first, so the last one may
    map more than the image.
    """,
    attacker="""
    Code to jump to. KASLR moves the image in steps of 2 MB within 1 GB, so there are about 500 places; its
    physical place is the boot loader's choice. Without a random number from the device tree
    (/chosen/kaslr-seed) or the processor (Zkr), the image stays where it was linked.
    """,
    debugger="""
    VMCOREINFO has no KERNELOFFSET: the image starts at MODULES_END. To find an address from an oops in
    vmlinux, subtract the displacement.
    """,
    sources=(
        source("place", "arch/riscv/include/asm/pgtable.h:KERNEL_LINK_ADDR", releases=("6.12",)),
        source(
            "the draw",
            "arch/riscv/mm/init.c:nr_pos",
            "arch/riscv/kernel/pi/fdt_early.c:kaslr-seed",
            "arch/riscv/kernel/pi/archrandom_early.c:zkr",
            releases=("6.12",),
        ),
        source("blocks", "arch/riscv/mm/init.c:create_kernel_page_table", releases=("6.12",)),
    ),
)
