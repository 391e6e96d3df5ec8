# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whether a kernel was built with KASAN (generic, the only mode that x86-64 has)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvintro.source.variables import KASAN_FUNCTION

if TYPE_CHECKING:
    from kvintro.kernels import Kernel


def has_kasan(kernel: Kernel) -> bool:
    """Whether the kernel was built with KASAN.

    :raises Unavailable: the source has no symbols.
    """
    return kernel.has_symbol(KASAN_FUNCTION, code=True)
