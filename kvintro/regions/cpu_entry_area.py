# SPDX-License-Identifier: LGPL-2.1-or-later
"""What each CPU needs to enter the kernel: the only kernel data that user mode's tables also map."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvintro.arch.x86_64 import CPU_ENTRY_AREA_BASE, P4D_SHIFT
from kvintro.model import AddressRange, Located
from kvintro.regions import Region, fixed_place

if TYPE_CHECKING:
    from kvintro.kernel import Kernel


class CpuEntryArea(Region):
    """``CPU_ENTRY_AREA_BASE``, one entry of a P4D; arch/x86/include/asm/cpu_entry_area.h."""

    key = "cpu_entry_area"
    row = 9
    name = "cpu_entry_area"
    macro = "CPU_ENTRY_AREA_BASE"
    fixed = True

    def locate(self, kernel: Kernel) -> Located:
        base = CPU_ENTRY_AREA_BASE
        note = ""
        if kernel.source.symbols != "none" and kernel.has_symbol("_cea_offset"):
            note = "each CPU's at a random place"
        return fixed_place(AddressRange(base, base + (1 << P4D_SHIFT) - 1), note)


REGION = CpuEntryArea()
