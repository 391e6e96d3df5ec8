# SPDX-License-Identifier: LGPL-2.1-or-later
"""Loadable modules, and other code made at run time (BPF, ftrace trampolines)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvintro.arch.x86_64 import MODULES_END, START_KERNEL_MAP
from kvintro.model import Absent, AddressRange, Located, Placement
from kvintro.regions import Region

if TYPE_CHECKING:
    from kvintro.kernel import Kernel


class Modules(Region):
    """``MODULES_VADDR .. MODULES_END``: what the image's window leaves below the fixmap."""

    key = "modules"
    row = 13
    name = "modules"
    macro = "MODULES_VADDR"

    def locate(self, kernel: Kernel) -> Located:
        if kernel.source.symbols != "none" and not kernel.has_symbol("mod_tree"):
            return Absent("CONFIG_MODULES is off")
        window = kernel.image_window
        start = START_KERNEL_MAP + window.value
        end, provenance = MODULES_END, "MODULES_END"
        try:
            # CONFIG_DEBUG_KMAP_LOCAL_FORCE_MAP gives fixmap another 16 MB.
            kernel.prog.constant("FIX_KMAP_BEGIN")
            end = MODULES_END - (16 << 20)
        except LookupError:
            pass
        return Placement(AddressRange(start, end - 1), f"{window.provenance}, {provenance}", start)


REGION = Modules()
