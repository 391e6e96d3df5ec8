# SPDX-License-Identifier: LGPL-2.1-or-later
"""What to know about module space."""

from kvintro.regions.explained import Explanation, boot, config, macro, source, variable

EXPLAIN = Explanation(
    also=("module", "lkm", "execmem", "module mapping space", "bpf"),
    purpose="""
    Holds code that joins the running kernel. It has to lie within 2 GB of the image, so that calls between
    the two fit in 32 bits; that is why it has a region of its own and is not part of the vmalloc area.
    """,
    users="""
    Modules; also programs that BPF compiled, ftrace's trampolines and the copied instructions of kprobes.
    Since 6.10 all of them use one allocator, execmem.
    """,
    definitions=(
        macro("MODULES_VADDR", "the start: where the image's window ends"),
        macro("MODULES_END", "ffffffffff000000, 16 MB below the top; exclusive"),
        macro("MODULES_LEN", "what is left: 1008 MB with a window of 1 GB, 1520 MB with one of 512 MB"),
        variable("modules_disabled", "1: nothing may be loaded or removed any more", size=4, shows="number"),
        config("MODULES", "loadable modules", "mod_tree"),
        config(
            "RANDOMIZE_BASE",
            "the first piece is moved by 1 to 1024 pages, drawn once per boot and rounded up to the piece's "
            "alignment",
            "kaslr_get_random_long",
        ),
        config(
            "ARCH_HAS_EXECMEM_ROX",
            "code comes from huge pages that are read-only where it runs",
            "execmem_fill_trapping_insns",
        ),
        config("STRICT_MODULE_RWX", "code read-only, data not executable"),
        config("EXECMEM", "one allocator for all kinds of code (since 6.10)", "execmem_alloc"),
        boot("nokaslr", "the first module is at the start"),
        boot("nomodule", "none are loaded"),
        boot("module.sig_enforce", "only signed ones"),
    ),
    translation="""
    By page tables, as in the vmalloc area, whose allocator manages both: its list has these areas too. The
    image's rule (phys_base) does not apply here, though the addresses look alike.
    """,
    attacker="""
    The start of the region has 10 random bits. Code that comes from huge pages is placed on a multiple of
    2 MB, which leaves it only two first places: 1 bit. Data keeps the 10 bits. Once one address is known,
    all others of the same piece are. BPF programs are compiled to code whose constants a user may have
    chosen; the sysctl net.core.bpf_jit_harden hides them.
    """,
    debugger="""
    "kvintro show modules" lists each module's parts: since 6.4 a module is up to seven pieces
    (mod->mem[]) that need not be neighbours. An address that no module owns is BPF's, a trampoline, or
    left over from an unload.
    """,
    changed="""
    mm.rst has 1520 MB from ffffffffa0000000: that is what a kernel without RANDOMIZE_BASE leaves. On
    others it is 1008 MB from ffffffffc0000000, with nokaslr too. Newer kernels keep a cache of 2 MB pages
    for code that is never writable where it runs (execmem's ROX cache). On x86 it was switched off again
    before the release that brought it, 6.13, and came back later.
    """,
    sources=(
        source(
            "bounds",
            "arch/x86/include/asm/pgtable_64_types.h:MODULES_VADDR",
            "arch/x86/include/asm/pgtable_64_types.h:MODULES_END",
            "arch/x86/include/asm/pgtable_64_types.h:MODULES_LEN",
        ),
        source("1 to 1024 pages", "arch/x86/kernel/module.c:get_module_load_offset", releases=("6.1",)),
        source("1 to 1024 pages", "arch/x86/mm/init.c:execmem_arch_setup", releases=("6.12", "7.3")),
        source(
            "the cache, its huge pages and their alignment",
            "mm/execmem.c:execmem_cache_populate_alloc",
            "arch/x86/mm/init.c:EXECMEM_ROX_CACHE",
            "mm/vmalloc.c:VM_ALLOW_HUGE_VMAP",
            "arch/x86/Kconfig:ARCH_HAS_EXECMEM_ROX",
            releases=("7.3",),
        ),
        source(
            "the cache's history",
            "commit 2e45474ab14f execmem: add support for cache of large ROX pages",
            "commit a9bbe3413331 x86: Disable EXECMEM_ROX support",
            "commit 64f6a4e10c05 x86: re-enable EXECMEM_ROX support",
            releases=(),
        ),
        source("seven pieces", "include/linux/module.h:MOD_MEM_NUM_TYPES", releases=("6.12", "7.3")),
        source(
            "modules_disabled, nomodule, sig_enforce",
            "kernel/module/main.c:core_param(nomodule, modules_disabled",
            "kernel/module/signing.c:sig_enforce",
            releases=("6.1", "6.12"),
        ),
        source("modules_disabled, nomodule", "kernel/module/main.c:core_param(nomodule", releases=("7.3",)),
        source("rights", "kernel/module/strict_rwx.c:set_memory_rox", releases=("6.12", "7.3")),
        source("constants", "kernel/bpf/core.c:bpf_jit_harden"),
    ),
)
