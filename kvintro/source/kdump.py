# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reads the headers of kdump files. libkdumpfile reads the pages.

makedumpfile's format, derived from diskdump, has a header block, a sub-header with the notes, two bitmaps of
page frames (those that exist, those that were dumped), a descriptor for each dumped page, and the data of the
pages (makedumpfile's IMPLEMENTATION and diskdump_mod.h). A flattened file is read in rearranged form
(:mod:`kvintro.source.flattened`).

libkdumpfile allocates as much as the headers say: the whole bitmap, all notes, 24 bytes for each run of
pages. So headers that claim more than the file has are refused here, before libkdumpfile reads them.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Iterator, NamedTuple, Optional, Sequence, Tuple

from kvintro.arch import architectures
from kvintro.arch.others import other_by_machine
from kvintro.errors import NotADump
from kvintro.source.content import Content
from kvintro.source.note import MAX_TEXT
from kvintro.source.physical import Held
from kvintro.text import size_text

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

SIGNATURES = (b"KDUMP   ", b"DISKDUMP")
#: Bytes of a block on most machines. A block has the size of a page of the dumped machine.
_BLOCK = 4096
_INCOMPLETE = 0x8  # DUMP_DH_COMPRESSED_INCOMPLETE, set by makedumpfile when the disk filled up
# struct disk_dump_header: signature, version, utsname (6 x 65), padding, timeval; then the fields of _HEADER.
_VERSION = 8
_MACHINE = 12 + 4 * 65
_STATUS = 424
_HEADER = "IiiII"  # status, block_size, sub_hdr_size, bitmap_blocks, max_mapnr
_HEADER_SIZE = struct.calcsize("<" + _HEADER)
# The header of a 32-bit machine, which libkdumpfile tries first, has block_size where ours has tv_usec.
_BLOCK_SIZE_32 = 416
# struct kdump_sub_header: phys_base, dump_level, split, start_pfn, end_pfn; offset and size of VMCOREINFO, of
# the notes, of eraseinfo; start_pfn, end_pfn and max_mapnr in 64 bits (version 6).
_SUB_HEADER = "QiiQQQQQQQQQQQ"
_SUB_HEADER_SIZE = struct.calcsize("<" + _SUB_HEADER)
_MAX_NOTES = 16 << 20
_MAX_LEVEL = 31
_BEYOND_FILES = 1 << 62  # an offset that no file system supports
_MAX_SUB_BLOCKS = 1 << 14  # notes, VMCOREINFO and eraseinfo
_FREE_BITMAPS = (
    128 << 20
)  # both bitmaps of a machine with 2 TB; larger ones must be in proportion to the size of the file
_BITMAP_TO_FILE = 8
_FREE_RUNS = 1 << 22
_RUN_TO_FILE = 1 << 10
_STEP = 1 << 20  # bytes of a bitmap, or descriptors, to process at once
_DESCRIPTOR_SIZE = 24  # struct page_desc: offset, size, flags, page_flags
_LAST_DESCRIPTORS = 1 << 16
_FEW_PAGES = 1 << 17
_LEAST_PAGE = 1 << 10  # least average size of a page with its descriptor, if the page is not all zeros


class Layout(NamedTuple):
    """The layout of a kdump file.

    :ivar exist: offset of the bitmap of existing page frames.
    :ivar dumped: offset of the bitmap of dumped page frames.
    :ivar bitmap_size: bytes of each bitmap.
    :ivar table: offset of the descriptors.
    """

    exist: int
    dumped: int
    bitmap_size: int
    table: int


class Kdump(NamedTuple):
    """Properties of a kdump file.

    :ivar complete: whether the file has all the pages that it should have.
    :ivar left_out: bytes of pages that exist but were not dumped; None if unknown.
    :ivar memory: bytes of the pages that were dumped; None if unknown.
    :ivar part: the page frames in this file, end exclusive, if the dump is split into several files
        (``makedumpfile --split``); otherwise None.
    :ivar frames: number of page frames of the machine, including holes.
    :ivar machine: the kernel's name for its architecture; empty if the file does not say.
    :ivar layout: None if the file ends within its headers.
    :ivar page: bytes of a page of the machine, and of a block of the file.
    :ivar level: which pages were left out, as in makedumpfile's ``-d``; None if the file does not say.
    :ivar interrupted: whether makedumpfile says that it could not write all of it.
    :ivar order: byte order of the headers, as a character for :mod:`struct`.
    """

    complete: bool
    left_out: Optional[int] = None
    memory: Optional[int] = None
    part: Optional[Tuple[int, int]] = None
    frames: int = 0
    machine: str = ""
    layout: Optional[Layout] = None
    page: int = _BLOCK
    level: Optional[int] = None
    interrupted: bool = False
    order: str = "<"


def examine_kdump(content: Content) -> Kdump:
    """Read the headers.

    :raises NotADump: they are invalid, or claim more than the file can have.
    """
    head = content.at(0, _BLOCK)
    if len(head) < _STATUS + _HEADER_SIZE:
        return Kdump(False)
    machine = _machine(head)
    page_sizes, orders = _possible(machine)
    if not orders:
        return Kdump(False, machine=machine)
    order = _order(head)
    status, page, sub_blocks, bitmap_blocks, frames = struct.unpack_from(order + _HEADER, head, _STATUS)
    sane = page in page_sizes and order in orders and 0 <= sub_blocks <= _MAX_SUB_BLOCKS
    if not sane or _looks_32_bit(head):
        raise NotADump("invalid kdump header", "copy or take the dump again")
    (version,) = struct.unpack_from(order + "i", head, _VERSION)
    data = content.at(page, _SUB_HEADER_SIZE) if version > 0 else b""
    sub = struct.unpack(order + _SUB_HEADER, data) if len(data) == _SUB_HEADER_SIZE else None
    part, frames = _sub_header(sub, page, version, frames) if sub is not None else (None, frames)
    level = _level(sub)
    interrupted = bool(status & _INCOMPLETE)
    layout = _layout(content, page, sub_blocks, bitmap_blocks, frames)
    if not content.has_all(layout.dumped, 1):
        return Kdump(
            False,
            part=part,
            frames=frames,
            machine=machine,
            page=page,
            level=level,
            interrupted=interrupted,
            order=order,
        )
    existing = _count(content, layout.exist, layout.bitmap_size, part)
    dumped = _count(content, layout.dumped, layout.bitmap_size, part)
    if dumped.runs > _FREE_RUNS + content.real // _RUN_TO_FILE:
        raise NotADump("its page bitmap has too many gaps", "copy or take the dump again")
    there = content.has_all(layout.exist, layout.table - layout.exist)
    complete = not interrupted and there and _is_whole(content, layout.table, dumped.bits, order)
    left_out = max(0, existing.bits - dumped.bits) * page if there else None
    memory = dumped.bits * page if there else None
    return Kdump(complete, left_out, memory, part, frames, machine, layout, page, level, interrupted, order)


def _machine(head: bytes) -> str:
    return head[_MACHINE : _MACHINE + 65].split(b"\0")[0].decode("ascii", "replace")


def _possible(machine: str) -> Tuple[Sequence[int], Sequence[str]]:
    """The possible page sizes and byte orders of a machine; empty if kvintro does not know the machine."""
    for arch in architectures():
        if machine in (arch.machine, arch.qemu_machine):
            return arch.page_sizes, "<"
    other = other_by_machine(machine)
    if other is None:
        return (), ()
    order = other.orders.get(machine)
    return other.page_sizes, tuple(other.orders.values()) if order is None else order


def _order(head: bytes) -> str:
    """The byte order of the headers: the one in which the size of a block is that of a page."""
    sizes = {order: struct.unpack_from(order + _HEADER, head, _STATUS)[1] for order in "<>"}
    return ">" if sizes[">"] in _BLOCK_SIZES and sizes["<"] not in _BLOCK_SIZES else "<"


def _looks_32_bit(head: bytes) -> bool:
    data = head[_BLOCK_SIZE_32 : _BLOCK_SIZE_32 + 4]
    return any(int.from_bytes(data, order) in _BLOCK_SIZES for order in ("little", "big"))


_BLOCK_SIZES = tuple(1 << shift for shift in range(12, 17))


def _sub_header(
    sub: Tuple[int, ...], page: int, version: int, frames: int
) -> Tuple[Optional[Tuple[int, int]], int]:
    """The page frames of a part of a split dump, and the number that the machine has."""
    _, _, split, first, behind, info_at, info, notes_at, notes, _, erased, first64, behind64, frames64 = sub
    sizes = (info if version >= 3 else 0, notes if version >= 4 else 0, erased if version >= 4 else 0)
    if max(sizes) > _MAX_NOTES:
        raise NotADump(
            f"its headers say that the notes have {size_text(max(sizes))}", "copy or take the dump again"
        )
    # libkdumpfile tries to read there, and crashed on an offset of 2^64 - 2^32.
    if any(size and not page <= at < _BEYOND_FILES for at, size in zip((info_at, notes_at), sizes)):
        raise NotADump("its headers have an invalid offset for the notes", "copy or take the dump again")
    if version >= 6:
        first, behind, frames = first64 or first, behind64 or behind, frames64
    return (first, behind) if split else None, frames


def _level(sub: Optional[Tuple[int, ...]]) -> Optional[int]:
    """The level that the sub-header records; None if it is none of makedumpfile's."""
    return sub[1] if sub is not None and 0 <= sub[1] <= _MAX_LEVEL else None


def _layout(content: Content, page: int, sub_blocks: int, bitmap_blocks: int, frames: int) -> Layout:
    size = bitmap_blocks * page
    if size > _FREE_BITMAPS and size > content.real // _BITMAP_TO_FILE:
        raise NotADump(
            f"its header says that the page bitmaps have {size_text(size)}, which is too much for what the "
            f"file has ({size_text(content.real)})",
            "copy or take the dump again",
        )
    start = (1 + sub_blocks) * page
    if frames > 8 * size:
        raise NotADump("its page bitmap is too small for its page frames", "copy or take the dump again")
    # If nothing was excluded, one bitmap is enough. libkdumpfile detects that in the same way.
    half = size // 2 if frames <= 4 * size else 0
    return Layout(start, start + half, size - half, start + size)


def vmcoreinfo_of(content: Content) -> Optional[bytes]:
    """The text of VMCOREINFO that the sub-header points to; None if there is none, or it is too long."""
    at, size = _place(content, 3, 5)
    text = content.at(at, size) if 0 < size <= MAX_TEXT else b""
    return text or None


def notes_of(content: Content) -> bytes:
    """The notes that the sub-header points to; empty if there are none."""
    at, size = _place(content, 4, 7)
    return content.at(at, size) if 0 < size <= _MAX_NOTES else b""


def eraseinfo_of(content: Content) -> bytes:
    """What makedumpfile overwrote (``--config``, ``--eppic``), as text; empty if nothing.

    :return: at most the first 64 KB.
    """
    at, size = _place(content, 5, 9)
    return content.at(at, min(size, MAX_TEXT)) if 0 < size <= _MAX_NOTES else b""


def _place(content: Content, since: int, field: int) -> Tuple[int, int]:
    """An offset and a size in the sub-header; the size is 0 if there is none.

    :param since: the version of the format that introduced them.
    :param field: the number of the offset among the fields.
    """
    head = content.at(0, _BLOCK).ljust(_BLOCK, b"\0")
    order = _order(head)
    (version,) = struct.unpack_from(order + "i", head, _VERSION)
    block = struct.unpack_from(order + _HEADER, head, _STATUS)[1]
    data = content.at(block, _SUB_HEADER_SIZE)
    if version < since or len(data) < _SUB_HEADER_SIZE:
        return 0, 0
    at, size = struct.unpack(order + _SUB_HEADER, data)[field : field + 2]
    return at, size


# Bitmaps


class _Count(NamedTuple):
    bits: int
    runs: int  # of consecutive set bits


def bitmap(
    content: Content, start: int, size: int, part: Optional[Tuple[int, int]] = None
) -> Iterator[Tuple[int, NDArray[numpy.uint8]]]:
    """The bytes of a bitmap in pieces, each with the number of its first byte; omits pieces of zeros.

    :param part: page frames (first, end exclusive); bits of others are cleared.
    """
    import numpy

    first, behind = part if part is not None else (0, 8 * size)
    for low, high in content.stretches(start + first // 8, start + min(size, (behind + 7) // 8)):
        for at in range(low, high, _STEP):
            data = content.at(at, min(_STEP, high - at))
            number = at - start
            if data.count(0) == len(data):
                continue
            found = numpy.frombuffer(data, numpy.uint8)
            if number <= first // 8 < number + len(found) or number <= behind // 8 < number + len(found):
                found = found.copy()
                if number <= first // 8:
                    found[first // 8 - number] &= 0xFF << first % 8 & 0xFF
                if number <= behind // 8 < number + len(found):
                    found[behind // 8 - number] &= (1 << behind % 8) - 1
            yield number, found


def bits_of_bytes() -> NDArray[numpy.uint8]:
    """The number of set bits in each byte value."""
    import numpy

    found: NDArray[numpy.uint8] = numpy.unpackbits(numpy.arange(256, dtype=numpy.uint8)[:, None], axis=1).sum(
        axis=1, dtype=numpy.uint8
    )
    return found


def _count(content: Content, start: int, size: int, part: Optional[Tuple[int, int]]) -> _Count:
    bits_of = bits_of_bytes()
    bits = runs = 0
    behind, last = -1, 0
    for number, found in bitmap(content, start, size, part):
        # A run begins with a set bit after a clear one, which may be bit 7 of the preceding byte.
        before = found.copy()
        before[1:] = found[:-1]
        before[0] = last if number == behind else 0
        bits += int(bits_of[found].sum(dtype="int64"))
        runs += int(bits_of[found & ~(found << 1 | before >> 7)].sum(dtype="int64"))
        behind, last = number + len(found), int(found[-1])
    return _Count(bits, runs)


def has_frame(content: Content, kdump: Kdump, frame: int) -> Optional[bool]:
    """Whether the machine has a page frame; None if the file does not say."""
    if kdump.layout is None:
        return None
    if frame >= kdump.frames:
        return False
    byte = content.at(kdump.layout.exist + frame // 8, 1) if frame // 8 < kdump.layout.bitmap_size else b""
    return bool(byte[0] >> frame % 8 & 1) if byte else None


def held(content: Content, kdump: Kdump) -> Iterator[Held]:
    """The memory that the bitmaps list as existing and as dumped."""
    import numpy

    if kdump.layout is None:
        return
    for start, there in ((kdump.layout.exist, False), (kdump.layout.dumped, True)):
        for number, piece in bitmap(content, start, kdump.layout.bitmap_size, kdump.part):
            frames = numpy.flatnonzero(numpy.unpackbits(piece, bitorder="little")) + 8 * number
            for first, end in _runs(frames, kdump.page):
                yield Held(first, end, there)


# Descriptors


def descriptors(
    content: Content, table: int, first: int, count: int, order: str = "<"
) -> NDArray[numpy.void]:
    """Some page descriptors; fewer than ``count`` if the file ends before them."""
    import numpy

    fields = (("offset", "i8"), ("size", "u4"), ("flags", "u4"), ("page_flags", "u8"))
    kind = numpy.dtype([(name, order + kind) for name, kind in fields])
    data = content.at(table + first * _DESCRIPTOR_SIZE, min(count, _STEP) * _DESCRIPTOR_SIZE)
    return numpy.frombuffer(data[: len(data) // _DESCRIPTOR_SIZE * _DESCRIPTOR_SIZE], kind)


def lost(content: Content, table: int, found: NDArray[numpy.void]) -> NDArray[numpy.int64]:
    """Indices of the descriptors whose data is empty or not completely in the file."""
    import numpy

    sizes = found["size"].astype(numpy.int64)
    there = content.has(found["offset"], sizes) & (found["offset"] >= table) & (sizes > 0)
    return numpy.flatnonzero(~there)


def _is_whole(content: Content, table: int, count: int, order: str) -> bool:
    """Whether the data of the last descriptors is within the file.

    One descriptor is not enough, as all pages of zeros share their data at the beginning.
    """
    looked_at = min(count, _LAST_DESCRIPTORS)
    found = descriptors(content, table, count - looked_at, looked_at, order)
    return len(found) == looked_at and not len(lost(content, table, found))


# Searching the pages


def worth_a_look(content: Content, kdump: Kdump) -> Iterator[Tuple[int, int]]:
    """Physical addresses (start, end exclusive) of pages that have data of their own, in ascending order.

    Pages with the same content, such as pages of zeros, may share their data. So a few bytes can represent
    all of memory, and searching every page could take forever. The number of pages here is bounded by the
    size of the file.
    """
    import numpy

    if kdump.layout is None:
        return
    first, left, data_left = 0, _FEW_PAGES + content.real // _LEAST_PAGE, content.real
    for number, piece in bitmap(content, kdump.layout.dumped, kdump.layout.bitmap_size, kdump.part):
        frames = numpy.flatnonzero(numpy.unpackbits(piece, bitorder="little")) + 8 * number
        for at in range(0, len(frames), _STEP):
            found = descriptors(content, kdump.layout.table, first + at, len(frames) - at, kdump.order)
            own = numpy.sort(numpy.unique(found["offset"], return_index=True)[1])
            own = own[
                : int(numpy.searchsorted(numpy.cumsum(found["size"][own], dtype="int64"), data_left, "right"))
            ]
            own = own[:left]
            left -= len(own)
            data_left -= int(found["size"][own].sum(dtype="int64"))
            yield from _runs(frames[at : at + _STEP][own], kdump.page)
            if not len(found) or left <= 0 or data_left <= 0:
                return
        first += len(frames)


def _runs(frames: NDArray[numpy.int64], page: int) -> Iterator[Tuple[int, int]]:
    """Page frames as ranges of physical addresses."""
    import numpy

    if not len(frames):
        return
    apart = frames[1:] != frames[:-1] + 1
    starts, ends = frames[numpy.r_[True, apart]], frames[numpy.r_[apart, True]]
    for start, end in zip(starts.tolist(), ends.tolist()):
        yield start * page, (end + 1) * page
