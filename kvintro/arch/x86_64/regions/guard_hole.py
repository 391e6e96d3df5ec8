# SPDX-License-Identifier: LGPL-2.1-or-later
"""The first sixteen entries of the kernel half's root, which are reserved for a hypervisor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Sequence

from kvintro.arch.x86_64.facts import x86_form
from kvintro.model import Located, Root
from kvintro.regions import Region, fixed_place

if TYPE_CHECKING:
    from kvintro.kernels import Kernel


class GuardHole(Region):
    """``GUARD_HOLE_BASE_ADDR .. GUARD_HOLE_END_ADDR``; Xen maps itself here for PV guests."""

    key = "guard_hole"
    row = 3
    name = "guard hole, left to hypervisors"
    kind = "hole"
    macro = "GUARD_HOLE_BASE_ADDR"
    fixed = True

    def locate(self, kernel: Kernel) -> Located:
        return fixed_place(x86_form(kernel).guard_hole)

    def roots(self, kernel: Kernel) -> Sequence[Root]:
        # In a PV guest, this range belongs to Xen, not to the kernel (the kernel's ptdump skips it too).
        return ()


REGION = GuardHole()
