# SPDX-License-Identifier: LGPL-2.1-or-later
"""LiME: ranges of memory, each after a header of 32 bytes (LiME's doc/README.md).

The header has the magic ``EMiL`` as read from the file, version 1, first and last address, and 8 reserved
bytes. AVML writes the same format unless it compresses.
"""

from __future__ import annotations

import struct
from typing import List, Tuple

from kvintro.errors import NotADump
from kvintro.source.content import Content
from kvintro.source.dump import Format, begins, most_parts
from kvintro.source.formats.memory import MemoryDump
from kvintro.source.physical import Extent, MemoryFile, PhysicalMemory

MAGIC = b"EMiL"
HEADER = struct.Struct("<4sIQQQ")  # magic, version, first address, last address, reserved
# Ranges of LiME are those of RAM in /proc/iomem, and AVML's blocks have 16 MB; there are few smaller ones.
FEW_RANGES = 1 << 14
LEAST_RANGE = 1 << 16
_MAX_ADDRESS = 1 << 52


def open_lime(content: Content, path: str) -> PhysicalMemory:
    """Read the headers of a LiME file.

    :raises NotADump: they are invalid.
    """
    extents: List[Extent] = []
    at, size = 0, content.size
    complete = True
    while at < size:
        if len(extents) >= most_parts(content, FEW_RANGES, LEAST_RANGE):
            raise NotADump(f"{path} has too many ranges", "take the dump again")
        first, length = range_header(content, at, path, MAGIC, 1)
        at += HEADER.size
        complete &= length > 0 and at + length <= size
        extents.append(Extent(first, min(length, size - at), at))
        at += length
    return MemoryFile(content, in_order(extents, path), complete=complete)


def range_header(content: Content, at: int, path: str, magic: bytes, version: int) -> Tuple[int, int]:
    """First address and size of a range; 0 and 0 if the file ends within its header."""
    data = content.at(at, HEADER.size)
    if len(data) < HEADER.size:
        return 0, 0
    found, number, first, last, _ = HEADER.unpack(data)
    if found != magic or number != version or not first <= last < _MAX_ADDRESS:
        raise NotADump(f"{path}: invalid header at byte {at}", "copy or take the dump again")
    return first, last - first + 1


def in_order(extents: List[Extent], path: str) -> List[Extent]:
    extents = sorted(extent for extent in extents if extent.size > 0)
    for one, other in zip(extents, extents[1:]):
        if one.address + one.size > other.address:
            raise NotADump(f"{path}: its ranges overlap at {other.address:016x}", "take the dump again")
    return extents


def _read(content: Content, path: str) -> MemoryDump:
    return MemoryDump(content, path, "LiME", [open_lime(content, path)])


FORMAT = Format("a LiME dump", begins(MAGIC), form="lime", read=_read)
