# SPDX-License-Identifier: LGPL-2.1-or-later
"""The addresses that the processor refuses because their upper bits do not repeat the highest one in use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Sequence

from kvintro.model import Located, Root
from kvintro.regions import Region, fixed_place

if TYPE_CHECKING:
    from kvintro.kernels import Kernel


class NonCanonical(Region):
    """Between the user half and the kernel half."""

    key = "non_canonical"
    row = 2
    name = "non-canonical hole"
    kind = "hole"
    macro = "__VIRTUAL_MASK_SHIFT"
    fixed = True

    def locate(self, kernel: Kernel) -> Located:
        return fixed_place(kernel.form.non_canonical)

    def roots(self, kernel: Kernel) -> Sequence[Root]:
        return ()


REGION = NonCanonical()
