# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the headers of a kdump file say; the pages are libkdumpfile's.

makedumpfile's format, after diskdump: a header block, a sub-header with the notes, two bitmaps of page frames
(those that exist, those that were dumped), a descriptor for each dumped page, and their data. "Flattened" it
is cut into records, each with the place it belongs to, so that it can go through a pipe
(makedumpfile's diskdump_mod.h and makedumpfile.h).
"""

from __future__ import annotations

import re
import struct
from typing import BinaryIO, Iterator, NamedTuple, Optional, Tuple

from kvintro.source.elf import read_at

FLATTENED = b"makedumpfile\0\0\0\0"
SIGNATURES = (b"KDUMP   ", b"DISKDUMP")
_FLAT_HEADER_SIZE = 4096
_FLAT_RECORD = struct.Struct(">qq")  # offset and size
# Ends a flattened file: a record with both -1 (makedumpfile.h:END_FLAG_FLAT_HEADER).
_FLAT_END = b"\xff" * 16
_MAX_RECORDS = 1 << 20
_INCOMPLETE = 0x8  # DUMP_DH_COMPRESSED_INCOMPLETE, set by makedumpfile when the disk filled up
# struct disk_dump_header: signature, version, utsname (6 x 65), padding, timeval; then these.
_MACHINE = 12 + 4 * 65
_STATUS = 424
_HEADER = struct.Struct("<IiiII")  # status, block_size, sub_hdr_size, bitmap_blocks, max_mapnr
# struct kdump_sub_header: phys_base, dump_level, split, start_pfn, end_pfn.
_SUB_HEADER = struct.Struct("<QiiQQ")
_MAX_BITMAP = 64 << 20  # 2 TB of memory; beyond that counting would be felt
_DESCRIPTOR = struct.Struct("<qIIQ")  # struct page_desc: offset, size, flags, page_flags
_LAST_DESCRIPTORS = 1 << 16


class Kdump(NamedTuple):
    """What is known of a kdump file.

    :ivar complete: whether all pages are in the file that should be in it.
    :ivar left_out: bytes of pages that exist and were not dumped.
    :ivar part: of one of several files (``makedumpfile --split``) the page frames that it has, the last one
        exclusive; otherwise None.
    :ivar frames: how many page frames the machine has, holes included.
    :ivar block_size: bytes of a page.
    :ivar machine: what the kernel called its architecture, empty where that was not written.
    :ivar dumped: bitmap of the page frames that are in this file, empty where it cannot be read.
    """

    complete: bool
    left_out: int = 0
    part: Optional[Tuple[int, int]] = None
    frames: int = 0
    block_size: int = 4096
    machine: str = ""
    dumped: bytes = b""

    @property
    def memory(self) -> Optional[int]:
        """Bytes of memory that were dumped."""
        return _count_bits(self.dumped) * self.block_size if self.dumped else None

    def ranges(self) -> Iterator[Tuple[int, int]]:
        """Physical addresses (start, end exclusive) outside of which no page was dumped."""
        unit = 8 * self.block_size
        for match in re.finditer(rb"[^\0]+", self.dumped):
            yield match.start() * unit, match.end() * unit


def examine_kdump(file: BinaryIO, size: int) -> Kdump:
    """What the headers of a plain or a flattened file say."""
    flattened = read_at(file, 0, 16) == FLATTENED
    head = _unflattened(file, size) if flattened else read_at(file, 0, 4096)
    if len(head) < 4096:
        return Kdump(False)
    status, block_size, sub_blocks, bitmap_blocks, frames = _HEADER.unpack_from(head, _STATUS)
    machine = head[_MACHINE : _MACHINE + 65].split(b"\0")[0].decode("ascii", "replace")
    complete = not status & _INCOMPLETE
    if flattened:
        complete = complete and size > _FLAT_HEADER_SIZE and read_at(file, size - 16, 16) == _FLAT_END
    # Where it is not the layout we know, the reader will say.
    if not 4096 <= block_size <= 65536 or not 0 <= sub_blocks < 1 << 20:
        return Kdump(complete)
    if not flattened and sub_blocks:
        head = read_at(file, 0, block_size + _SUB_HEADER.size)
    part = None
    if sub_blocks and len(head) >= block_size + _SUB_HEADER.size:
        _, _, split, first, behind = _SUB_HEADER.unpack_from(head, block_size)
        part = (first, behind) if split else None
    bitmap = bitmap_blocks * block_size // 2
    if not 0 <= bitmap <= _MAX_BITMAP:
        return Kdump(complete, part=part, frames=frames, machine=machine)
    start = (1 + sub_blocks) * block_size
    if not flattened:
        head = read_at(file, 0, start + 2 * bitmap)
    exist, dumped = (within(head[at : at + bitmap], part) for at in (start, start + bitmap))
    count = _count_bits(dumped)
    if not flattened:
        table = start + 2 * bitmap
        complete = complete and size >= table and _is_whole(file, size, table, count)
    left_out = max(0, _count_bits(exist) - count) * block_size
    return Kdump(complete, left_out, part, frames, block_size, machine, dumped)


def within(bitmap: bytes, part: Optional[Tuple[int, int]]) -> bytes:
    """A bitmap without the bits of page frames that are not in a part of the dump."""
    if part is None:
        return bitmap
    first, behind = part
    found = bytearray(bitmap)
    found[: first // 8] = bytes(min(first // 8, len(found)))
    if first // 8 < len(found):
        found[first // 8] &= 0xFF << first % 8 & 0xFF
    if behind // 8 < len(found):
        found[behind // 8] &= (1 << behind % 8) - 1
        found[behind // 8 + 1 :] = bytes(len(found) - behind // 8 - 1)
    return bytes(found)


def _unflattened(file: BinaryIO, size: int) -> bytes:
    """The headers and bitmaps of a flattened file; what is not there stays zero, empty if nothing is."""
    at = _FLAT_HEADER_SIZE
    image = bytearray()
    missing = 4096
    for _ in range(_MAX_RECORDS):
        record = read_at(file, at, _FLAT_RECORD.size)
        if len(record) < _FLAT_RECORD.size:
            break
        offset, length = _FLAT_RECORD.unpack(record)
        if offset < 0 or length < 0 or (not image and (offset or length < _STATUS + _HEADER.size)):
            break
        if not image:
            first = read_at(file, at + _FLAT_RECORD.size, min(length, 4096))
            if len(first) < _STATUS + _HEADER.size:
                break
            _, block_size, sub_blocks, bitmap_blocks, _ = _HEADER.unpack_from(first, _STATUS)
            wanted = (1 + sub_blocks + bitmap_blocks) * block_size
            image = bytearray(max(4096, wanted) if 0 < wanted <= min(size, 3 * _MAX_BITMAP) else 4096)
            missing = len(image)
        if offset < len(image):
            data = read_at(file, at + _FLAT_RECORD.size, min(length, len(image) - offset))
            image[offset : offset + len(data)] = data
            missing -= len(data)
            if missing <= 0:
                break
        at += _FLAT_RECORD.size + length
    return bytes(image)


def _is_whole(file: BinaryIO, size: int, table: int, count: int) -> bool:
    """Whether the pages that the last descriptors name lie within the file.

    Some have to be looked at, as all pages of zeros are the same one at the data's beginning.
    """
    looked_at = min(count, _LAST_DESCRIPTORS)
    at = table + (count - looked_at) * _DESCRIPTOR.size
    data = read_at(file, at, looked_at * _DESCRIPTOR.size)
    if len(data) < looked_at * _DESCRIPTOR.size:
        return False
    return all(offset + length <= size for offset, length, _, _ in _DESCRIPTOR.iter_unpack(data))


def _count_bits(data: bytes) -> int:
    step = 1 << 16
    return sum(
        bin(int.from_bytes(data[at : at + step], "little")).count("1") for at in range(0, len(data), step)
    )
