# SPDX-License-Identifier: LGPL-2.1-or-later
"""aarch64: the parts of the kernel's image (arch/arm64/kernel/vmlinux.lds.S)."""

from __future__ import annotations

from typing import Tuple

from kvintro.arch.image import COMMON_INNER, FREED_UNMAPPED, InnerPart, Part

# In the order of addresses (arch/arm64/mm/mmu.c:mark_rodata_ro, init.c:free_initmem). Before _stext is the
# boot header, which older kernels do not map.
PARTS: Tuple[Part, ...] = (
    Part("text", "_stext", "_etext", "r-x"),
    # Includes the fixed page tables, which are changed through the fixmap.
    Part("rodata", "__start_rodata", "__init_begin", "r--"),
    Part("init", "__init_begin", "__init_end", "", FREED_UNMAPPED),
    Part("data", "_sdata", "_edata", "rw-"),
    Part("bss", "__bss_start", "__bss_stop", "rw-"),
)
INNER: Tuple[InnerPart, ...] = (
    *COMMON_INNER,
    InnerPart("init text", "init", "_sinittext", "_einittext"),
    InnerPart("per-CPU template", "init", "__per_cpu_start", "__per_cpu_end"),
)
