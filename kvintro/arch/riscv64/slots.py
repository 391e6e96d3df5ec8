# SPDX-License-Identifier: LGPL-2.1-or-later
"""riscv64: the number of places that KASLR chooses from (arch/riscv/mm/init.c:setup_vm). Pure arithmetic."""

from __future__ import annotations

#: PMD_SIZE: the image moves in steps of this.
IMAGE_ALIGN = 2 << 20
#: PUD_SIZE: what the page table of early boot maps.
IMAGE_WINDOW = 1 << 30


def image_slots(size: int) -> int:
    """Number of places of an image.

    :param size: bytes from _start to _end.
    """
    return max((IMAGE_WINDOW - size) // IMAGE_ALIGN, 0)
