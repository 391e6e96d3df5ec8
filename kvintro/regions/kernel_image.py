# SPDX-License-Identifier: LGPL-2.1-or-later
"""The kernel's own text and data, and the window in which KASLR may put them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Optional

from kvintro.arch.x86_64 import ALL, DEFAULT_TEXT, PMD_SHIFT, START_KERNEL_MAP
from kvintro.errors import Unavailable
from kvintro.model import AddressRange, Fact, Located, NoRange, Placement
from kvintro.regions import Linear, Region

if TYPE_CHECKING:
    from kvintro.kernel import Kernel


class KernelImage(Region):
    """``__START_KERNEL_map`` for ``KERNEL_IMAGE_SIZE`` bytes; the image fills a small part of it.

    The rest of the window is unmapped at boot (arch/x86/mm/init_64.c:cleanup_highmap).
    """

    key = "kernel_image"
    row = 12
    name = "kernel image"
    macro = "__START_KERNEL_map"

    def locate(self, kernel: Kernel) -> Located:
        window = kernel.image_window
        found = AddressRange(START_KERNEL_MAP, START_KERNEL_MAP + window.value - 1)
        slide = kernel.image_slide
        used = None
        try:
            text, end = kernel.text, self._end(kernel)
            used = AddressRange(text.value, end.value)
            note = f"{text.provenance} to {end.provenance}"
        except (Unavailable, NoRange):
            note = ""
        return Placement(
            found,
            f"{window.provenance}, {slide.provenance.replace('VMCOREINFO ', '')}",
            default_start=DEFAULT_TEXT,
            slide=slide.value,
            used=used,
            used_note=note,
        )

    def linear(self, kernel: Kernel) -> Optional[Linear]:
        """``__pa()`` from __START_KERNEL_map up; modules lie above that too, and are not linear."""
        found = kernel.locate(self)
        if not isinstance(found, Placement):
            raise Unavailable(found.reason)
        return Linear(found.used or found.range, START_KERNEL_MAP - kernel.phys_base.value & ALL)

    def _end(self, kernel: Kernel) -> Fact[int]:
        """Last address of what cleanup_highmap leaves: up to the end of the brk area, on a 2M boundary."""
        brk = kernel.value("_brk_end")
        return Fact((brk.value + (1 << PMD_SHIFT) - 1 >> PMD_SHIFT << PMD_SHIFT) - 1, "_brk_end")


REGION = KernelImage()
