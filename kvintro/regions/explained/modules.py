# SPDX-License-Identifier: LGPL-2.1-or-later
"""What to know about module space."""

from kvintro.regions.explained import Explanation, boot, config, macro, variable

EXPLAIN = Explanation(
    also=("module", "lkm", "execmem", "module mapping space", "bpf"),
    purpose="""
    Code that joins the running kernel. It has to lie within 2 GB of the image, so that calls between the
    two fit in 32 bits; that is why it has a region of its own and not a piece of the vmalloc area.
    """,
    users="""
    Modules; also programs that BPF compiled, ftrace's trampolines and the copied instructions of kprobes.
    All take it from one allocator, execmem.
    """,
    definitions=(
        macro("MODULES_VADDR", "the start: where the image's window ends"),
        macro("MODULES_END", "ffffffffff000000, 16 MB below the top; exclusive"),
        macro("MODULES_LEN", "what is left: 1008 MB with a window of 1 GB, 1520 MB with one of 512 MB"),
        variable("modules_disabled", "1: nothing may be loaded or removed any more", size=4, shows="number"),
        config("MODULES", "loadable modules", "mod_tree"),
        config(
            "RANDOMIZE_BASE",
            "the first module is moved by 1 to 1024 pages, drawn once per boot",
            "kaslr_get_random_long",
        ),
        config("STRICT_MODULE_RWX", "code read-only, data not executable"),
        config("EXECMEM", "one allocator for all kinds of code (since 6.10)", "execmem_alloc"),
        boot("nokaslr", "the first module is at the start"),
        boot("nomodule", "none are loaded"),
        boot("module.sig_enforce", "only signed ones"),
    ),
    translation="""
    By page tables, as in the vmalloc area, whose allocator keeps both: its list has these areas too. The
    image's rule (phys_base) does not hold here, though the addresses look alike.
    """,
    attacker="""
    Module code at a place of which 10 bits are random, once one address in the region is known all others
    of the same module. JIT compiled BPF programs are code whose constants a user may have chosen;
    bpf_jit_harden= hides them.
    """,
    debugger="""
    "kvintro show modules" lists each module's parts: since 6.4 a module is up to seven pieces
    (mod->mem[]) that need not be neighbours. An address that no module owns is BPF's, a trampoline, or
    left over from an unload.
    """,
    changed="""
    mm.rst has 1520 MB from ffffffffa0000000: that is what a kernel without RANDOMIZE_BASE leaves. On
    others it is 1008 MB from ffffffffc0000000, with nokaslr too. Newer kernels keep a cache of 2 MB pages
    for code that is never writable where it runs (execmem's ROX cache).
    """,
)
