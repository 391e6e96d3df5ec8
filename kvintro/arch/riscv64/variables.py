# SPDX-License-Identifier: LGPL-2.1-or-later
"""riscv64: types of variables that only its kernels have, see :mod:`kvintro.source.variables`."""

from __future__ import annotations

from typing import Mapping, Sequence

#: Declared in ``arch/riscv/mm/init.c``.
TYPES: Mapping[str, Sequence[str]] = {
    "kernel_map": ("struct kernel_mapping",),
    "pgtable_l4_enabled": ("bool",),
    "pgtable_l5_enabled": ("bool",),
    "phys_ram_base": ("phys_addr_t",),
    "satp_mode": ("u64",),
    "vmemmap_start_pfn": ("unsigned long",),
}
