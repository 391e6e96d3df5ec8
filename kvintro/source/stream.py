# SPDX-License-Identifier: LGPL-2.1-or-later
"""Finds the pages of a guest's RAM in QEMU's migration stream.

The stream is big-endian and has no lengths (QEMU's docs/devel/migration and savevm.c, ram.c, xbzrle.c in
migration/). It has a header, then sections. The section ``ram`` lists the blocks of RAM by name and size, and
has their pages in any order. If the guest changes a page meanwhile, the page is repeated; the last copy
counts. The state of devices follows. Reading ends at an unknown section.

The index takes 12 bytes per page, in arrays. Its size depends on the pages in the stream, not on the size of
RAM that the stream claims.
"""

from __future__ import annotations

import re
import struct
import zlib
from array import array
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Dict, Iterator, List, NamedTuple, Optional, Tuple

from kvintro.errors import NotADump
from kvintro.source.content import Content
from kvintro.source.note import NAME, NAME_AT
from kvintro.source.physical import PAGE, Extent, PhysicalMemory

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

MAGIC = b"QEVM"
_VERSION = 3
# Types of sections (migration/qemu-file-types.h).
_EOF, _START, _PART, _END, _FULL, _SUBSECTION, _CONFIGURATION, _FOOTER = 0, 1, 2, 3, 4, 5, 7, 0x7E
# Since version 10, QEMU writes the command "switchover start" before the last part of RAM.
_COMMAND, _PACKAGED = 8, 7
_RAM = "ram"
_RAM_VERSION = 4
# Flags in the low bits of the words of the section ram (migration/ram.c).
_ZERO, _MEM_SIZE, _PAGE, _EOS, _CONTINUE, _XBZRLE = 0x02, 0x04, 0x08, 0x10, 0x20, 0x40
_HOOK, _COMPRESSED, _MULTIFD_FLUSH = 0x80, 0x100, 0x200
_FLAGS = PAGE - 1
_SHIFT = 12
_WORD = struct.Struct(">Q")
_KINDS = (_PAGE, _ZERO, _XBZRLE, _COMPRESSED)
_CONTINUED = frozenset(kind | _CONTINUE for kind in _KINDS)
_XBZRLE_ENCODING = 1
_MAX_PACKED = PAGE + 64  # zlib's compressBound() of a page, and more
_RECORD = 4 + _MAX_PACKED + 8  # a page, with its size, and the next word
_RUN = 64  # number of pages of one kind after which many are read at a time
_MAX_BLOCKS = 4096
_MAX_RAM = 1 << 44  # bytes; page numbers have 32 bits
_MAX_KEY = (1 << 32) - 1
_MAX_SUBSECTIONS = 64
_MAX_TEXT = 1 << 16
_CHUNK = 1 << 22
_COMPACT = 1 << 23  # number of new entries after which replaced ones are removed
_CACHED = 512
_SEVERAL = 4  # number of pages from which on reading them together is faster than one by one
_SORTED_OUT = 1 << 16  # number of entries of the index that are examined at a time
# struct MappedRamHeader: version, page size, bitmap's offset, pages' offset; packed.
_MAPPED = struct.Struct(">IQQQ")
# Kinds of entries of the index, in the bits above the offset.
_PLAIN, _FILL, _ZLIB, _DELTA = 0, 1, 2, 3
_NOTED = 4  # plain, and begins with a VMCOREINFO note
_KIND = 60
_OFFSET = (1 << _KIND) - 1
# Blocks that are not RAM of the machine, or whose address is not in the stream.
_NOT_RAM = re.compile(r"\.rom$|\.fw$|^pc\.bios$|^/rom@|vram|flash|(^|/)(mem)?dimm\d|(^|/)virtiomem")


class Mapped(NamedTuple):
    """File offsets of a block whose pages have fixed places (mapped-ram)."""

    bitmap: int
    pages: int


@dataclass
class Block:
    """A block of the guest's RAM.

    :ivar size: bytes.
    :ivar first: number of its first page, counted over all blocks.
    """

    name: str
    size: int
    mapped: Optional[Mapped] = None
    first: int = 0


