# SPDX-License-Identifier: LGPL-2.1-or-later
"""The explanation of KASAN's shadow."""

from kvintro.regions.explained import Explanation, boot, config, macro, source

EXPLAIN = Explanation(
    also=("kasan", "shadow"),
    purpose="""
    The address sanitizer's records: one byte for every eight bytes of the kernel half, which says how many
    of the eight may be accessed. The compiler adds a check of this byte before every load and store, so
    the sanitizer finds a use after free or an access out of bounds when it happens.
    """,
    users="""
    Kernels built for testing. Production kernels do not have it, because it costs an eighth of memory and
    makes the kernel much slower.
    """,
    definitions=(
        macro("KASAN_SHADOW_START", "the shadow of the first address of the kernel half"),
        config("KASAN", "the sanitizer; on x86 only its generic mode", "kasan_early_shadow_page"),
        config("KASAN_SHADOW_OFFSET", "dffffc0000000000: shadow = (address >> 3) + this"),
        config("KASAN_VMALLOC", "vmalloc areas have real shadow too", "kasan_populate_vmalloc"),
        config("KASAN_INLINE", "checks are inline code, not function calls"),
        boot("kasan_multi_shot", "report every error, not only the first"),
        boot("kasan.fault=", "what to do on an error: report or panic, in newer kernels also panic_on_write"),
    ),
    translation="""
    By page tables. The shadow of direct-map addresses beyond the end of RAM is not mapped; with four levels
    that is about half of the region. Nearly all of the mapped part is one page of zeros, which shared tables
    map over and over, because there is nothing to record about most addresses. Memory of its own
    exists only for the shadow of RAM, the image, modules, the cpu_entry_area and, with KASAN_VMALLOC, vmalloc
    areas.
    """,
    attacker="""
    Anyone who can write here can disable the sanitizer's checks. But a kernel with KASAN is rarely a real
    target.
    """,
    debugger="""
    00: all eight bytes are accessible. 01 to 07: only that many of them. fa, fb: freed (fa if the allocator
    also recorded who freed it). fc: redzone of a slab object; fe: redzone of a large allocation; ff: free
    page. f9: around globals; f8: vmalloc; f1 to f4: stack; ca, cb: around alloca. An oops at
    dffffc0000000000 or slightly above comes from a NULL pointer: the check read its shadow.
    """,
    changed="""
    KASAN switches off the randomisation of the memory bases, because the shadow needs a fixed range. The
    image, modules and cpu_entry_area still move. With five levels, mm.rst rounds the start down to
    ffdf000000000000, where the root's entry begins; the first shadow byte is at ffdffc0000000000.
    """,
    sources=(
        source("offset, bounds", "arch/x86/include/asm/kasan.h:KASAN_SHADOW_START"),
        source("the offset's value", "arch/x86/Kconfig:0xdffffc0000000000"),
        source("generic mode only", "arch/x86/Kconfig:HAVE_ARCH_KASAN"),
        source(
            "what is mapped, and what has memory of its own",
            "arch/x86/mm/kasan_init_64.c:kasan_init",
            "arch/x86/mm/kasan_init_64.c:kasan_populate_early_shadow",
            "arch/x86/mm/kasan_init_64.c:CONFIG_KASAN_VMALLOC",
            "mm/kasan/shadow.c:kasan_populate_vmalloc",
        ),
        source(
            "the cpu_entry_area's, as CPUs are set up",
            "arch/x86/mm/kasan_init_64.c:kasan_populate_shadow_for_vaddr",
            releases=("6.12", "7.3"),
        ),
        source(
            "the cpu_entry_area's", "arch/x86/mm/kasan_init_64.c:shadow_cpu_entry_begin", releases=("6.1",)
        ),
        source(
            "what bytes mean",
            "mm/kasan/kasan.h:KASAN_SLAB_REDZONE",
            "mm/kasan/kasan.h:KASAN_PAGE_REDZONE",
            "mm/kasan/kasan.h:KASAN_ALLOCA_LEFT",
        ),
        source("kasan.fault=", "mm/kasan/report.c:panic_on_write", releases=("6.12", "7.3")),
        source(
            "kasan.fault=, kasan_multi_shot", "mm/kasan/report.c:kasan.fault", "mm/kasan/report.c:multi_shot"
        ),
        source("no memory KASLR", "arch/x86/include/asm/setup.h:kaslr_memory_enabled"),
        source("the early shadow's tables", "mm/kasan/init.c:kasan_early_shadow_page"),
    ),
)
