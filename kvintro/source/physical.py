# SPDX-License-Identifier: LGPL-2.1-or-later
"""Files of physical memory that say nothing of the kernel in it: raw, LiME, AVML.

raw
    Byte 0 of the file is byte 0 of memory, as QEMU's pmemsave and LiME's "padded" write it. QEMU's own memory
    file (memory-backend-file) has no gap where the machine has one below 4 GB; see :func:`raw_layouts`.
LiME
    Ranges, each behind a header of 32 bytes (LiME's doc/README.md): magic ``EMiL`` as read from the file,
    version 1, first and last address, 8 bytes reserved. AVML writes the same unless it compresses.
AVML
    Its compressed form (avml/src/image.rs): blocks of at most 16 MB, each with LiME's header but magic
    ``AVML`` and version 2, then a stream in snappy's framing format, then the length of that stream in 8
    bytes. Blocks that are all zeros are left out.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_right
from collections import OrderedDict
from importlib import import_module
from typing import Callable, Iterator, List, NamedTuple, Optional, Tuple, Union

import drgn

from kvintro.errors import NotADump, NotInDump, SourceError
from kvintro.source.content import Content

LIME_MAGIC = b"EMiL"
AVML_MAGIC = b"AVML"
_HEADER = struct.Struct("<4sIQQQ")  # magic, version, first address, last address, reserved
# Ranges of LiME are what /proc/iomem calls RAM, and AVML's blocks have 16 MB; smaller ones are few.
_FEW_RANGES = 1 << 14
_LEAST_RANGE = 1 << 16
# 64 KB of zeros take 3 KB of a stream. AVML writes neither padding nor other chunks that are to be skipped.
_LEAST_CHUNK = 512
_FEW_CHUNKS = 1 << 16
_MAX_ADDRESS = 1 << 52
_PAGE = 4096
_PIECE = 4 << 20
_FOUR_GB = 1 << 32
# Where RAM ends below 4 GB on machines that have more: QEMU's q35 (2 GB; 2.75 GB before it aligned to
# gigabytes), pc, Cloud Hypervisor and Firecracker (3 GB), pc before 1.7 (3.5 GB), Xen (3.75 GB).
_LOW_ENDS = tuple(int(gigabytes * (1 << 30)) for gigabytes in (3, 2, 3.5, 2.75, 3.75))

_STREAM_HEADER = b"\xff\x06\0\0sNaPpY"
_COMPRESSED, _UNCOMPRESSED, _FIRST_SKIPPABLE = 0x00, 0x01, 0x80
_MAX_CHUNK = 1 << 16  # of snappy's framing format, once uncompressed
_CACHED_CHUNKS = 512
_NO_SNAPPY = "pip install 'kvintro[avml]', or unpack it with avml-convert"


class Extent(NamedTuple):
    """``size`` bytes of physical memory from ``address`` on."""

    address: int
    size: int
    offset: int
    """Where they are in the file."""


class PhysicalMemory:
    """Some of a machine's physical memory.

    :ivar extents: which, in ascending order and without overlap.
    :ivar complete: whether the file has all that it should have.
    """

    def __init__(self, extents: List[Extent], *, complete: bool = True) -> None:
        self.extents = extents
        self.complete = complete
        self._starts = [extent.address for extent in extents]

    @property
    def end(self) -> int:
        """Address behind the last byte."""
        return max((extent.address + extent.size for extent in self.extents), default=0)

    def extent_of(self, address: int) -> Optional[Extent]:
        """The extent that an address lies in."""
        index = bisect_right(self._starts, address) - 1
        if index < 0 or address >= self.extents[index].address + self.extents[index].size:
            return None
        return self.extents[index]

    def moved(self, other: PhysicalMemory, address: int) -> int:
        """What an address by another layout of the same file is by this one."""
        if other is self:
            return address
        extent = other.extent_of(address)
        offset = address if extent is None else extent.offset + address - extent.address
        mine = (e for e in self.extents if e.offset <= offset < e.offset + e.size)
        return next((e.address + offset - e.offset for e in mine), address)

    def read(self, address: int, size: int) -> bytes:
        """Physical memory.

        :raises NotInDump: any byte of it is not in the file.
        """
        found: List[bytes] = []
        at = address
        while at < address + size:
            extent = self.extent_of(at)
            if extent is None:
                raise NotInDump(address, size, physical=True)
            data = self._read(extent, at, min(address + size, extent.address + extent.size) - at)
            if not data:
                raise NotInDump(address, size, physical=True)
            found.append(data)
            at += len(data)
        return found[0] if len(found) == 1 else b"".join(found)

    def _read(self, extent: Extent, address: int, size: int) -> bytes:
        """At least one byte of so many that lie in an extent; none if the file has lost them."""
        raise NotImplementedError

    def pieces(self) -> Iterator[Tuple[int, Union[bytes, bytearray, memoryview]]]:
        """All of it, in big pieces with their addresses; each is good until the next is asked for."""
        raise NotImplementedError


class MemoryFile(PhysicalMemory):
    """Memory that lies in a file as it is."""

    def __init__(self, content: Content, extents: List[Extent], *, complete: bool = True) -> None:
        super().__init__(extents, complete=complete)
        self._content = content

    def _read(self, extent: Extent, address: int, size: int) -> bytes:
        return self._content.at(extent.offset + address - extent.address, size)

    def pieces(self) -> Iterator[Tuple[int, memoryview]]:
        """As promised, without the file's holes."""
        buffer = memoryview(bytearray(_PIECE))
        for extent in self.extents:
            at, behind = extent.offset, extent.offset + extent.size
            for start, last in self._content.stretches(at, behind):
                # Pages of memory are looked at whole, wherever in the file they begin.
                at = max(at, start - (start - extent.offset) % _PAGE)
                end = min(behind, last + (extent.offset - last) % _PAGE)
                while at < end:
                    count = self._content.read_into(buffer[: min(_PIECE, end - at)], at)
                    if count:
                        yield extent.address + at - extent.offset, buffer[:count]
                    # What cannot be read, a bad sector, is found missing when it is needed.
                    at += count or _PIECE


