# SPDX-License-Identifier: LGPL-2.1-or-later
"""The bytes of a dump, read in any order.

A file says how long it is, and its headers say how much is where; neither can be trusted. A sparse file of a
few bytes can call itself an exabyte long. So nothing is read here in pieces larger than :data:`MOST`, holes
are skipped, and :attr:`Content.real` says how many bytes the file really has: a limit for counts and tables
that a real dump of that size cannot reach.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, BinaryIO, Iterator, Tuple

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

#: Bytes that are read at once, at most.
MOST = 64 << 20
_MAX_STRETCHES = 1 << 16


class Content:
    """Bytes with offsets from 0 on.

    :ivar size: how many there are, holes included.
    :ivar real: how many of them take room on the disk.
    """

    size: int
    real: int

    def at(self, offset: int, size: int) -> bytes:
        """``size`` bytes but no more than :data:`MOST`; fewer where the content ends, or has lost some."""
        raise NotImplementedError

    def read_into(self, buffer: memoryview, offset: int) -> int:
        """Fill a buffer from an offset on; returns how many bytes there were."""
        data = self.at(offset, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def stretches(self, start: int, end: int) -> Iterator[Tuple[int, int]]:
        """The parts between two offsets that are no holes, as (first offset, offset behind the last)."""
        raise NotImplementedError

    def has(self, offsets: NDArray[numpy.int64], sizes: NDArray[numpy.int64]) -> NDArray[numpy.bool_]:
        """For each pair whether all of those bytes are there."""
        raise NotImplementedError

    def has_all(self, offset: int, size: int) -> bool:
        """Whether all of so many bytes are there."""
        raise NotImplementedError


class FileContent(Content):
    """What is in a file.

    :param file: its descriptor is duplicated, and may be closed.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = os.fdopen(os.dup(file.fileno()), "rb", buffering=0)
        self.descriptor = self._file.fileno()
        status = os.fstat(self.descriptor)
        self.size = status.st_size
        # Some file systems keep small files without a block, and some do not say how many they have.
        blocks = status.st_blocks * 512
        self.real = min(self.size, blocks if blocks else self._count_data())

    def _count_data(self) -> int:
        found = 0
        for number, (start, end) in enumerate(self.stretches(0, self.size)):
            found += end - start
            if number == _MAX_STRETCHES:
                break
        return found

    def at(self, offset: int, size: int) -> bytes:
        size = min(size, self.size - offset, MOST)
        if offset < 0 or size <= 0:
            return b""
        try:
            return os.pread(self.descriptor, size, offset)
        except OSError:  # a bad sector
            return b""

    def read_into(self, buffer: memoryview, offset: int) -> int:
        try:
            return os.preadv(self.descriptor, [buffer], offset)
        except OSError:
            return 0

    def stretches(self, start: int, end: int) -> Iterator[Tuple[int, int]]:
        at, end = start, min(end, self.size)
        while at < end:
            first = self._seek(at, os.SEEK_DATA, at)
            if first >= end:
                return
            at = min(end, max(self._seek(first, os.SEEK_HOLE, end), first + 1))
            yield first, at

    def _seek(self, offset: int, whence: int, unknown: int) -> int:
        """Where behind an offset data or a hole begins; ``unknown`` where the file system does not say."""
        try:
            return os.lseek(self.descriptor, offset, whence)
        except OSError as error:
            return self.size if error.errno == errno.ENXIO else unknown

    def has(self, offsets: NDArray[numpy.int64], sizes: NDArray[numpy.int64]) -> NDArray[numpy.bool_]:
        found: NDArray[numpy.bool_] = (offsets >= 0) & (offsets <= self.size - sizes)
        return found

    def has_all(self, offset: int, size: int) -> bool:
        return 0 <= offset <= self.size - size
