# SPDX-License-Identifier: LGPL-2.1-or-later
"""aarch64: types of variables that only its kernels have, see :mod:`kvintro.source.variables`.

They are declared in ``arch/arm64/mm/init.c``, ``mmu.c`` and ``kernel/module.c``, ``kaslr.c``.
"""

from __future__ import annotations

from typing import Mapping, Sequence

TYPES: Mapping[str, Sequence[str]] = {
    "arm64_use_ng_mappings": ("bool",),
    "kimage_vaddr": ("u64",),
    "kimage_voffset": ("u64",),
    "memstart_addr": ("s64",),
    "module_alloc_base": ("u64",),
    "module_direct_base": ("u64",),
    "module_plt_base": ("u64",),
    "vabits_actual": ("u64",),
}
