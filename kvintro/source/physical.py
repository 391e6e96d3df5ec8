# SPDX-License-Identifier: LGPL-2.1-or-later
"""Interface to physical memory in a file: its ranges, bytes at an address, and all of it in pieces."""

from __future__ import annotations

from bisect import bisect_right
from typing import Callable, Iterator, List, NamedTuple, Optional, Tuple, Union

import drgn

from kvintro.arch.form import SMALLEST_PAGE
from kvintro.errors import NotInDump
from kvintro.source.content import Content

PAGE = SMALLEST_PAGE
_PIECE = 4 << 20


class Extent(NamedTuple):
    """``size`` bytes of physical memory from ``address`` on."""

    address: int
    size: int
    offset: int
    """Where they are in the file."""


class Held(NamedTuple):
    """A range of physical addresses with memory, end exclusive.

    :ivar there: False if it was excluded from the dump.
    """

    start: int
    end: int
    there: bool


class PhysicalMemory:
    """Part or all of a machine's physical memory.

    :ivar extents: its ranges, in ascending order and without overlap.
    :ivar complete: whether the file has everything that it should have.
    """

    def __init__(self, extents: List[Extent], *, complete: bool = True) -> None:
        self.extents = extents
        self.complete = complete
        self._starts = [extent.address for extent in extents]

    @property
    def end(self) -> int:
        """Address after the last byte."""
        return max((extent.address + extent.size for extent in self.extents), default=0)

    def extent_of(self, address: int) -> Optional[Extent]:
        """The extent that contains an address; None if there is none."""
        index = bisect_right(self._starts, address) - 1
        if index < 0 or address >= self.extents[index].address + self.extents[index].size:
            return None
        return self.extents[index]

    def moved(self, other: PhysicalMemory, address: int) -> int:
        """Convert an address in another layout of the same file to the address in this one."""
        if other is self:
            return address
        extent = other.extent_of(address)
        offset = address if extent is None else extent.offset + address - extent.address
        mine = (e for e in self.extents if e.offset <= offset < e.offset + e.size)
        return next((e.address + offset - e.offset for e in mine), address)

    def read(self, address: int, size: int) -> bytes:
        """Read physical memory.

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
        """Between one and ``size`` bytes within an extent; empty if they are missing from the file."""
        raise NotImplementedError

    def pieces(self) -> Iterator[Tuple[int, Union[bytes, bytearray, memoryview]]]:
        """Yield all memory in large pieces, with addresses. A piece is valid until the next is requested."""
        raise NotImplementedError

    def noted_pieces(self) -> Iterator[Tuple[int, Union[bytes, bytearray, memoryview]]]:
        """As :meth:`pieces`, but may omit pages that do not begin with a VMCOREINFO note."""
        return self.pieces()


class MemoryFile(PhysicalMemory):
    """Memory that is stored unchanged in a file."""

    def __init__(self, content: Content, extents: List[Extent], *, complete: bool = True) -> None:
        super().__init__(extents, complete=complete)
        self._content = content

    def _read(self, extent: Extent, address: int, size: int) -> bytes:
        return self._content.at(extent.offset + address - extent.address, size)

    def pieces(self) -> Iterator[Tuple[int, memoryview]]:
        """As in the base class, without the file's holes."""
        buffer = memoryview(bytearray(_PIECE))
        for extent in self.extents:
            at, behind = extent.offset, extent.offset + extent.size
            for start, last in self._content.stretches(at, behind):
                # Extend the part to whole pages of memory, which may begin anywhere in the file.
                at = max(at, start - (start - extent.offset) % PAGE)
                end = min(behind, last + (extent.offset - last) % PAGE)
                while at < end:
                    count = self._content.read_into(buffer[: min(_PIECE, end - at)], at)
                    if count:
                        yield extent.address + at - extent.offset, buffer[:count]
                    # Skip unreadable parts (bad sectors); they are reported when they are needed.
                    at += count or _PIECE


def segment(memory: PhysicalMemory) -> Callable[[int, int, int, bool], bytes]:
    """A callback for :meth:`drgn.Program.add_memory_segment` that reads this memory."""

    def read(address: int, count: int, offset: int, physical: bool) -> bytes:
        try:
            return memory.read(address, count)
        except NotInDump as error:
            raise drgn.FaultError(error.what, address) from None

    return read
