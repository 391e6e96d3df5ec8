# SPDX-License-Identifier: LGPL-2.1-or-later
"""Virtually contiguous memory: vmalloc, vmap, ioremap, kernel stacks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvintro.model import AddressRange, Located, Placement
from kvintro.regions import Region

if TYPE_CHECKING:
    from kvintro.kernel import Kernel


class Vmalloc(Region):
    """``VMALLOC_START .. VMALLOC_END`` (inclusive), arch/x86/include/asm/pgtable_64_types.h."""

    key = "vmalloc"
    row = 6
    name = "vmalloc and ioremap"
    macro = "VMALLOC_START"

    def locate(self, kernel: Kernel) -> Located:
        base = kernel.first_fact(
            lambda: kernel.value("vmalloc_base"), lambda: kernel.number("NUMBER(VMALLOC_START)")
        )
        default = kernel.geometry.vmalloc_base
        note = ""
        size = kernel.geometry.vmalloc_size
        if kernel.source.symbols != "none" and kernel.has_symbol("kmsan_enabled"):
            size //= 4
            note = "KMSAN keeps metadata behind it"
        return Placement(
            AddressRange(base.value, base.value + size - 1),
            f"{base.provenance}, VMALLOC_SIZE_TB",
            default_start=default,
            slide=base.value - default,
            note=note,
        )


REGION = Vmalloc()
