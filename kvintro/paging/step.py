# SPDX-License-Identifier: LGPL-2.1-or-later
"""One address, step by step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, List, Optional, Tuple

from kvintro.arch.x86_64 import PRESENT, X86Geometry
from kvintro.errors import NotInDump

TABLE_SIZE = 4096

#: Reads physical memory: (address, size in bytes) -> bytes; raises NotInDump.
ReadPhysical = Callable[[int, int], bytes]


@dataclass(frozen=True)
class Step:
    """One entry met on the way down.

    :ivar level: 1 for the table of 4K pages, ``levels`` for the root.
    :ivar entry_address: physical address of the entry.
    :ivar value: the entry, None if the table is not in the source.
    """

    level: int
    entry_address: int
    value: Optional[int]


@dataclass(frozen=True)
class Walk:
    """How one virtual address translates.

    :ivar state: ``mapped``, ``unmapped`` (an entry is not present, or has reserved bits set), ``not-in-dump``
        (a table on the way is missing from the source; the page itself may be) or ``non-canonical``.
    :ivar physical: physical address if mapped.
    :ivar page_size: bytes of the page that maps it, 0 if none does.
    """

    state: str
    steps: Tuple[Step, ...]
    physical: Optional[int] = None
    page_size: int = 0


def walk(read: ReadPhysical, geometry: X86Geometry, root: int, address: int) -> Walk:
    """Translate one virtual address as the hardware would.

    :param root: physical address of the root table.
    """
    if not geometry.is_canonical(address):
        return Walk("non-canonical", ())
    steps: List[Step] = []
    table = root
    for level in range(geometry.levels, 0, -1):
        entry_address = table + 8 * geometry.index(address, level)
        try:
            value = int.from_bytes(read(entry_address, 8), "little")
        except NotInDump:
            steps.append(Step(level, entry_address, None))
            return Walk("not-in-dump", tuple(steps))
        steps.append(Step(level, entry_address, value))
        if not value & PRESENT:
            break
        if level == 1 or (level in geometry.large_levels() and value & geometry.large_bit()):
            if level > 1 and value & geometry.reserved_bits(level):
                break
            size = 1 << geometry.shift(level)
            # Masking to the page's size also drops bit 12, which in a large page's entry is PAT.
            base = value & geometry.pfn_mask & ~(size - 1)
            return Walk("mapped", tuple(steps), base | address & (size - 1), size)
        if level > max(geometry.large_levels()) and value & geometry.reserved_bits(level):
            break
        table = value & geometry.pfn_mask
    return Walk("unmapped", tuple(steps))
