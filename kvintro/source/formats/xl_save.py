# SPDX-License-Identifier: LGPL-2.1-or-later
"""Guests that Xen saved (`xl save`).

Xen's docs/specs/libxl-migration-stream.pandoc and libxc-migration-stream.pandoc: xl's header and the guest's
configuration, then libxl's records, one of which is followed by libxc's stream of records with pages. If the
guest ran while it was saved, pages are repeated; the last copy counts.
"""

from __future__ import annotations

import struct
from typing import NamedTuple, Optional, Tuple

from kvintro.errors import NotADump
from kvintro.source.content import Content
from kvintro.source.dump import COPY_AGAIN, Format, begins
from kvintro.source.formats.memory import MemoryDump
from kvintro.source.formats.xen_core import PV_REMEDY
from kvintro.source.opened import Source
from kvintro.source.physical import PAGE
from kvintro.source.scattered import add_frames, scattered
from kvintro.source.stream import Index
from kvintro.source.vmcoreinfo import Chosen

MAGIC = b"Xen saved domain, xl format\n \0 \r"
_XL_HEADER = struct.Struct("<IIII")  # byte order, mandatory flags, optional flags, bytes that follow
_ORDER = 0x01020304
_STREAM_V2 = 1 << 1
_LIBXL = b"LibxlFmt"
_LIBXL_HEADER = 16
_RECORD = struct.Struct("<II")  # type, length; the body is padded to 8 bytes
_LIBXC_CONTEXT = 1
#: The mark, "XENF", the version, options (1: big-endian), and 6 reserved bytes; big-endian.
LIBXC = struct.Struct(">8s4sIH6x")
LIBXC_MARK = b"\xff" * 8
_LIBXC_ID = b"XENF"
_VERSIONS = (2, 3)
_DOMAIN = struct.Struct("<IHHII")  # type, page shift, reserved, Xen's version
_PV, _HVM = 1, 2
_END, _PAGE_DATA = 0, 1
_TYPE_SHIFT, _FRAME = 60, (1 << 52) - 1
_WITHOUT_DATA = (0xD, 0xE, 0xF)  # broken, allocated only, invalid
_MAX_RECORDS = 1000
_MOST_PAGES = 1 << 16  # of a record; Xen writes 1024
# Records of pages have at least one page of 4 KB, and there are only a few other records.
_FEW_RECORDS, _LEAST_RECORD = 1 << 16, 1 << 12
_RESTORE = "restore the guest (xl restore FILE), and dump it with xl dump-core"


class Found(NamedTuple):
    """Offset of libxc's stream, and Xen's version."""

    start: int
    xen: str


def _stream(content: Content, path: str) -> Found:
    """Find libxc's stream.

    :raises NotADump: there is none, or it is not supported.
    """
    at = 0
    if content.at(0, len(MAGIC)) == MAGIC:
        order, needed, _, more = _XL_HEADER.unpack(_exactly(content, len(MAGIC), _XL_HEADER.size, path))
        if order != _ORDER:
            raise NotADump(f"{path}: xl's header has another byte order", COPY_AGAIN)
        at = len(MAGIC) + _XL_HEADER.size + more
        if needed & _STREAM_V2:
            at = _libxc_in(content, at, path)
    mark, ident, version, options = LIBXC.unpack(_exactly(content, at, LIBXC.size, path))
    if mark != LIBXC_MARK or ident != _LIBXC_ID or version not in _VERSIONS or options & 1:
        raise NotADump(f"{path} was saved by Xen in a format that kvintro does not read", _RESTORE)
    domain = _exactly(content, at + LIBXC.size, _DOMAIN.size, path)
    kind, shift, _, major, minor = _DOMAIN.unpack(domain)
    if kind == _PV:
        raise NotADump(
            f"{path} is a paravirtualised guest of Xen (PV), whose page tables contain the "
            "machine's page frames",
            f"restore the guest (xl restore FILE), and dump it with xl dump-core; {PV_REMEDY}",
        )
    if kind != _HVM or 1 << shift != PAGE:
        raise NotADump(f"{path}: invalid header of the guest", COPY_AGAIN)
    return Found(at + LIBXC.size + _DOMAIN.size, f"Xen {major}.{minor}")


