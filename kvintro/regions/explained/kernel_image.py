# SPDX-License-Identifier: LGPL-2.1-or-later
"""What to know about the kernel image."""

from kvintro.regions.explained import Explanation, boot, config, macro, source, variable

EXPLAIN = Explanation(
    also=("text", "kernel text", "_text", "vmlinux", "high kernel mapping", "image"),
    purpose="""
    The kernel itself as it was linked: code, constants, data, the per-CPU template, what is needed only
    at boot, and bss. It lies in the last 2 GB of the address space because the compiler's code model then
    needs only 32 bits to name an address in an instruction.
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
    Code to return into. The image has about 480 places in its window, 9 bits, and one leaked pointer gives
    all the rest. Timing of prefetch instructions finds it, because user mode's tables map the entry code
    (CVE-2022-4543). Code is not writable and data is not executable; what was needed only at boot is freed
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
    text" holds for nokaslr only: with KASLR the image starts anywhere from ffffffff81000000 to where it
    still fits below ffffffffc0000000, and it contains data too.

    The physical place is drawn from the free RAM above the load address, or above 512 MB if it was loaded
    higher. The packed kernel and the buffer for unpacking are in the way, so on a machine with little
    memory there may be no other place, and the image stays where it was loaded. Booted through EFI, newer
    kernels unpack in the EFI stub, and firmware's memory map decides (efi_random_alloc).
    """,
    sources=(
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