def segment(memory: PhysicalMemory) -> Callable[[int, int, int, bool], bytes]:
    """What :meth:`drgn.Program.add_memory_segment` wants for it."""

    def read(address: int, count: int, offset: int, physical: bool) -> bytes:
        try:
            return memory.read(address, count)
        except NotInDump as error:
            raise drgn.FaultError(error.what, address) from None

    return read


# Raw


def raw_layouts(content: Content) -> List[PhysicalMemory]:
    """What a file without any header can mean, the likeliest first.

    PCs have no RAM in the last gigabyte or two below 4 GB, and what does not fit below lies above. A file
    that is the machine's RAM (QEMU's memory-backend-file, Cloud Hypervisor's, Firecracker's) has no gap.
    """
    size = content.size
    layouts: List[PhysicalMemory] = [MemoryFile(content, [Extent(0, size, 0)])]
    for low in _LOW_ENDS:
        if low < size:
            layouts.append(MemoryFile(content, [Extent(0, low, 0), Extent(_FOUR_GB, size - low, low)]))
    return layouts


# LiME


def open_lime(content: Content, path: str) -> PhysicalMemory:
    """A LiME file.

    :raises NotADump: its headers make no sense.
    """
    extents: List[Extent] = []
    at, size = 0, content.size
    complete = True
    while at < size:
        if len(extents) >= _most(content, _FEW_RANGES, _LEAST_RANGE):
            raise NotADump(f"{path} has more ranges than any machine has memory", "take the dump again")
        first, length = _range_header(content, at, path, LIME_MAGIC, 1)
        at += _HEADER.size
        complete &= length > 0 and at + length <= size
        extents.append(Extent(first, min(length, size - at), at))
        at += length
    return MemoryFile(content, _in_order(extents, path), complete=complete)


def _most(content: Content, few: int, least: int) -> int:
    """How many parts a file can have: ``few`` small ones, and others of at least so many bytes."""
    return few + content.real // least