def _libxc_in(content: Content, at: int, path: str) -> int:
    """Offset of libxc's stream within libxl's."""
    if _exactly(content, at, _LIBXL_HEADER, path)[: len(_LIBXL)] != _LIBXL:
        raise NotADump(f"{path}: libxl's part is not where it should be", COPY_AGAIN)
    at += _LIBXL_HEADER
    for _ in range(_MAX_RECORDS):
        kind, length = _RECORD.unpack(_exactly(content, at, _RECORD.size, path))
        at += _RECORD.size + (length + 7 & ~7)
        if kind == _LIBXC_CONTEXT:
            return at
    raise NotADump(f"{path} has no memory", _RESTORE)


def _exactly(content: Content, at: int, size: int, path: str) -> bytes:
    data = content.at(at, size)
    if len(data) < size:
        raise NotADump(f"{path} is truncated before its first page", COPY_AGAIN)
    return data


class XlSaveDump(MemoryDump):
    """A saved guest with hardware virtualisation (HVM, PVH).

    :raises NotADump: it is another kind of guest, or has no memory.
    """

    def __init__(self, content: Content, path: str) -> None:
        found = _stream(content, path)
        index, stopped = _read(content, found.start)
        if not len(index.keys):
            raise NotADump(f"{path} is truncated before its first page", COPY_AGAIN)
        memory = scattered(content, index, complete=stopped is None)
        super().__init__(content, path, "Xen save file", [memory])
        self.complete = stopped is None
        self.left_out = 0 if self.complete else None
        self._writer, self._stopped = found.xen, stopped
        self._memory = index.pages * PAGE

    def opened(self, chosen: Chosen) -> Source:
        source = super().opened(chosen)
        source.writer, source.memory = self._writer, self._memory
        if self._stopped:
            source.warnings.append(f"the saved guest was read only in part: {self._stopped}")
        return source


def _read(content: Content, at: int) -> Tuple[Index, Optional[str]]:
    """An index of pages; and why reading stopped early: empty if the file ended, None if it did not stop."""
    index = Index()
    most = _FEW_RECORDS + content.real // _LEAST_RECORD
    for _ in range(most):
        head = content.at(at, _RECORD.size)
        if len(head) < _RECORD.size:
            break
        kind, length = _RECORD.unpack(head)
        at += _RECORD.size
        if kind == _END:
            index.settle()
            return index, None
        if kind == _PAGE_DATA and not _pages(content, at, length, index):
            index.settle()
            whole = at + length <= content.size
            return index, f"the record at byte {at - _RECORD.size} is invalid" if whole else ""
        at += length + 7 & ~7
    index.settle()
    return index, ""


def _pages(content: Content, at: int, length: int, index: Index) -> bool:
    """Add the pages of a record; False if they do not fill it, or some are missing."""
    import numpy

    head = content.at(at, 8)
    count = int.from_bytes(head[:4], "little")
    data = content.at(at + 8, 8 * count) if len(head) == 8 and count <= _MOST_PAGES else b""
    if not count or len(data) < 8 * count:
        return False
    words = numpy.frombuffer(data, "<u8").astype(numpy.uint64)
    with_data = ~numpy.isin(words >> numpy.uint64(_TYPE_SHIFT), numpy.array(_WITHOUT_DATA, numpy.uint64))
    frames = words[with_data] & numpy.uint64(_FRAME)
    first = at + 8 + 8 * count
    if first + len(frames) * PAGE != at + length:
        return False
    there = max(0, min(len(frames), (content.size - first) // PAGE))
    places = numpy.arange(there, dtype=numpy.uint64) * numpy.uint64(PAGE) + numpy.uint64(first)
    add_frames(index, frames[:there], places)
    return there == len(frames)


FORMAT = Format(
    "a guest saved by Xen (xl save)", begins(MAGIC, LIBXC_MARK + _LIBXC_ID), form="xl-save", read=XlSaveDump
)
