# SPDX-License-Identifier: LGPL-2.1-or-later
"""Stacks from which the kernel returns to 16-bit stacks without leaking the upper half of %esp."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvintro.arch.x86_64 import ESPFIX_BASE, P4D_SHIFT
from kvintro.model import Absent, AddressRange, Located
from kvintro.regions import Region, fixed_place

if TYPE_CHECKING:
    from kvintro.kernel import Kernel


class Espfix(Region):
    """``ESPFIX_BASE_ADDR``, one entry of a P4D; arch/x86/kernel/espfix_64.c."""

    key = "espfix"
    row = 10
    name = "%esp fixup stacks"
    macro = "ESPFIX_BASE_ADDR"

    def locate(self, kernel: Kernel) -> Located:
        if not kernel.has_symbol("init_espfix_ap"):
            return Absent("CONFIG_X86_ESPFIX64 is off")
        found = AddressRange(ESPFIX_BASE, ESPFIX_BASE + (1 << P4D_SHIFT) - 1)
        walk = kernel.walk(found.start)
        # The P4D's entry is all or nothing: init_espfix_bsp fills it, and is not called with FRED.
        if walk.state == "unmapped" and walk.steps[-1].level >= 4:
            return Absent("the kernel did not set it up (with FRED it needs none)")
        return fixed_place(found, "each page again every 64 KB")


REGION = Espfix()
