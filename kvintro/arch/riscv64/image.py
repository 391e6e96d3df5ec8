# SPDX-License-Identifier: LGPL-2.1-or-later
"""riscv64: the parts of the kernel's image (arch/riscv/kernel/vmlinux.lds.S)."""

from __future__ import annotations

from typing import Tuple

from kvintro.arch.image import COMMON_INNER, FREED_MAPPED, InnerPart, Part

# In the order of addresses (mm/init.c:mark_rodata_ro, kernel/setup.c:free_initmem).
PARTS: Tuple[Part, ...] = (
    Part("text", "_stext", "_etext", "r-x"),
    Part("init text", "__init_begin", "__init_data_begin", "r--", FREED_MAPPED),
    Part("init data", "__init_data_begin", "__init_end", "rw-", FREED_MAPPED, last_kept=True),
    Part("rodata", "__start_rodata", "__end_rodata", "r--"),
    Part("gap after rodata", "__end_rodata", "_data", "r--"),
    Part("data", "_data", "_edata", "rw-"),
    Part("bss", "__bss_start", "__bss_stop", "rw-"),
)
INNER: Tuple[InnerPart, ...] = (
    *COMMON_INNER,
    InnerPart("per-CPU template", "init data", "__per_cpu_start", "__per_cpu_end"),
)
