# SPDX-License-Identifier: LGPL-2.1-or-later
"""Writes kdumps, compressed page by page, as makedumpfile's IMPLEMENTATION and diskdump_mod.h describe them.

All zero pages share the data of one descriptor, as in makedumpfile.
"""

from __future__ import annotations

import struct
import zlib
from importlib import import_module
from typing import Callable, NamedTuple

from kvintro.convert.target import Target
from kvintro.errors import NotWritten
from kvintro.queries.pages.frames import Frames

#: Compresses a page.
Pack = Callable[[bytes], bytes]

_SIGNATURE, _VERSION = b"KDUMP   ", 6
# struct disk_dump_header: signature, version, utsname, padding, tv_sec, tv_usec; status, block_size,
# sub_hdr_size, bitmap_blocks, max_mapnr, total_ram_blocks, device_blocks, written_blocks, current_cpu,
# nr_cpus.
_HEADER = struct.Struct("<8si390s6xQQIiiIIIIIIi")
# struct kdump_sub_header, see kvintro.source.kdump
_SUB_HEADER = struct.Struct("<QiiQQQQQQQQQQQ")
_DESCRIPTOR = struct.Struct("<qIIQ")
_UTSNAME = 390
_FLAGS = {"none": 0, "zlib": 0x1, "zstd": 0x20}
_LEVELS = {"zlib": 1, "zstd": 1}  # of compression: the fastest
_BITMAP_STEP = 1 << 20  # bytes
_FLUSH = 1 << 20


class Origin(NamedTuple):
    """Values in the headers about the kernel and the dump.

    :ivar utsname: six strings of 65 bytes.
    :ivar phys_base: value in VMCOREINFO; 0 if it has none.
    :ivar level: which pages were left out, as in makedumpfile's ``-d``.
    :ivar cpus: number of CPUs in the notes.
    """

    utsname: bytes
    phys_base: int
    level: int
    cpus: int


def packer(form: str) -> Pack:
    """Return a function that compresses a page.

    :param form: ``zstd``, ``zlib`` or ``none``.
    :raises NotWritten: the library for it is not installed.
    """
    if form == "none":
        return bytes
    if form == "zlib":
        return lambda page: zlib.compress(page, _LEVELS["zlib"])
    try:
        zstandard = import_module("zstandard")
    except ImportError:
        raise NotWritten(
            "no library for zstd is installed", "pip install 'kvintro[packed]', or choose --compress zlib"
        ) from None
    compress: Pack = zstandard.ZstdCompressor(level=_LEVELS["zstd"]).compress
    return compress


class KdumpWriter:
    """A kdump that is being written.

    :param frames: page frames to write, as far as they can be read.
    :param known: page frames that the machine has, left out or not.
    :param note: text of VMCOREINFO.
    :param notes: all notes; makedumpfile looks for VMCOREINFO among them.
    :param compress: ``zstd``, ``zlib`` or ``none``.
    :raises NotWritten: the library for it is not installed.
    """

    def __init__(
        self,
        target: Target,
        frames: Frames,
        known: Frames,
        page: int,
        note: bytes,
        notes: bytes,
        origin: Origin,
        compress: str,
    ) -> None:
        self._target = target
        self._known = known
        self._page = page
        self._note, self._notes, self._origin = note, notes, origin
        self._flag = _FLAGS[compress]
        self._pack = packer(compress)
        self._sub_blocks = -(-(_SUB_HEADER.size + len(notes)) // page)
        self._mapped = max(known.end, frames.end)
        # Each bitmap takes whole blocks.
        self._bitmap_size = -(-self._mapped // (8 * page)) * page
        self._bitmaps_at = (1 + self._sub_blocks) * page
        self._table_at = self._bitmaps_at + 2 * self._bitmap_size
        self._data_at = self._table_at + frames.count * _DESCRIPTOR.size
        self._table, self._data = bytearray(), bytearray()
        self._zero = bytes(page)
        self._zero_at = -1, 0, 0

    def add(self, frame: int, data: bytes) -> int:
        """Append page frames after earlier ones, and return the number of zero pages among them."""
        zeros = 0
        view = memoryview(data)
        for at in range(0, len(data), self._page):
            page = view[at : at + self._page].tobytes()
            if page == self._zero:
                zeros += 1
                if self._zero_at[0] < 0:
                    self._zero_at = self._packed(page)
                place = self._zero_at
            else:
                place = self._packed(page)
            self._table += _DESCRIPTOR.pack(*place, 0)
        self._flush(_FLUSH)
        return zeros

    def _packed(self, page: bytes) -> "tuple[int, int, int]":
        """Append a page's data and return its offset, size and flags."""
        packed, flag = self._pack(page), self._flag
        if len(packed) >= len(page):
            packed, flag = page, 0
        at = self._data_at + len(self._data)
        self._data += packed
        return at, len(packed), flag

    def _flush(self, least: int) -> None:
        if len(self._data) + len(self._table) < least:
            return
        self._target.write_at(self._table_at, self._table)
        self._target.write_at(self._data_at, self._data)
        self._table_at += len(self._table)
        self._data_at += len(self._data)
        self._table, self._data = bytearray(), bytearray()

    def finish(self, written: Frames, left_out: Frames) -> None:
        """Write the headers and the bitmaps.

        :param written: page frames that were read and written.
        :param left_out: other page frames of the machine.
        """
        self._flush(0)
        for start, frames in (
            (self._bitmaps_at, self._known),
            (self._bitmaps_at + self._bitmap_size, written),
        ):
            for at in frames.parts(8 * _BITMAP_STEP):
                size = min(_BITMAP_STEP, self._bitmap_size - at // 8)
                self._target.write_at(start + at // 8, frames.bits(at, 8 * size).tobytes())
        self._target.write_at(0, self._header())
        self._target.write_at(self._page, self._sub_header())
        self._target.end_at(self._data_at)

    def _header(self) -> bytes:
        return _HEADER.pack(
            _SIGNATURE,
            _VERSION,
            self._origin.utsname[:_UTSNAME],
            0,
            0,
            self._flag,
            self._page,
            self._sub_blocks,
            2 * self._bitmap_size // self._page,
            min(self._mapped, 0xFFFFFFFF),
            0,
            0,
            0,
            0,
            self._origin.cpus,
        )

    def _sub_header(self) -> bytes:
        notes_at = self._page + _SUB_HEADER.size
        header = _SUB_HEADER.pack(
            self._origin.phys_base & (1 << 64) - 1,
            self._origin.level,
            0,
            0,
            0,
            notes_at + self._notes.index(self._note),
            len(self._note),
            notes_at,
            len(self._notes),
            0,
            0,
            0,
            0,
            self._mapped,
        )
        return header + self._notes
