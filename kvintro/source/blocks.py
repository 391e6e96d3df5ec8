# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reads packed files in place, if they consist of blocks that can be unpacked separately.

These are zstd's seekable format (contrib/seekable_format/zstd_seekable_compression_format.md), bgzip's format
(SAM/BAM specification, 4.1), and lz4's frames with independent blocks, if they record the size of the
content. Only the size makes sure that all blocks but the last are full (lz4_Frame_format.md).
"""

from __future__ import annotations

import struct
import zlib
from array import array
from bisect import bisect_right
from collections import OrderedDict
from importlib import import_module
from typing import TYPE_CHECKING, Callable, Iterator, List, Optional, Tuple

from kvintro.source.content import MOST, Content
from kvintro.source.dump import most_parts

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

#: Unpacks a block to at most N bytes; may raise any exception.
Decode = Callable[[bytes, int], bytes]

_MOST_CACHED = 64 << 20
_LARGEST = 32 << 20
_REAL_TO_PACKED = 16
_FEW, _LEAST = 1 << 16, 256


class Blocks(Content):
    """The content of a packed file, unpacked on demand.

    :param sizes: unpacked size of each block.
    :param places: offset of each block in the packed file, and the end of the last one.
    """

    def __init__(self, content: Content, sizes: array[int], places: array[int], decode: Decode) -> None:
        self._content = content
        self._places = places
        self._decode = decode
        self._starts = array("Q", [0])
        for size in sizes:
            self._starts.append(self._starts[-1] + size)
        self.size = self._starts[-1]
        self.real = min(self.size, _REAL_TO_PACKED * content.real)
        self._cached = max(2, _MOST_CACHED // max(max(sizes, default=1), 1))
        self._cache: OrderedDict[int, bytes] = OrderedDict()

    def _block(self, index: int) -> bytes:
        data = self._cache.get(index)
        if data is not None:
            self._cache.move_to_end(index)
            return data
        first, behind = self._places[index], self._places[index + 1]
        size = self._starts[index + 1] - self._starts[index]
        try:
            data = self._decode(self._content.at(first, behind - first), size)
        except Exception:  # each library has its own exceptions
            data = b""
        if len(data) != size:
            data = b""  # damaged, so missing
        self._cache[index] = data
        if len(self._cache) > self._cached:
            self._cache.popitem(last=False)
        return data

    def at(self, offset: int, size: int) -> bytes:
        found: List[bytes] = []
        end = min(offset + min(size, MOST), self.size)
        while 0 <= offset < end:
            index = bisect_right(self._starts, offset) - 1
            within = offset - self._starts[index]
            data = self._block(index)[within : within + end - offset]
            if not data:
                break
            found.append(data)
            offset += len(data)
        return found[0] if len(found) == 1 else b"".join(found)

    def stretches(self, start: int, end: int) -> Iterator[Tuple[int, int]]:
        if start < min(end, self.size):
            yield start, min(end, self.size)

    def has(self, offsets: NDArray[numpy.int64], sizes: NDArray[numpy.int64]) -> NDArray[numpy.bool_]:
        found: NDArray[numpy.bool_] = (offsets >= 0) & (offsets <= self.size - sizes)
        return found

    def has_all(self, offset: int, size: int) -> bool:
        return 0 <= offset <= self.size - size


def in_blocks(content: Content, form: str) -> Optional[Blocks]:
    """A packed file as blocks; None if it has to be unpacked as a whole."""
    ways = {"gzip": _bgzip, "zstd": _zstd, "lz4": _lz4}
    return ways[form](content) if form in ways else None


# bgzip

_GZIP_HEADER = struct.Struct("<4sIBBH")  # mark and flags, time, two bytes, bytes of extra fields
_EXTRA = b"\x1f\x8b\x08\x04"
_BGZIP = b"BC\2\0"


def _bgzip(content: Content) -> Optional[Blocks]:
    sizes, places = array("Q"), array("Q", [0])
    at = 0
    while at < content.size:
        head = content.at(at, 18)
        if len(head) < 18 or head[:4] != _EXTRA or head[10:16] != b"\6\0" + _BGZIP:
            return None
        at += int.from_bytes(head[16:18], "little") + 1
        size = int.from_bytes(content.at(at - 4, 4), "little")
        if at > content.size or size > 1 << 16 or len(places) > most_parts(content, _FEW, _LEAST):
            return None
        sizes.append(size)
        places.append(at)
    return Blocks(content, sizes, places, lambda data, size: zlib.decompress(data, zlib.MAX_WBITS | 16, size))


# zstd

_FOOTER = struct.Struct("<IBI")  # number of frames, flags, mark
_SEEKABLE = 0x8F92EAB1
_SKIPPABLE = 0x184D2A5E
_CHECKSUMS, _RESERVED = 0x80, 0x7C


def _zstd(content: Content) -> Optional[Blocks]:
    footer = content.at(content.size - _FOOTER.size, _FOOTER.size)
    if len(footer) < _FOOTER.size:
        return None
    count, flags, mark = _FOOTER.unpack(footer)
    entry = 12 if flags & _CHECKSUMS else 8
    start = content.size - _FOOTER.size - count * entry
    if mark != _SEEKABLE or flags & _RESERVED or start < 8 or count * entry > MOST:
        return None
    if struct.unpack("<II", content.at(start - 8, 8)) != (_SKIPPABLE, count * entry + _FOOTER.size):
        return None
    decode = _zstd_decoder()
    if decode is None:
        return None
    sizes, places = array("Q"), array("Q", [0])
    table = content.at(start, count * entry)
    for stored, size in (struct.unpack_from("<II", table, at) for at in range(0, count * entry, entry)):
        if size > _LARGEST:
            return None
        sizes.append(size)
        places.append(places[-1] + stored)
    return Blocks(content, sizes, places, decode) if places[-1] == start - 8 else None


def _zstd_decoder() -> Optional[Decode]:
    try:
        library = import_module("zstandard")
    except ImportError:
        return None

    def decode(data: bytes, size: int) -> bytes:
        with library.ZstdDecompressor().stream_reader(data) as reader:
            found: bytes = reader.read(size)
            return found

    return decode


# lz4

_LZ4 = b"\x04\x22\x4d\x18"
_INDEPENDENT, _BLOCK_SUMS, _SAYS_SIZE, _DICTIONARY = 1 << 5, 1 << 4, 1 << 3, 1
_AS_IT_IS = 1 << 31
_BLOCK_SIZES = {4: 1 << 16, 5: 1 << 18, 6: 1 << 20, 7: 4 << 20}


def _lz4(content: Content) -> Optional[Blocks]:
    head = content.at(0, 15)
    if len(head) < 15 or not head.startswith(_LZ4):
        return None
    flags, most = head[4], _BLOCK_SIZES.get(head[5] >> 4 & 7)
    if (
        flags >> 6 != 1
        or not flags & _INDEPENDENT
        or not flags & _SAYS_SIZE
        or flags & _DICTIONARY
        or not most
    ):
        return None
    left = total = int.from_bytes(head[6:14], "little")
    decode = _lz4_decoder()
    if decode is None:
        return None
    sizes, places = array("Q"), array("Q", [15])
    at = 15
    while left > 0:
        stored = int.from_bytes(content.at(at, 4), "little")
        length = stored & ~_AS_IT_IS
        if not 0 < length <= most or len(sizes) > most_parts(content, _FEW, _LEAST):
            return None
        at += 4 + length + (4 if flags & _BLOCK_SUMS else 0)
        if at > content.size or (stored & _AS_IT_IS and length != min(most, left)):
            return None
        sizes.append(min(most, left))
        places.append(at)
        left -= sizes[-1]
    # If the end of the frame is where it should be, the blocks were full.
    whole = sum(sizes) == total and content.at(at, 4) == bytes(4)
    return Blocks(content, sizes, places, decode) if whole else None


def _lz4_decoder() -> Optional[Decode]:
    try:
        unpack = import_module("lz4.block").decompress
    except ImportError:
        return None

    def decode(data: bytes, size: int) -> bytes:
        stored = int.from_bytes(data[:4], "little")
        body = data[4 : 4 + (stored & ~_AS_IT_IS)]
        return body if stored & _AS_IT_IS else bytes(unpack(body, uncompressed_size=size))

    return decode