@dataclass
class Stream:
    """Properties of a stream.

    :ivar start: offset of the stream in the content.
    :ivar machine: QEMU's name of the machine type; empty if unknown.
    :ivar end: offset where reading ended: after the section ``ram``, if the stream is complete.
    :ivar stopped: why reading ended earlier; empty if it did not.
    :ivar multifd: whether the pages were sent over other connections.
    """

    start: int
    machine: str = ""
    capabilities: Tuple[str, ...] = ()
    blocks: List[Block] = field(default_factory=list)
    end: int = 0
    stopped: str = ""
    multifd: bool = False

    @property
    def complete(self) -> bool:
        """Whether all pages were read."""
        return not self.stopped


class _Ended(Exception):
    """The stream cannot be read further; the text says why."""


CUT = "the file ends"


class _Cursor:
    """Reads content from an offset on, into one buffer.

    A new buffer for each part would cost as much as reading: the system clears its memory.

    :ivar data: bytes of the content; valid until the next part is read.
    :ivar i: index of the next byte in ``data``.
    """

    def __init__(self, content: Content, at: int) -> None:
        self._content = content
        self._buffer = memoryview(bytearray(_CHUNK))
        self.go(at)

    @property
    def at(self) -> int:
        """The offset of the next byte."""
        return self._base + self.i

    def go(self, at: int) -> None:
        """Continue at an offset."""
        self._base, self.data, self.i = at, self._buffer[:0], 0

    def skip(self, count: int) -> None:
        """Skip ``count`` bytes.

        :raises _Ended: the content ends before.
        """
        self.i += count
        if self.at > self._content.size:
            raise _Ended(CUT)

    def need(self, count: int) -> None:
        """Make sure that ``data`` has ``count`` bytes at ``i``; no more than :data:`_CHUNK`.

        :raises _Ended: the content ends before.
        """
        self.fill(count)
        if self.i + count > len(self.data):
            raise _Ended(CUT)

    def fill(self, count: int) -> None:
        """Make sure that ``data`` has ``count`` bytes at ``i``, or as many as the content has there."""
        if self.i + count > len(self.data):
            self.go(self.at)
            self.data = self._buffer[: self._content.read_into(self._buffer, self._base)]

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes."""
        self.need(count)
        self.i += count
        return bytes(self.data[self.i - count : self.i])

    def number(self, size: int) -> int:
        """The next number, of ``size`` bytes."""
        return int.from_bytes(self.take(size), "big")

    def name(self) -> str:
        """The next name, preceded by its length."""
        return self.take(self.number(1)).decode("ascii", "replace")


class Index:
    """An index of pages: their numbers in ascending order, each with a kind and a place.

    A page whose last copy is a delta has several entries: the page, then its deltas in order.

    :ivar marked: whether plain pages that begin with a VMCOREINFO note have a kind of their own.
    :ivar new_keys: pages to add: their numbers.
    :ivar new_places: kinds and places of the same pages.
    """

    def __init__(self, *, marked: bool = False) -> None:
        import numpy

        self._numpy = numpy
        self.marked = marked
        self.new_keys, self.new_places = array("I"), array("Q")
        self._parts: List[Tuple[NDArray[numpy.uint32], NDArray[numpy.uint64]]] = []
        self._waiting = 0
        self.keys: NDArray[numpy.uint32] = numpy.zeros(0, numpy.uint32)
        self.places: NDArray[numpy.uint64] = numpy.zeros(0, numpy.uint64)

    def bound(self) -> None:
        """Settle if there are many added pages."""
        if self._waiting + len(self.new_keys) >= _COMPACT:
            self.settle()

    def add_run(self, keys: NDArray[numpy.uint32], places: NDArray[numpy.uint64]) -> None:
        """Add several pages."""
        self._flush()
        self._parts.append((keys, places))
        self._waiting += len(keys)
        self.bound()

    def _flush(self) -> None:
        if self.new_keys:
            keys = self._numpy.array(self.new_keys, self._numpy.uint32)
            self._parts.append((keys, self._numpy.array(self.new_places, self._numpy.uint64)))
            self._waiting += len(keys)
            self.new_keys, self.new_places = array("I"), array("Q")

    def settle(self) -> None:
        """Sort the added entries, and drop those superseded by a later copy."""
        numpy = self._numpy
        self._flush()
        keys = numpy.concatenate([self.keys, *(keys for keys, _ in self._parts)])
        places = numpy.concatenate([self.places, *(places for _, places in self._parts)])
        self._parts, self._waiting = [], 0
        if not (keys[1:] > keys[:-1]).all():
            order = numpy.argsort(keys, kind="stable")
            keys, places = keys[order], places[order]
            del order
            starts = numpy.flatnonzero(numpy.r_[True, keys[1:] != keys[:-1]])
            whole = (places >> numpy.uint64(_KIND)) != _DELTA
            last = numpy.maximum.reduceat(numpy.where(whole, numpy.arange(len(keys)), -1), starts)
            counts = numpy.diff(numpy.r_[starts, len(keys)])
            kept = numpy.arange(len(keys)) >= numpy.repeat(last, counts)
            keys, places = keys[kept], places[kept]
        self.keys, self.places = keys, places

    @property
    def pages(self) -> int:
        """Number of pages."""
        if not len(self.keys):
            return 0
        return int(1 + self._numpy.count_nonzero(self.keys[1:] != self.keys[:-1]))

    def first_from(self, key: int) -> int:
        """Number of entries of the pages before this one."""
        if key > _MAX_KEY:
            return len(self.keys)
        # With a number of another type, numpy would convert all keys first.
        return int(self._numpy.searchsorted(self.keys, self._numpy.uint32(key)))

    def entries(self, key: int) -> List[Tuple[int, int]]:
        """(kind, place) of a page and its deltas."""
        first, behind = self.first_from(key), self.first_from(key + 1)
        return [(place >> _KIND, place & _OFFSET) for place in self.places[first:behind].tolist()]


def read_stream(content: Content, start: int) -> Tuple[Stream, Index]:
    """Read a stream up to the end of its RAM.

    :param start: its offset. Places of mapped pages are relative to the beginning of the content.
    :raises NotADump: it is not a readable stream.
    """
    return _Reader(content, start).read()


class _Reader:
    def __init__(self, content: Content, start: int) -> None:
        self._cursor = _Cursor(content, start)
        self._content = content
        self.stream = Stream(start)
        self.index = Index(marked=True)
        self._blocks: Dict[str, Block] = {}
        self._block: Optional[Block] = None

    def read(self) -> Tuple[Stream, Index]:
        """Read all of it."""
        cursor, stream = self._cursor, self.stream
        try:
            if cursor.take(4) != MAGIC:
                raise NotADump(
                    "there is no migration stream of QEMU where it should be", "copy it again whole"
                )
            version = cursor.number(4)
            if version != _VERSION:
                raise NotADump(
                    f"its migration stream has version {version}, which QEMU wrote before 2009", _AS_ELF
                )
            self._sections()
        except _Ended as why:
            stream.stopped = str(why)
        stream.end = cursor.at
        self.index.settle()
        return stream, self.index

    def _sections(self) -> None:
        """Read sections up to the end of ``ram``.

        :raises _Ended: the end of ``ram`` is not reached.
        """
        cursor = self._cursor
        ram: Optional[int] = None
        while True:
            kind = cursor.number(1)
            if kind == _CONFIGURATION:
                self._configuration()
                continue
            if kind == _FOOTER:
                cursor.skip(4)
                continue
            if kind == _COMMAND:
                self._command()
                continue
            if kind not in (_START, _PART, _END, _FULL):
                raise _Ended(f"there is a section of the unknown type {kind} before the end of RAM")
            number = cursor.number(4)
            if kind in (_START, _FULL):
                name, _, version = cursor.name(), cursor.number(4), cursor.number(4)
                if name != _RAM or kind == _FULL:
                    raise _Ended(f"there is an unknown section {name!r} before the end of RAM")
                if version != _RAM_VERSION:
                    raise _Ended(f"its section of RAM has version {version}, not {_RAM_VERSION}")
                ram = number
            elif number != ram:
                raise _Ended("there is an unknown section before the end of RAM")
            self._records()
            if kind == _END:
                return

    def _command(self) -> None:
        """Skip a command to the other side."""
        command, size = self._cursor.number(2), self._cursor.number(2)
        if command == _PACKAGED:
            raise _Ended("it contains a packet of other sections, as in migrations by postcopy")
        self._cursor.skip(size)

    def _configuration(self) -> None:
        cursor, stream = self._cursor, self.stream
        length = cursor.number(4)
        if length > _MAX_TEXT:
            raise _Ended("the name of its machine is invalid")
        stream.machine = cursor.take(length).decode("ascii", "replace")
        for _ in range(_MAX_SUBSECTIONS):
            cursor.need(1)
            if cursor.data[cursor.i] != _SUBSECTION:
                return
            cursor.skip(1)
            name, _ = cursor.name(), cursor.number(4)
            if name == "configuration/capabilities":
                stream.capabilities = tuple(cursor.name() for _ in range(min(cursor.number(4), 256)))
            elif name == "configuration/target-page-bits":
                cursor.skip(4)
            elif name == "configuration/uuid":
                cursor.skip(16)
            else:
                raise _Ended(f"its {name!r} is not known")

    # The section ram

    def _records(self) -> None:
        """Read the records of a part of ``ram``, up to its end."""
        cursor = self._cursor
        while True:
            word = cursor.number(8)
            flags, offset = word & _FLAGS, word & ~_FLAGS
            if flags & _EOS:
                return
            if flags & _MEM_SIZE:
                self._list_blocks(offset)
                continue
            if flags == _MULTIFD_FLUSH:
                self.stream.multifd = True
                continue
            if flags & ~_CONTINUE not in _KINDS:
                raise _Ended(f"a record of RAM has the unknown flags {flags:#x}")
            if not flags & _CONTINUE:
                self._block = self._blocks.get(cursor.name())
            block = self._block
            if block is None or offset >= block.size:
                raise _Ended("a page is outside all blocks of RAM")
            self._pages(word, block)

    def _pages(self, word: int, block: Block) -> None:
        """Read a page whose word was read, and the pages of the same block that follow in the buffer.

        There may be millions, so there are no calls for plain and filled pages.
        """
        cursor, unpack = self._cursor, _WORD.unpack_from
        cursor.fill(_RECORD)
        data, i, size = cursor.data, cursor.i, self._content.size
        base, behind = cursor.at - i, len(cursor.data)
        last = behind - _RECORD
        key, place = self.index.new_keys.append, self.index.new_places.append
        first, flags, same, mark = block.first, word & _FLAGS, 0, NAME[0]
        while True:
            kind = flags & ~_CONTINUE
            if kind == _PAGE:
                at = base + i
                name = i + NAME_AT
                if name < behind and data[name] == mark and data[name : name + len(NAME)] == NAME:
                    at |= _NOTED << _KIND
                i += PAGE
            elif kind == _ZERO and i < behind:
                at = _FILL << _KIND | data[i]
                i += 1
            else:
                cursor.i = i
                at = self._packed(kind)
                i = cursor.i
            if base + i > size:
                raise _Ended(CUT)
            key(first + (word >> _SHIFT))
            place(at)
            if i > last or same == _RUN:
                break
            (word,) = unpack(data, i)
            before, flags = flags, word & _FLAGS
            if flags not in _CONTINUED or word >= block.size:
                break
            i += 8
            same = same + 1 if flags == before else 0
        cursor.i = i
        if same == _RUN and kind in (_PAGE, _ZERO):
            self._run(kind, block)
        self.index.bound()

    def _packed(self, kind: int) -> int:
        """Read a page that is packed or a delta; returns its entry in the index."""
        cursor = self._cursor
        if kind == _ZERO:  # the byte that fills it is missing
            raise _Ended(CUT)
        if kind == _XBZRLE:
            if cursor.number(1) != _XBZRLE_ENCODING:
                raise _Ended("a page is encoded in an unknown way")
            at = cursor.at | _DELTA << _KIND
            length, most = cursor.number(2), PAGE
        else:
            at = cursor.at | _ZLIB << _KIND
            length, most = cursor.number(4), _MAX_PACKED
        if not 0 < length <= most:
            raise _Ended("the size of a page is invalid")
        cursor.skip(length)
        return at

    def _run(self, kind: int, block: Block) -> None:
        """Read consecutive pages of one kind, many at a time."""
        cursor = self._cursor
        step = 8 + (PAGE if kind == _PAGE else 1)
        window = 4 * _RUN
        while True:
            cursor.fill(step)
            count = min(window, (len(cursor.data) - cursor.i) // step)
            if count <= 0 or self._part_of_run(kind, block, step, count) < count:
                return
            window *= 4

    def _part_of_run(self, kind: int, block: Block, step: int, count: int) -> int:
        """Add those of the next ``count`` records that continue a run; returns how many these are."""
        import numpy

        cursor = self._cursor
        raw = numpy.frombuffer(cursor.data, numpy.uint8, count * step, cursor.i).reshape(count, step)
        words = numpy.ascontiguousarray(raw[:, :8]).view(">u8")[:, 0].astype(numpy.uint64)
        size = -(-block.size // PAGE) * PAGE
        same = (words & numpy.uint64(_FLAGS) == kind | _CONTINUE) & (words < size)
        found = count if same.all() else int(numpy.argmin(same))
        if not found:
            return 0
        keys = ((words[:found] >> numpy.uint64(_SHIFT)) + numpy.uint64(block.first)).astype(numpy.uint32)
        if kind == _PAGE:
            first = cursor.at + 8
            places = numpy.arange(first, first + found * step, step, dtype=numpy.uint64)
            names = raw[:found, 8 + NAME_AT : 8 + NAME_AT + len(NAME)]
            likely = numpy.flatnonzero(names[:, 0] == NAME[0])
            if len(likely):
                noted = likely[(names[likely] == numpy.frombuffer(NAME, numpy.uint8)).all(axis=1)]
                places[noted] |= numpy.uint64(_NOTED << _KIND)
        else:
            places = raw[:found, 8].astype(numpy.uint64) | numpy.uint64(_FILL << _KIND)
        self.index.add_run(keys, places)
        cursor.skip(found * step)
        return found

    def _list_blocks(self, total: int) -> None:
        """Read the list of blocks, whose sizes have a known sum.

        With postcopy, blocks of huge pages also have the page size, and the stream does not announce it.
        """
        cursor = self._cursor
        at = cursor.at
        if not 0 < total <= _MAX_RAM or self._blocks:
            raise _Ended("the list of its RAM is invalid")
        for with_page_size in (False, True):
            cursor.go(at)
            blocks = self._blocks_of(total, with_page_size)
            if blocks is not None:
                first = 0
                for block in blocks:
                    block.first = first
                    first += -(-block.size // PAGE)
                self._blocks = {block.name: block for block in blocks}
                self.stream.blocks = blocks
                return
        raise _Ended("the list of its RAM is invalid")

    def _blocks_of(self, total: int, with_page_size: bool) -> Optional[List[Block]]:
        cursor, capabilities = self._cursor, self.stream.capabilities
        blocks: List[Block] = []
        while total > 0:
            if len(blocks) >= _MAX_BLOCKS:
                return None
            block = Block(cursor.name(), cursor.number(8))
            if not 0 < block.size <= total:
                return None
            total -= block.size
            if with_page_size and block.size % (2 << 20) == 0:
                cursor.skip(8)
            if "x-ignore-shared" in capabilities:
                cursor.skip(8)
            if "mapped-ram" in capabilities:
                version, page, bitmap, pages = _MAPPED.unpack(cursor.take(_MAPPED.size))
                if version != 1 or page != PAGE:
                    raise _Ended("the places of its pages are invalid")
                if max(bitmap, pages) >= 1 << 60:
                    raise _Ended("the places of its pages are invalid")
                block.mapped = Mapped(bitmap, pages)
                cursor.go(pages + block.size)
            blocks.append(block)
        return blocks


_AS_ELF = "dump the guest as ELF: virsh dump --memory-only DOMAIN FILE, or QEMU's dump-guest-memory"


# Memory


class Pages:
    """Reads the RAM of a stream.

    :param blocks: blocks of the machine's RAM, in order.
    :param stride: distance in the file between two consecutive pages.
    """

    def __init__(
        self, content: Content, index: Index, blocks: List[Block], *, stride: int = PAGE + 8
    ) -> None:
        self._content = content
        self._index = index
        self._stride = stride
        self._cache: OrderedDict[int, bytes] = OrderedDict()
        self._blocks: List[Tuple[int, Block]] = []  # each with its offset in RAM
        self.size = 0
        for block in blocks:
            self._blocks.append((self.size, block))
            self.size += block.size
        self.missing = PAGE * sum(self._missing_of(block) for block in blocks)

    def _missing_of(self, block: Block) -> int:
        """Number of pages of a block that are not in the stream."""
        if block.mapped is not None:
            return 0  # pages that are not in the file are zeros
        import numpy

        pages = -(-block.size // PAGE)
        first, behind = self._entries_of(block.first, block.first + pages)
        keys = self._index.keys[first:behind]
        there = int(numpy.count_nonzero(keys[1:] != keys[:-1])) + 1 if len(keys) else 0
        return pages - there

    def _entries_of(self, first: int, behind: int) -> Tuple[int, int]:
        """The entries of the index (first, end exclusive) for a range of pages (end exclusive)."""
        return self._index.first_from(first), self._index.first_from(behind)

    def _place(self, offset: int) -> Tuple[Block, int]:
        """The block that contains an offset in RAM, and the offset in the block."""
        for start, block in self._blocks:
            if start <= offset < start + block.size:
                return block, offset - start
        raise AssertionError

    def at(self, offset: int, size: int) -> bytes:
        """Between one and ``size`` bytes of RAM from an offset on; empty if the stream does not have them."""
        block, inside = self._place(offset)
        within = inside % PAGE
        size = min(size, block.size - inside)
        key = block.first + inside // PAGE
        if block.mapped is None and size >= _SEVERAL * PAGE:
            several = self._adjacent(key, min((within + size) // PAGE, _CACHED))
            if several:
                return several[within : within + size]
        size = min(size, PAGE - within)
        if block.mapped is not None:
            page = inside // PAGE
            bits = self._content.at(block.mapped.bitmap + page // 8, 1)
            if not bits:
                return b""
            return (
                self._content.at(block.mapped.pages + inside, size)
                if bits[0] >> page % 8 & 1
                else bytes(size)
            )
        return self._page(key)[within : within + size]

    def _adjacent(self, key: int, most: int) -> bytes:
        """Several consecutive plain pages whose records are adjacent in the stream; empty if only one is."""
        import numpy

        first, step = self._index.first_from(key), self._stride
        # One more entry than pages, because it may be a delta of the last one.
        keys = self._index.keys[first : first + most + 1].astype(numpy.int64)
        places = self._index.places[first : first + most + 1].astype(numpy.int64)
        number = numpy.arange(len(keys))
        if not len(keys) or keys[0] != key or places[0] >> _KIND != _PLAIN:
            return b""
        together = (keys - number == key) & (places - step * number == places[0])
        count = len(keys) if together.all() else int(numpy.argmin(together))
        if count < len(keys) and keys[count] == keys[count - 1]:
            count -= 1
        count = min(count, most)
        return self._several(int(places[0]), count) if count > 1 else b""

    def _several(self, place: int, count: int) -> bytes:
        """Plain pages whose records are adjacent; empty if not all of them can be read."""
        import numpy

        step = self._stride
        data = self._content.at(place, count * step)
        if len(data) < (count - 1) * step + PAGE:
            return b""
        records = numpy.frombuffer(data.ljust(count * step, b"\0"), numpy.uint8)
        return records.reshape(count, step)[:, :PAGE].tobytes()

    def _page(self, key: int) -> bytes:
        data = self._cache.get(key)
        if data is not None:
            self._cache.move_to_end(key)
            return data
        data = b""
        for kind, place in self._index.entries(key):
            data = self._decoded(kind, place, data)
            if len(data) != PAGE:
                data = b""
                break
        self._cache[key] = data
        if len(self._cache) > _CACHED:
            self._cache.popitem(last=False)
        return data

    def _decoded(self, kind: int, place: int, before: bytes) -> bytes:
        if kind in (_PLAIN, _NOTED):
            return self._content.at(place, PAGE)
        if kind == _FILL:
            return bytes([place & 0xFF]) * PAGE
        if kind == _ZLIB:
            size = int.from_bytes(self._content.at(place, 4), "big")
            try:
                return zlib.decompressobj().decompress(self._content.at(place + 4, size), PAGE)
            except zlib.error:
                return b""
        size = int.from_bytes(self._content.at(place, 2), "big")
        return with_delta(before, self._content.at(place + 2, size))

    def pieces(self, offset: int, size: int, *, noted: bool = False) -> Iterator[Tuple[int, bytes]]:
        """The non-zero parts of a part of RAM, with their offsets.

        :param noted: omit pages that do not begin with a VMCOREINFO note, as far as the index says.
        """
        end = offset + size
        while offset < end:
            block, inside = self._place(offset)
            size = min(end - offset, block.size - inside)
            moved = offset - inside
            if block.mapped is not None:
                found = self._mapped_pieces(block.mapped, inside, size)
            elif noted and self._index.marked:
                found = self._noted_pieces(block, inside, size)
            else:
                found = self._indexed_pieces(block, inside, size)
            for at, data in found:
                yield at + moved, data
            offset += size

    def _mapped_pieces(self, mapped: Mapped, inside: int, size: int) -> Iterator[Tuple[int, bytes]]:
        for first, last in self._content.stretches(mapped.pages + inside, mapped.pages + inside + size):
            at = (first - mapped.pages) // PAGE * PAGE
            while at < last - mapped.pages:
                count = min(_CHUNK, last - mapped.pages - at)
                bits = self._content.at(mapped.bitmap + at // PAGE // 8, count // PAGE // 8 + 2)
                data = bytearray(self._content.at(mapped.pages + at, count))
                if not data:
                    return
                for page in range(0, len(data), PAGE):
                    number = (at + page) // PAGE
                    index = number // 8 - at // PAGE // 8
                    if index >= len(bits) or not bits[index] >> number % 8 & 1:
                        data[page : page + PAGE] = bytes(min(PAGE, len(data) - page))
                yield at, bytes(data)
                at += count

    def _indexed_pieces(self, block: Block, inside: int, size: int) -> Iterator[Tuple[int, bytes]]:
        import numpy

        first = block.first + inside // PAGE
        low, high = self._entries_of(first, first + -(-size // PAGE))
        step = self._stride
        for at in range(low, high, _CACHED):
            # Include one entry before and one after, if there are any, to see which pages have deltas.
            behind = min(high, at + _CACHED)
            keys = self._index.keys[at : min(high, behind + 1)].astype(numpy.int64)
            places = self._index.places[at:behind]
            first_here = numpy.r_[at == low or self._index.keys[at - 1] != keys[0], keys[1:] != keys[:-1]]
            count = behind - at
            changed = numpy.r_[keys[1:] == keys[:-1], False][:count]
            keys, first_here = keys[:count], first_here[:count]
            there = first_here & ((places != numpy.uint64(_FILL << _KIND)) | changed)
            plain = (places >> numpy.uint64(_KIND) == _PLAIN) & ~changed
            # Pages that are adjacent in memory and whose records are adjacent in the stream are read at once.
            apart = (numpy.diff(keys) != 1) | (numpy.diff(places.astype(numpy.int64)) != step)
            borders = numpy.flatnonzero(apart | ~plain[1:] | ~plain[:-1]) + 1
            for start, end in zip([0, *borders.tolist()], [*borders.tolist(), count]):
                data = self._several(int(places[start]), end - start) if end - start > 1 else b""
                if data:
                    yield (int(keys[start]) - block.first) * PAGE, data
                    continue
                for which in numpy.flatnonzero(there[start:end]) + start:
                    piece = self._page(int(keys[which]))
                    if piece:
                        yield (int(keys[which]) - block.first) * PAGE, piece

    def _noted_pieces(self, block: Block, inside: int, size: int) -> Iterator[Tuple[int, bytes]]:
        """As :meth:`_indexed_pieces`, without plain and filled pages that do not begin with a note."""
        import numpy

        first = block.first + inside // PAGE
        low, high = self._entries_of(first, first + -(-size // PAGE))
        for at in range(low, high, _SORTED_OUT):
            behind = min(high, at + _SORTED_OUT)
            kinds = self._index.places[at:behind] >> numpy.uint64(_KIND)
            likely = self._index.keys[at:behind][(kinds != _PLAIN) & (kinds != _FILL)]
            for key in numpy.unique(likely).tolist():
                piece = self._page(key)
                if piece:
                    yield (key - block.first) * PAGE, piece


def with_delta(page: bytes, delta: bytes) -> bytes:
    """Apply a delta to a page. It alternates lengths of unchanged and of new bytes (QEMU's xbzrle.c).

    :return: the new page; empty if the delta is invalid.
    """
    out = bytearray(page)
    at = position = 0
    while position < len(delta):
        for new in (False, True):
            length = shift = 0
            for _ in range(2):
                if position >= len(delta):
                    return b""
                byte = delta[position]
                position += 1
                length |= (byte & 0x7F) << shift
                shift += 7
                if not byte & 0x80:
                    break
            else:
                return b""
            if new:
                if not length or position + length > len(delta):
                    return b""
                out[at : at + length] = delta[position : position + length]
                position += length
            at += length
            if at > len(page):
                return b""
    return bytes(out)


class StreamMemory(PhysicalMemory):
    """A stream's RAM at physical addresses; an extent's ``offset`` is its offset in RAM."""

    def __init__(self, pages: Pages, extents: List[Extent], *, complete: bool) -> None:
        super().__init__(extents, complete=complete)
        self._pages = pages

    def _read(self, extent: Extent, address: int, size: int) -> bytes:
        return self._pages.at(extent.offset + address - extent.address, size)

    def pieces(self) -> Iterator[Tuple[int, bytes]]:
        return self._pieces(noted=False)

    def noted_pieces(self) -> Iterator[Tuple[int, bytes]]:
        return self._pieces(noted=True)

    def _pieces(self, *, noted: bool) -> Iterator[Tuple[int, bytes]]:
        for extent in self.extents:
            for offset, data in self._pages.pieces(extent.offset, extent.size, noted=noted):
                yield extent.address + offset - extent.offset, data


# Which blocks are RAM, and where


class Clock(NamedTuple):
    """Bytes of RAM below and above 4 GB, according to the clock's memory (hw/i386/pc.c:pc_cmos_init)."""

    low: int
    high: int


_RTC = re.compile(rb"\x04.{4}\x0bmc146818rtc\0\0\0\0\0\0\0[\1-\x10]", re.DOTALL)
_MAX_DEVICES = 64 << 20
_SMALL = 16 << 20


def clock_of(content: Content, stream: Stream) -> Optional[Clock]:
    """How RAM is split, according to the state of the clock, which follows RAM; None if it is missing."""
    if not stream.complete:
        return None
    at, end = stream.end, min(stream.end + _MAX_DEVICES, content.size)
    while at < end:
        data = content.at(at, min(_CHUNK, end - at))
        for found in _RTC.finditer(data):
            cmos = content.at(at + found.end(), 128)
            if len(cmos) == 128:
                low = int.from_bytes(cmos[0x34:0x36], "little") << 16
                high = int.from_bytes(cmos[0x5B:0x5E], "little") << 16
                return Clock(low + _SMALL, high) if low else None
        if len(data) < _CHUNK:
            return None
        at += len(data) - 32  # the mark may be across the border
    return None


def ram_of(blocks: List[Block], total: Optional[int]) -> List[Block]:
    """The blocks of the machine's RAM, in the order of their addresses.

    :param total: bytes of RAM, if known.
    """
    named = [block for block in blocks if block.name in _MAIN]
    others = [block for block in blocks if not _NOT_RAM.search(block.name)]
    largest = sorted(others, key=lambda block: -block.size)[:1]
    nodes = [block for block in others if re.fullmatch(r"(.*/)?[A-Za-z_.-]*node[-_]?\d+", block.name)]
    numbered = sorted(others, key=_number)
    ways = [named, largest, sorted(nodes, key=_number), numbered]
    if total is not None:
        fitting = [way for way in ways if sum(block.size for block in way) == total]
        if not fitting:
            # Blocks of the same size whose sum is the size of RAM.
            same = [block for block in numbered if largest and block.size == largest[0].size]
            fitting = [same] if sum(block.size for block in same) == total else []
        if fitting:
            return fitting[0]
    return named or (sorted(nodes, key=_number) if len(nodes) > 1 else []) or largest


_MAIN = ("pc.ram", "mach-virt.ram", "ppc_spapr.ram", "s390.ram", "riscv_virt_board.ram", "ram")


def _number(block: Block) -> int:
    """The number at the end of a block's name, which gives the order of NUMA nodes; -1 if there is none."""
    found = re.search(r"(\d{1,9})$", block.name)
    return int(found[1]) if found else -1
