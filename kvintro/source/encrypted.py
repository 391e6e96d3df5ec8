# SPDX-License-Identifier: LGPL-2.1-or-later
"""Detects memory that its host cannot read: that of guests with AMD SEV or Intel TDX.

The host sees what the processor wrote to the memory chips. Each block is encrypted with its address, so each
page has all byte values. A good part of plain memory is zeros, text and code. If the host may not even read
the encrypted memory (TDX, SEV-SNP with guest_memfd), private memory reads as zeros.
"""

from __future__ import annotations

from typing import Iterator, Optional

from kvintro.errors import NotInDump
from kvintro.source.physical import PAGE as _PAGE
from kvintro.source.physical import PhysicalMemory

_SAMPLE = 512  # pages, evenly spread
_FEWEST = 64
_VALUES = 250  # distinct byte values of a page; 4096 random bytes have all 256, text and code far fewer

REMEDY = "take the dump inside the guest (kdump); a guest's memory is plain there"


def why_unreadable(memory: PhysicalMemory) -> Optional[str]:
    """A message if memory seems to be encrypted; None if it does not."""
    random = zero = other = 0
    for page in _sample(memory):
        if page.count(0) == len(page):
            zero += 1
        elif len(set(page)) >= _VALUES:
            random += 1
        else:
            other += 1
    if random >= _FEWEST and random > 9 * other:
        return "its memory looks encrypted, as the host's view of a guest with SEV does"
    if zero >= _FEWEST and not random and not other:
        return (
            "all of its memory reads as zeros: the host cannot read the memory of a guest with TDX or "
            "SEV-SNP, and the memory of a guest that has not booted is empty"
        )
    return None


def _sample(memory: PhysicalMemory) -> Iterator[bytes]:
    total = sum(extent.size // _PAGE for extent in memory.extents)
    step = max(total // _SAMPLE, 1)
    skip = 0
    for extent in memory.extents:
        pages = extent.size // _PAGE
        for index in range(skip, pages, step):
            try:
                yield memory.read(extent.address + index * _PAGE, _PAGE)
            except NotInDump:
                continue
        skip = (skip - pages) % step
