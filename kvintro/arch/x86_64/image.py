# SPDX-License-Identifier: LGPL-2.1-or-later
"""x86-64: the parts of the kernel's image (arch/x86/kernel/vmlinux.lds.S)."""

from __future__ import annotations

from typing import Tuple

from kvintro.arch.image import COMMON_INNER, FREED, FREED_MAPPED, FREED_PARTLY, InnerPart, Part

# In the order of addresses (arch/x86/mm/init_64.c:mark_rodata_ro, init.c:free_initmem). Gaps between
# consecutive parts are alignment, or belong to the preceding part.
PARTS: Tuple[Part, ...] = (
    Part("text", "_text", "_etext", "r-x"),
    # Older kernels (5.4) have the exception table between text and rodata.
    Part("gap after text", "__stop___ex_table", "__start_rodata", "", FREED),
    Part("gap after text", "_etext", "__start_rodata", "", FREED),
    Part("rodata", "__start_rodata", "__end_rodata", "r--"),
    Part("gap after rodata", "__end_rodata", "_sdata", "", FREED),
    Part("data", "_sdata", "_edata", "rw-"),
    Part("more data", "_edata", "__init_begin", "rw-"),
    Part("init", "__init_begin", "__init_end", "", FREED),
    # smp_locks are freed, and usually left mapped (alternative.c:alternative_instructions).
    Part("after init", "__init_end", "__bss_start", "rw-", FREED_PARTLY),
    Part("bss", "__bss_start", "__start_bss_decrypted_unused", "rw-"),
    # Memory that guests share with their host; freed, and left mapped
    # (arch/x86/mm/mem_encrypt_amd.c:mem_encrypt_free_decrypted_mem).
    Part("unused decrypted bss", "__start_bss_decrypted_unused", "__end_bss_decrypted", "rw-", FREED_MAPPED),
    # Without CONFIG_AMD_MEM_ENCRYPT.
    Part("bss", "__bss_start", "__bss_stop", "rw-"),
    Part("brk", "__brk_base", "_brk_end", "rw-"),
)
INNER: Tuple[InnerPart, ...] = (
    *COMMON_INNER,
    InnerPart("init text", "init", "_sinittext", "_einittext"),
    InnerPart("per-CPU template", "init", "__per_cpu_start", "__per_cpu_end"),
)
