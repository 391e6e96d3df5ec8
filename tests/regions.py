# SPDX-License-Identifier: LGPL-2.1-or-later
"""The rows of Documentation/arch/x86/x86_64/mm.rst by our keys. Guests also import this, without pytest."""

from __future__ import annotations

REGIONS = (
    "user",
    "non_canonical",
    "guard_hole",
    "ldt_remap",
    "direct_map",
    "vmalloc",
    "vmemmap",
    "kasan_shadow",
    "cpu_entry_area",
    "espfix",
    "efi",
    "kernel_image",
    "modules",
    "fixmap",
    "vsyscall",
)
