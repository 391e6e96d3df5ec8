# SPDX-License-Identifier: LGPL-2.1-or-later
"""The shadow in which the address sanitizer keeps a byte for every eight bytes of the kernel half."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvintro.model import Absent, Located
from kvintro.regions import Region, fixed_place

if TYPE_CHECKING:
    from kvintro.kernel import Kernel


class KasanShadow(Region):
    """``KASAN_SHADOW_START .. KASAN_SHADOW_END``, arch/x86/include/asm/kasan.h."""

    key = "kasan_shadow"
    row = 8
    name = "KASAN shadow"
    macro = "KASAN_SHADOW_START"

    def locate(self, kernel: Kernel) -> Located:
        if not kernel.has_symbol("kasan_early_shadow_page"):
            return Absent("CONFIG_KASAN is off")
        return fixed_place(kernel.geometry.kasan_shadow, "mostly one shared page of zeros")


REGION = KasanShadow()
