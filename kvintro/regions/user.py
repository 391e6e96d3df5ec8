# SPDX-License-Identifier: LGPL-2.1-or-later
"""User space: the half of the address space that differs from process to process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Sequence

from kvintro.model import Located
from kvintro.regions import Region, Root, fixed_place

if TYPE_CHECKING:
    from kvintro.kernel import Kernel


class User(Region):
    """``0 .. TASK_SIZE_MAX``; the kernel keeps the last page empty."""

    key = "user"
    row = 1
    name = "user space, one per process"
    macro = "TASK_SIZE_MAX"
    fixed = True

    def locate(self, kernel: Kernel) -> Located:
        return fixed_place(kernel.geometry.user)

    def roots(self, kernel: Kernel) -> Sequence[Root]:
        # The kernel's own root maps nothing here, and every process something else.
        return ()


REGION = User()
