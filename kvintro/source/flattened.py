# SPDX-License-Identifier: LGPL-2.1-or-later
"""Flattened dumps: an ELF file or a kdump as a series of records, each with its offset in that file.

``makedumpfile -F`` and QEMU write them to targets that cannot be rewritten, such as pipes. A header of 4096
bytes is followed by records of an offset, a size (64 bits each, big-endian) and that many bytes; both are -1
in the last one (makedumpfile.h: struct makedumpfile_data_header, END_FLAG_FLAT_HEADER). Records may have any
order. A later record overwrites earlier ones at the same offset. Bytes without a record are zeros.
"""

from __future__ import annotations

import heapq
import os
import struct
import tempfile
from array import array
from bisect import bisect_right
from functools import cached_property
from typing import TYPE_CHECKING, BinaryIO, Iterator, List, Tuple

from kvintro.errors import NotADump
from kvintro.source.content import Content, FileContent
from kvintro.source.spool import copy_stretches, room_in, spool_directory
from kvintro.text import size_text

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

MAGIC = b"makedumpfile\0\0\0\0"
_HEADER_SIZE = 4096
_RECORD = struct.Struct(">qq")  # offset and size
_END = -1
_MAX_OFFSET = 1 << 62
# makedumpfile's records have up to 4 MB, QEMU's 16 KB. There are only a few smaller ones.
_FEW_RECORDS = 1 << 16
_LEAST_RECORD = 2048
# libkdumpfile searches all records for each page, and for each record when it opens the file.
_FEW_FOR_LIBKDUMPFILE = 1 << 12