def _range_header(content: Content, at: int, path: str, magic: bytes, version: int) -> Tuple[int, int]:
    """First address and size of a range; 0 and 0 where the file ends within its header."""
    data = content.at(at, _HEADER.size)
    if len(data) < _HEADER.size:
        return 0, 0
    found, number, first, last, _ = _HEADER.unpack(data)
    if found != magic or number != version or not first <= last < _MAX_ADDRESS:
        raise NotADump(f"{path}: the header at byte {at} makes no sense", "copy or take the dump again")
    return first, last - first + 1


def _in_order(extents: List[Extent], path: str) -> List[Extent]:
    extents = sorted(extent for extent in extents if extent.size > 0)
    for one, other in zip(extents, extents[1:]):
        if one.address + one.size > other.address:
            raise NotADump(f"{path}: its ranges overlap at {other.address:016x}", "take the dump again")
    return extents


# AVML


class AvmlFile(PhysicalMemory):
    """AVML's compressed form: an index of the snappy chunks, which are unpacked as they are needed.

    :raises NotADump: its headers make no sense.
    :raises SourceError: nothing here unpacks snappy.
    """

    def __init__(self, content: Content, path: str) -> None:
        self._unpack = _snappy()
        self._content = content
        self._skipped = 0
        self._chunks = array("Q")  # address of each
        self._places = array("Q")  # where in the file its data begins, and whether it is compressed (bit 63)
        self._sizes = array("I")  # of its data in the file
        self._cache: OrderedDict[int, bytes] = OrderedDict()
        extents: List[Extent] = []
        at = 0
        complete = True
        while at < content.size:
            if len(extents) >= _most(content, _FEW_RANGES, _LEAST_RANGE):
                raise NotADump(f"{path} has more blocks than any machine has memory", "take the dump again")
            first, length = _range_header(content, at, path, AVML_MAGIC, 2)
            whole, found, at = self._index(first, length, at + _HEADER.size, path)
            complete &= whole
            extents.append(Extent(first, found, at))
            if not whole:
                break
        super().__init__(_in_order(extents, path), complete=complete)
        order = sorted(range(len(self._chunks)), key=self._chunks.__getitem__)
        if order != list(range(len(order))):
            self._chunks, self._places, self._sizes = (
                array(column.typecode, (column[i] for i in order))
                for column in (self._chunks, self._places, self._sizes)
            )

    def _index(self, first: int, length: int, at: int, path: str) -> Tuple[bool, int, int]:
        """Note a block's chunks.

        :return: whether it is there to its end, how many bytes of memory it has, where the next one begins.
        """
        start, size = at, self._content.size
        most = _most(self._content, _FEW_CHUNKS, _LEAST_CHUNK)
        found = 0
        while found < length:
            if len(self._chunks) + self._skipped > most:
                raise NotADump(f"{path} has more chunks than fit into it", "take the dump again")
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
            # The data begins with a checksum; compressed, then with its size as a varint.
            count = stored - 4 if kind == _UNCOMPRESSED else _varint(head[8:])
            if kind > _UNCOMPRESSED or not 0 < count <= _MAX_CHUNK or found + count > length or stored < 4:
                raise NotADump(
                    f"{path}: the chunk at byte {data_at - 4} makes no sense", "take the dump again"
                )
            self._chunks.append(first + found)
            self._places.append(data_at + 4 | (kind == _COMPRESSED) << 63)
            self._sizes.append(stored - 4)
            found += count
        said = self._content.at(at, 8)
        if len(said) < 8:
            return False, found, size
        if int.from_bytes(said, "little") != at - start:
            raise NotADump(f"{path}: the block before byte {at} has another length", "take the dump again")
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
            except Exception:  # the library's own; a damaged chunk is missing
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
        """As promised, chunk by chunk."""
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
    """What unpacks one block of snappy; two libraries do."""
    try:
        raw = import_module("cramjam").snappy.decompress_raw
        return lambda data: bytes(raw(data))
    except ImportError:
        pass
    try:
        unpack: Callable[[bytes], bytes] = import_module("snappy").uncompress
        return unpack
    except ImportError:
        raise SourceError("this AVML file is compressed, and no snappy library is here", _NO_SNAPPY) from None
