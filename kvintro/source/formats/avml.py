# SPDX-License-Identifier: LGPL-2.1-or-later
"""AVML's compressed format (avml/src/image.rs): blocks of at most 16 MB of memory.

Each block has LiME's header with the magic ``AVML`` and version 2, then a stream in snappy's framing format,
then the length of that stream in 8 bytes. Blocks of zeros are omitted.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import OrderedDict
from importlib import import_module
from typing import Callable, Iterator, List, Tuple

from kvintro.errors import NotADump, SourceError
from kvintro.source.content import Content
from kvintro.source.dump import Format, begins, most_parts
from kvintro.source.formats.lime import FEW_RANGES, HEADER, LEAST_RANGE, in_order, range_header
from kvintro.source.formats.memory import MemoryDump
from kvintro.source.physical import Extent, PhysicalMemory

MAGIC = b"AVML"
# 64 KB of zeros take 3 KB of a stream. AVML writes no padding and no other skippable chunks.
_LEAST_CHUNK = 512
_FEW_CHUNKS = 1 << 16
_COMPRESSED, _UNCOMPRESSED, _FIRST_SKIPPABLE = 0x00, 0x01, 0x80
_MAX_CHUNK = 1 << 16  # of snappy's framing format, once uncompressed
_CACHED_CHUNKS = 512
_NO_SNAPPY = "pip install 'kvintro[avml]', or unpack it with avml-convert"


class AvmlDump(MemoryDump):
    """A file in AVML's compressed format."""

    packed = True

    def __init__(self, content: Content, path: str) -> None:
        super().__init__(content, path, "AVML", [AvmlFile(content, path)])


class AvmlFile(PhysicalMemory):
    """AVML's compressed format: an index of the snappy chunks, which are unpacked on demand.

    :raises NotADump: its headers are invalid.
    :raises SourceError: there is no library for snappy.
    """

    def __init__(self, content: Content, path: str) -> None:
        self._unpack = _snappy()
        self._content = content
        self._skipped = 0
        self._chunks = array("Q")  # address of each chunk
        self._places = array("Q")  # offset of its data in the file; bit 63 is set if it is compressed
        self._sizes = array("I")  # size of its data in the file
        self._cache: OrderedDict[int, bytes] = OrderedDict()
        extents: List[Extent] = []
        at = 0
        complete = True
        while at < content.size:
            if len(extents) >= most_parts(content, FEW_RANGES, LEAST_RANGE):
                raise NotADump(f"{path} has too many blocks", "take the dump again")
            first, length = range_header(content, at, path, MAGIC, 2)
            whole, found, at = self._index(first, length, at + HEADER.size, path)
            complete &= whole
            extents.append(Extent(first, found, at))
            if not whole:
                break
        super().__init__(in_order(extents, path), complete=complete)
        order = sorted(range(len(self._chunks)), key=self._chunks.__getitem__)
        if order != list(range(len(order))):
            self._chunks, self._places, self._sizes = (
                array(column.typecode, (column[i] for i in order))
                for column in (self._chunks, self._places, self._sizes)
            )

    def _index(self, first: int, length: int, at: int, path: str) -> Tuple[bool, int, int]:
        """Add a block's chunks to the index.

        :return: whether the block is complete, bytes of memory that it has, offset of the next one.
        """
        start, size = at, self._content.size
        most = most_parts(self._content, _FEW_CHUNKS, _LEAST_CHUNK)
        found = 0
        while found < length:
            if len(self._chunks) + self._skipped > most:
                raise NotADump(f"{path} has more chunks than its size allows", "take the dump again")
            head = self._content.at(at, 18)
            if len(head) < 4:
                return False, found, size
            kind, stored = head[0], int.from_bytes(head[1:4], "little")
            data_at, at = at + 4, at + 4 + stored
            if at > size:
                return False, found, size
            if kind >= _FIRST_SKIPPABLE:  # the stream's identifier, and padding
                self._skipped += 1
                continue
            # The data begins with a checksum. If compressed, its size follows as a varint.
            count = stored - 4 if kind == _UNCOMPRESSED else _varint(head[8:])
            if kind > _UNCOMPRESSED or not 0 < count <= _MAX_CHUNK or found + count > length or stored < 4:
                raise NotADump(f"{path}: invalid chunk at byte {data_at - 4}", "take the dump again")
            self._chunks.append(first + found)
            self._places.append(data_at + 4 | (kind == _COMPRESSED) << 63)
            self._sizes.append(stored - 4)
            found += count
        said = self._content.at(at, 8)
        if len(said) < 8:
            return False, found, size
        if int.from_bytes(said, "little") != at - start:
            raise NotADump(f"{path}: the block before byte {at} has a wrong length", "take the dump again")
        return True, found, at + 8

    def _chunk(self, index: int) -> bytes:
        data = self._cache.get(index)
        if data is not None:
            self._cache.move_to_end(index)
            return data
        place = self._places[index]
        data = self._content.at(place & ~(1 << 63), self._sizes[index])
        if place >> 63:
            try:
                data = self._unpack(data)
            except Exception:  # the library's own exceptions; a damaged chunk is missing
                data = b""
        self._cache[index] = data
        if len(self._cache) > _CACHED_CHUNKS:
            self._cache.popitem(last=False)
        return data

    def _read(self, extent: Extent, address: int, size: int) -> bytes:
        index = bisect_right(self._chunks, address) - 1
        at = address - self._chunks[index]
        return self._chunk(index)[at : at + size]

    def pieces(self) -> Iterator[Tuple[int, bytes]]:
        """As in the base class, chunk by chunk."""
        for index, address in enumerate(self._chunks):
            yield address, self._chunk(index)


def _varint(data: bytes) -> int:
    value = 0
    for shift, byte in enumerate(data[:5]):
        value |= (byte & 0x7F) << 7 * shift
        if not byte & 0x80:
            return value
    return -1


def _snappy() -> Callable[[bytes], bytes]:
    """A function that unpacks one block of snappy, from either of two libraries."""
    try:
        raw = import_module("cramjam").snappy.decompress_raw
        return lambda data: bytes(raw(data))
    except ImportError:
        pass
    try:
        unpack: Callable[[bytes], bytes] = import_module("snappy").uncompress
        return unpack
    except ImportError:
        raise SourceError(
            "this AVML file is compressed, and no snappy library is installed", _NO_SNAPPY
        ) from None


FORMAT = Format("an AVML dump", begins(MAGIC), form="avml", read=AvmlDump)
