# SPDX-License-Identifier: LGPL-2.1-or-later
"""The first sixteen entries of the kernel half's root: left to a hypervisor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Sequence

from kvintro.model import Located
from kvintro.regions import Region, Root, fixed_place

if TYPE_CHECKING:
    from kvintro.kernel import Kernel


class GuardHole(Region):
    """``GUARD_HOLE_BASE_ADDR .. GUARD_HOLE_END_ADDR``; Xen maps itself here for PV guests."""

    key = "guard_hole"
    row = 3
    name = "guard hole, left to hypervisors"
    kind = "hole"
    macro = "GUARD_HOLE_BASE_ADDR"
    fixed = True

    def locate(self, kernel: Kernel) -> Located:
        return fixed_place(kernel.geometry.guard_hole)

    def roots(self, kernel: Kernel) -> Sequence[Root]:
        # A PV guest's view of Xen's tables is not the kernel's to report (the kernel's ptdump skips it too).
        return ()


REGION = GuardHole()
