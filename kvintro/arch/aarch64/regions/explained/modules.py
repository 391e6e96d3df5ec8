# SPDX-License-Identifier: LGPL-2.1-or-later
"""What to know about aarch64's window for modules."""

from kvintro.regions.explained import Explanation, boot, config, macro, source, variable

EXPLAIN = Explanation(
    also=("module area", "loadable modules"),
    purpose="""
    The window below the vmalloc area in which modules are if KASLR is off. With KASLR and
    RANDOMIZE_MODULE_REGION_FULL it stays empty: modules are then in a random window around the image,
    within the vmalloc area.
    """,
    users="Code and data of loaded modules, and BPF programs on some kernels, if KASLR is off.",
    definitions=(
        macro("MODULES_VADDR", "the start: the lowest address above the linear map"),
        macro("MODULES_END", "the end; the vmalloc area begins there"),
        variable("module_alloc_base", "the start of the random window (until 6.4)"),
        variable("module_plt_base", "the start of a window of 2 GB around the image (since 6.5); 0 for none"),
        variable("module_direct_base", "of one of 128 MB, from which branches reach the image; 0 for none"),
        config("RANDOMIZE_MODULE_REGION_FULL", "with KASLR modules are around the image, at random"),
        config("ARM64_MODULE_PLTS", "modules may be farther from the image than a branch reaches"),
        boot("nokaslr", "modules are in this window"),
    ),
    translation="By page tables only.",
    attacker="Code to jump to. Code is not writable, and data is not executable.",
    debugger="""
    Look for modules in the vmalloc area first. "kvintro show modules" follows the kernel's list of modules,
    and finds them wherever they are.
    """,
    changed="The window had 128 MB until 6.4, and has 2 GB since.",
    sources=(
        source(
            "bounds",
            "arch/arm64/include/asm/memory.h:MODULES_VADDR",
            "arch/arm64/include/asm/memory.h:MODULES_VSIZE",
        ),
        source("random windows", "arch/arm64/mm/init.c:module_init_limits", releases=("6.12", "7.3")),
    ),
)
