# SPDX-License-Identifier: LGPL-2.1-or-later
"""The explanation of module space."""

from kvintro.regions.explained import Explanation, boot, config, macro, source, variable

EXPLAIN = Explanation(
    also=("module", "lkm", "execmem", "module mapping space", "bpf"),
    purpose="""
    Holds code that is added to the running kernel. The code must be within 2 GB of the image, so that the
    offsets of calls between the two fit in 32 bits. That is why it has its own region and is not part of the
    vmalloc area.
    """,
    users="""
    Modules (insmod and modprobe load them), compiled BPF programs, ftrace's trampolines
    and the copied instructions of kprobes. Since 6.10 all of them use one allocator, execmem.
    """,
    definitions=(
        macro("MODULES_VADDR", "the start, which is the end of the image's window"),
        macro("MODULES_END", "ffffffffff000000, 16 MB below the top; exclusive"),
        macro("MODULES_LEN", "the size: 1008 MB after a window of 1 GB, 1520 MB after one of 512 MB"),
        variable("modules_disabled", "1: modules can no longer be loaded or removed", size=4, shows="number"),
        config("MODULES", "loadable modules", "mod_tree"),
        config(
            "RANDOMIZE_BASE",
            "the first piece is moved by 1 to 1024 pages, chosen once per boot and rounded up to the piece's "
            "alignment",
            "kaslr_get_random_long",
        ),
        config(
            "ARCH_HAS_EXECMEM_ROX",
            "code is placed in huge pages that are mapped read-only where it runs",
            "execmem_fill_trapping_insns",
        ),
        config("STRICT_MODULE_RWX", "code is read-only, and data is not executable"),
        config("EXECMEM", "there is one allocator for all kinds of code (since 6.10)", "execmem_alloc"),
        boot("nokaslr", "the first module is at the start of the region"),
        boot("nomodule", "modules are not loaded"),
        boot("module.sig_enforce", "only signed modules are loaded"),
    ),
    translation="""
    By page tables, as in the vmalloc area. The same allocator manages both regions, so vmalloc's list
    contains these areas too. The image's rule (phys_base) does not apply here, although the addresses look
    similar.
    """,
    attacker="""
    The start of the region has 10 random bits. Code from huge pages starts at a multiple of 2 MB, so it has
    only two first places: 1 bit. Data keeps the 10 bits. Once one address is known, all others of the same
    piece are known too. A user may choose constants in the code of a BPF program; the sysctl
    net.core.bpf_jit_harden hides such constants.
    """,
    debugger="""
    "kvintro show modules" lists each module's parts. Since 6.4 a module has up to seven pieces (mod->mem[]),
    which may be apart from each other. If no module contains an address, it belongs to a BPF program or a
    trampoline, or to a module that was unloaded.
    """,
    changed="""
    mm.rst shows 1520 MB from ffffffffa0000000. That is a kernel without RANDOMIZE_BASE. On other kernels it
    is 1008 MB from ffffffffc0000000, even with nokaslr. Newer kernels keep a cache of 2 MB pages for code
    that is never writable where it runs (execmem's ROX cache). It was developed for 6.13, but on x86 it was
    disabled before that release, and enabled again later.
    """,
    sources=(
        source("loading", "kernel/module/main.c:finit_module"),
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
