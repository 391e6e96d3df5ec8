# SPDX-License-Identifier: LGPL-2.1-or-later
"""The bytes of a dump, for reads in any order.

Neither the length of a file nor the sizes and offsets in its headers can be trusted. A sparse file of a few
bytes can claim to be an exabyte long. So nothing is read here in pieces larger than :data:`MOST`, holes are
skipped, and :attr:`Content.real` is the number of bytes that the file really has. Limits for counts and
tables are derived from it such that a real dump of that size cannot reach them.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, BinaryIO, Iterator, Tuple

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

#: Maximum number of bytes to read at once.
MOST = 64 << 20
_MAX_STRETCHES = 1 << 16
_ENDLESS = (1 << 63) - 1


class Content:
    """Bytes with offsets from 0 on.

    :ivar size: number of bytes, including holes.
    :ivar real: number of bytes that occupy space on disk.
    """

    size: int
    real: int

    def at(self, offset: int, size: int) -> bytes:
        """``size`` bytes but no more than :data:`MOST`; fewer if the content ends or has missing bytes."""
        raise NotImplementedError

    def read_into(self, buffer: memoryview, offset: int) -> int:
        """Fill a buffer from an offset on; returns the number of bytes read."""
        data = self.at(offset, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def stretches(self, start: int, end: int) -> Iterator[Tuple[int, int]]:
        """The parts between two offsets that are not holes, as (start, end exclusive)."""
        raise NotImplementedError

    def has(self, offsets: NDArray[numpy.int64], sizes: NDArray[numpy.int64]) -> NDArray[numpy.bool_]:
        """For each pair of offset and size, whether all of those bytes are there."""
        raise NotImplementedError

    def has_all(self, offset: int, size: int) -> bool:
        """Whether all of ``size`` bytes are there."""
        raise NotImplementedError


class Part(Content):
    """A part of another content.

    :param start: its offset in the other content.
    :param size: its intended size in bytes; it ends at the end of the other content at the latest.
    """

    def __init__(self, content: Content, start: int, size: int) -> None:
        self._content = content
        self._start = start
        self.size = max(0, min(size, content.size - start))
        self.real = min(self.size, content.real)

    def at(self, offset: int, size: int) -> bytes:
        size = min(size, self.size - offset)
        return self._content.at(self._start + offset, size) if offset >= 0 and size > 0 else b""

    def stretches(self, start: int, end: int) -> Iterator[Tuple[int, int]]:
        moved = self._start
        for first, last in self._content.stretches(moved + start, moved + min(end, self.size)):
            yield first - moved, last - moved

    def has(self, offsets: NDArray[numpy.int64], sizes: NDArray[numpy.int64]) -> NDArray[numpy.bool_]:
        found: NDArray[numpy.bool_] = (offsets >= 0) & (offsets <= self.size - sizes)
        return found

    def has_all(self, offset: int, size: int) -> bool:
        return 0 <= offset <= self.size - size


class FileContent(Content):
    """The content of a file.

    :param file: the open file. Its descriptor is duplicated, so the caller may close it.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = os.fdopen(os.dup(file.fileno()), "rb", buffering=0)
        self.descriptor = self._file.fileno()
        status = os.fstat(self.descriptor)
        # The kernel's sum for /proc/kcore overflows if modules or vmalloc are below the direct map (riscv64).
        endless = status.st_size < 0
        self.size = _ENDLESS if endless else status.st_size
        # Some file systems store small files without a block, and some do not report the number of blocks.
        blocks = status.st_blocks * 512
        self.real = self.size if endless else min(self.size, blocks if blocks else self._count_data())

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
        """Where data or a hole begins at or after an offset; ``unknown`` if the file system does not say."""
        try:
            return os.lseek(self.descriptor, offset, whence)
        except OSError as error:
            return self.size if error.errno == errno.ENXIO else unknown

    def has(self, offsets: NDArray[numpy.int64], sizes: NDArray[numpy.int64]) -> NDArray[numpy.bool_]:
        found: NDArray[numpy.bool_] = (offsets >= 0) & (offsets <= self.size - sizes)
        return found

    def has_all(self, offset: int, size: int) -> bool:
        return 0 <= offset <= self.size - size
