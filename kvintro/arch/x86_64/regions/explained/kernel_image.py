# SPDX-License-Identifier: LGPL-2.1-or-later
"""The explanation of the kernel image."""

from kvintro.regions.explained import Explanation, boot, config, macro, source, variable

EXPLAIN = Explanation(
    also=("text", "kernel text", "_text", "vmlinux", "high kernel mapping", "image"),
    purpose="""
    The kernel itself, as it was linked. The sections of the ELF file vmlinux follow each other here: code,
    constants, data, the per-CPU template, parts that are needed only at boot, and bss. It is in the last 2 GB
    of the address space so that instructions can contain its addresses as 32-bit numbers; the compiler's code
    model relies on this.
    """,
    users="Every instruction the kernel runs that is not in a module, and every static variable.",
    definitions=(
        macro(
            "__START_KERNEL_map",
            "the start of the window, at the physical address phys_base",
        ),
        macro(
            "KERNEL_IMAGE_SIZE",
            "the size of the window: 1 GB if KASLR is built in (even if switched off), else 512 MB",
        ),
        config("PHYSICAL_START", "16 MB: the lowest offset of the image in its window"),
        config("PHYSICAL_ALIGN", "2 MB: KASLR moves the image by multiples of this"),
        config(
            "RANDOMIZE_BASE",
            "KASLR chooses the image's virtual and physical addresses, independently of each other",
            "kaslr_get_random_long",
        ),
        variable(
            "phys_base", "the physical address of the window's start, which may be negative", shows="signed"
        ),
        variable("_brk_end", "the end of the part that stays mapped, rounded up to 2 MB"),
        boot("nokaslr", "the image stays at ffffffff81000000"),
        boot("rodata=", "off leaves code and constants writable"),
    ),
    translation="""
    physical = virtual - __START_KERNEL_map + phys_base, but only for addresses from _text to _brk_end. The
    rule does not hold for modules, which are above, in the same 2 GB. The direct map maps the same memory,
    but not as executable.
    """,
    attacker="""
    Code to jump to. The image has about 480 possible places in its window (9 bits), and one leaked pointer
    reveals all its addresses. Timing of prefetch instructions also finds it, because user mode's tables map
    the entry code (CVE-2022-4543). Code is not writable, data is not executable, and parts that were needed
    only at boot are freed and reused.
    """,
    debugger="""
    To find an address from an oops in vmlinux, subtract the displacement. Only the used part of the region
    is mapped; the kernel unmaps the rest of the window at boot. The memory of freed init sections may now
    hold anything.
    """,
    changed="""
    mm.rst shows 512 MB, mapped to physical address 0. That is a kernel built without KASLR. Every kernel
    built with RANDOMIZE_BASE has a window of 1 GB, which starts at the physical address phys_base. The rule
    "ffffffff8... is text" holds only with nokaslr. With KASLR the image starts anywhere from
    ffffffff81000000 up, as long as it ends below ffffffffc0000000. It also contains data.

    KASLR chooses the physical place from the free RAM above the load address, or above 512 MB if the image
    was loaded higher. It cannot use the memory of the packed kernel and of the buffer for unpacking. So on a
    machine with little memory there may be no other place, and the image stays where it was loaded. When
    booted by EFI, newer kernels unpack in the EFI stub, and firmware's memory map decides
    (efi_random_alloc).
    """,
    sources=(
        source("sections of vmlinux", "arch/x86/kernel/vmlinux.lds.S:SECTIONS"),
        source(
            "window",
            "arch/x86/include/asm/page_64_types.h:KERNEL_IMAGE_SIZE",
            "arch/x86/include/asm/page_64_types.h:__START_KERNEL_map",
        ),
        source("16 MB and 2 MB", "arch/x86/Kconfig:PHYSICAL_START", "arch/x86/Kconfig:PHYSICAL_ALIGN"),
        source(
            "virtual and physical places",
            "arch/x86/boot/compressed/kaslr.c:find_random_virt_addr",
            "arch/x86/boot/compressed/kaslr.c:find_random_phys_addr",
            "arch/x86/boot/compressed/kaslr.c:mem_avoid_init",
            "arch/x86/boot/compressed/kaslr.c:512UL << 20",
            "arch/x86/boot/compressed/head_64.S:BP_init_size",
        ),
        source(
            "the EFI stub",
            "drivers/firmware/efi/libstub/x86-stub.c:efi_decompress_kernel",
            "drivers/firmware/efi/libstub/randomalloc.c:efi_random_alloc",
            "commit a1b87d54f4e4 x86/efistub: Avoid legacy decompressor when doing EFI boot",
            releases=("6.12", "7.3"),
        ),
        source("before that also by EFI", "arch/x86/boot/compressed/kaslr.c:process_efi_entries"),
        source("the rest of the window", "arch/x86/mm/init_64.c:cleanup_highmap"),
        source("rights; rodata=", "arch/x86/mm/init_64.c:mark_rodata_ro", "init/main.c:set_debug_rodata"),
        source("translation", "arch/x86/include/asm/page_64.h:phys_base"),
        source("freed init sections", "arch/x86/mm/init.c:free_initmem"),
        source("user mode's tables", "arch/x86/mm/pti.c:pti_clone_entry_text"),
    ),
)