class Flattened(Content):
    """The rearranged content of a flattened file.

    :ivar complete: whether the last record is there. If not, bytes without a record are missing, not zeros.
    :ivar records: number of records.
    :ivar descriptor: descriptor of the flattened file.
    :raises NotADump: the file has more records than a real one of its size.
    """

    def __init__(self, file: FileContent) -> None:
        self._file = file
        self.descriptor = file.descriptor
        self.complete = False
        # For each record: its start, its end (exclusive), and the place of its bytes in the file.
        self._starts, self._ends, self._places = array("q"), array("q"), array("q")
        self._read_records()
        self.records = len(self._starts)
        self.size = max(self._ends, default=0)
        self.real = file.real
        self._put_in_order()

    def _read_records(self) -> None:
        at = _HEADER_SIZE
        most = _FEW_RECORDS + self._file.real // _LEAST_RECORD
        while True:
            head = self._file.at(at, _RECORD.size)
            if len(head) < _RECORD.size:
                return
            offset, size = _RECORD.unpack(head)
            if offset == _END:
                self.complete = True
                return
            if offset < 0 or size <= 0 or offset > _MAX_OFFSET - size:
                return  # damaged; later records cannot be found
            at += _RECORD.size
            there = min(size, self._file.size - at)
            if there <= 0:
                return
            if len(self._starts) >= most:
                raise NotADump("the flattened dump has too many records", "take the dump again")
            self._starts.append(offset)
            self._ends.append(offset + there)
            self._places.append(at)
            at += size

    def _put_in_order(self) -> None:
        """Sort the records by their starts, and remove parts that a later record overwrites."""
        starts, ends, places = self._starts, self._ends, self._places
        if all(end <= start for end, start in zip(ends, starts[1:])):
            return
        order = sorted(range(len(starts)), key=starts.__getitem__)
        self._starts, self._ends, self._places = array("q"), array("q"), array("q")
        borders = sorted({*starts, *ends})
        waiting: List[int] = []  # records that have begun, the latest first (negative numbers)
        begun = 0
        for start, end in zip(borders, borders[1:]):
            while begun < len(order) and starts[order[begun]] <= start:
                heapq.heappush(waiting, -order[begun])
                begun += 1
            while waiting and ends[-waiting[0]] <= start:
                heapq.heappop(waiting)
            if waiting:
                latest = -waiting[0]
                self._starts.append(start)
                self._ends.append(end)
                self._places.append(places[latest] + start - starts[latest])

    def at(self, offset: int, size: int) -> bytes:
        found: List[bytes] = []
        end = min(offset + size, self.size)
        index = bisect_right(self._starts, offset) - 1
        while offset < end:
            if index >= 0 and offset < self._ends[index]:
                count = min(end, self._ends[index]) - offset
                data = self._file.at(self._places[index] + offset - self._starts[index], count)
                if len(data) < count:
                    found.append(data)
                    break
            elif self.complete:
                following = self._starts[index + 1] if index + 1 < len(self._starts) else end
                data = bytes(min(end, following) - offset)
            else:
                break
            found.append(data)
            offset += len(data)
            if index + 1 < len(self._starts) and offset >= self._starts[index + 1]:
                index += 1
        return b"".join(found)

    def stretches(self, start: int, end: int) -> Iterator[Tuple[int, int]]:
        for first, last, _ in self._stretches(start, end):
            yield first, last

    def _stretches(self, start: int, end: int) -> Iterator[Tuple[int, int, int]]:
        """(start, end exclusive, place in the file) of the parts that have a record and are not holes."""
        index = max(0, bisect_right(self._starts, start) - 1)
        while index < len(self._starts) and self._starts[index] < end:
            low, high = max(start, self._starts[index]), min(end, self._ends[index])
            moved = self._places[index] - self._starts[index]
            for first, last in self._file.stretches(low + moved, high + moved):
                yield first - moved, last - moved, first
            index += 1

    @cached_property
    def _covered(self) -> Tuple[NDArray[numpy.int64], NDArray[numpy.int64]]:
        """Starts and ends (exclusive) of the parts that are there, with adjacent records merged."""
        import numpy

        if self.complete:
            return numpy.array([0]), numpy.array([self.size])
        starts, ends = (numpy.array(column, numpy.int64) for column in (self._starts, self._ends))
        apart = starts[1:] != ends[:-1]
        return starts[numpy.r_[True, apart]], ends[numpy.r_[apart, True]]

    def has(self, offsets: NDArray[numpy.int64], sizes: NDArray[numpy.int64]) -> NDArray[numpy.bool_]:
        import numpy

        if not self.records:
            return numpy.zeros(len(offsets), bool)
        starts, ends = self._covered
        index = numpy.searchsorted(starts, offsets, "right") - 1
        found: NDArray[numpy.bool_] = (index >= 0) & (offsets <= ends[index] - sizes)
        return found

    def has_all(self, offset: int, size: int) -> bool:
        if self.complete:
            return 0 <= offset <= self.size - size
        import numpy

        if not 0 <= offset < _MAX_OFFSET or size > _MAX_OFFSET:
            return False
        return bool(self.has(numpy.array([offset], numpy.int64), numpy.array([size], numpy.int64))[0])

    @property
    def plain_enough(self) -> bool:
        """Whether libkdumpfile can read the flattened file itself in reasonable time."""
        return self.complete and self.records <= _FEW_FOR_LIBKDUMPFILE

    def rearranged(self) -> BinaryIO:
        """An unnamed file with this content, which is deleted when it is closed.

        :raises NotADump: there is no room for it.
        """
        directory = spool_directory()
        wanted = sum(last - first for first, last in self.stretches(0, self.size))
        if wanted > room_in(directory):
            raise NotADump(
                f"this flattened dump needs {size_text(wanted)} of free space in {directory}",
                "set TMPDIR, or rearrange it first: makedumpfile -R NEW < DUMP",
            )
        file = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115
        try:
            os.truncate(file.fileno(), self.size)
            copy_stretches(self._file.descriptor, file.fileno(), self._stretches(0, self.size))
        except OSError as error:
            file.close()
            raise NotADump(
                f"this flattened dump cannot be rearranged in {directory}: {error.strerror}", "set TMPDIR"
            ) from None
        return file
