# SPDX-License-Identifier: LGPL-2.1-or-later
"""The window for modules without KASLR, on kernels whose modules are elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvintro.kernels import Trait
from kvintro.model import Located
from kvintro.regions import Region
from kvintro.regions.explained import Explanation

if TYPE_CHECKING:
    from kvintro.kernels import Kernel

EXPLAIN = Explanation(
    purpose="""
    Modules would be here without KASLR. With KASLR they are in a random window around the image, within the
    vmalloc area, and nothing is mapped here.
    """,
)


class ModulesWithoutKaslr(Region):
    """MODULES_VADDR to MODULES_END - 1."""

    key = "modules_without_kaslr"
    row = 6
    name = "modules' window without KASLR"
    macro = "MODULES_VADDR"
    traits = Trait.UNUSED

    def locate(self, kernel: Kernel) -> Located:
        return kernel.facts.place(self.key)


REGION = ModulesWithoutKaslr()
