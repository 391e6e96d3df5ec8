# SPDX-License-Identifier: LGPL-2.1-or-later
"""Writes ELF cores like kexec's /proc/vmcore and those of ``makedumpfile -E``.

The program headers come first, because crash requires that. There is room for more of them than planned,
because a page that cannot be read splits a segment.
"""

from __future__ import annotations

import struct
from typing import Iterable, Iterator, NamedTuple, Optional, Tuple

from kvintro.convert.target import Target
from kvintro.errors import NotWritten
from kvintro.model import ALL
from kvintro.queries.pages.frames import Frames
from kvintro.source.elf import ET_CORE, PT_LOAD, PT_NOTE

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
_IDENT = b"\x7fELF\2\1\1"  # 64 bits, little-endian, version 1
_RWX = 7
#: A higher number is stored elsewhere (PN_XNUM), where not all readers look.
_MAX_SEGMENTS = 0xFFFE
_SPARE = 1 << 10

#: A range of page frames: the first one, the last one with bytes in the file plus one, the last one plus one.
Part = Tuple[int, int, int]


class Addresses(NamedTuple):
    """Kernel addresses of physical memory.

    :ivar linear: virtual minus physical address in the direct map, modulo 2^64; None if unknown.
    :ivar image: first virtual and first physical address, and size in bytes, of the kernel's image; None if
        unknown.
    """

    linear: Optional[int]
    image: Optional[Tuple[int, int, int]]


class ElfWriter:
    """An ELF core that is being written.

    :param frames: page frames to write, as far as they can be read.
    :param known: page frames that the machine has, left out or not.
    :param machine: machine number in the ELF header.
    :param notes: all notes.
    :raises NotWritten: memory is in more pieces than an ELF file can have.
    """

    def __init__(
        self,
        target: Target,
        frames: Frames,
        known: Frames,
        page: int,
        machine: int,
        notes: bytes,
        addresses: Addresses,
    ) -> None:
        import numpy

        self._target = target
        self._frames = frames
        self._page = page
        self._machine = machine
        self._notes = notes
        self._addresses = addresses
        self._room = min(3 * len(frames) + len(known) + _SPARE, _MAX_SEGMENTS)
        self._notes_at = _HEADER.size + (1 + self._room) * _PROGRAM_HEADER.size
        self._data_at = -(-(self._notes_at + len(notes)) // page) * page
        # File offset of each run of frames.
        lengths = frames.ends - frames.starts
        self._offsets = self._data_at + (numpy.cumsum(lengths) - lengths) * page
        if len(frames) + len(known) > self._room:
            raise _too_many(len(frames) + len(known))

    def _offset(self, frame: int) -> int:
        import numpy

        run = int(numpy.searchsorted(self._frames.starts, frame, side="right")) - 1
        return int(self._offsets[run]) + (frame - int(self._frames.starts[run])) * self._page

    def add(self, frame: int, data: bytes) -> int:
        """Write consecutive page frames of one run and return the number of zero pages.

        Zero pages become holes in the file.
        """
        import numpy

        at = self._offset(frame)
        used = numpy.frombuffer(data, numpy.uint64).reshape(-1, self._page // 8).any(axis=1)
        edges = numpy.flatnonzero(numpy.diff(numpy.r_[False, used, False].astype(numpy.int8)))
        view = memoryview(data)
        for first, end in edges.reshape(-1, 2).tolist():
            self._target.write_at(at + first * self._page, view[first * self._page : end * self._page])
        return len(data) // self._page - int(used.sum())

    def finish(self, written: Frames, left_out: Frames) -> None:
        """Write the headers.

        :param written: page frames that were read and written.
        :param left_out: other page frames of the machine.
        :raises NotWritten: too many pages could not be read for the headers to fit.
        """
        loads = list(self._loads(written, left_out))
        if len(loads) > self._room:
            raise _too_many(len(loads))
        note = _PROGRAM_HEADER.pack(PT_NOTE, 0, self._notes_at, 0, 0, len(self._notes), len(self._notes), 0)
        header = _HEADER.pack(
            _IDENT,
            ET_CORE,
            self._machine,
            1,
            0,
            _HEADER.size,
            0,
            0,
            _HEADER.size,
            _PROGRAM_HEADER.size,
            1 + len(loads),
            0,
            0,
            0,
        )
        self._target.write_at(0, b"".join([header, note, *loads]))
        self._target.write_at(self._notes_at, self._notes)
        size = int((self._frames.ends - self._frames.starts).sum()) * self._page
        self._target.end_at(self._data_at + size)

    def _loads(self, written: Frames, left_out: Frames) -> Iterator[bytes]:
        """Segments in order of physical address, as volatility3 requires.

        The image's memory has two segments, with the addresses of the direct map and of the image. Both have
        the same size, so that a reader can take either.
        """
        image = self._image_frames()
        runs = [(first, end, True) for part in (written & image, written - image) for first, end in part]
        runs += [(first, end, False) for first, end in left_out]
        parts = [(first, end if there else first, end) for first, end, there in sorted(runs)]
        twice = [(first, end, end) for first, end in written & image]
        if len(parts) + len(twice) > self._room:
            parts = list(_joined(parts))
        at = self._data_at
        for first, end, behind, of_image in sorted(
            [(*part, False) for part in parts] + [(*part, True) for part in twice]
        ):
            at = self._offset(first) if end > first else at
            virtual = self._in_image(first * self._page) if of_image else self._linear(first * self._page)
            yield self._load(at, virtual, first, end, behind)

    def _image_frames(self) -> Frames:
        if self._addresses.image is None:
            return Frames.of([])
        _, physical, size = self._addresses.image
        return Frames.of([(physical // self._page, -(-(physical + size) // self._page))])

    def _in_image(self, physical: int) -> int:
        assert self._addresses.image is not None
        return self._addresses.image[0] - self._addresses.image[1] + physical

    def _linear(self, physical: int) -> int:
        return 0 if self._addresses.linear is None else physical + self._addresses.linear

    def _load(self, at: int, virtual: int, first: int, end: int, behind: int) -> bytes:
        return _PROGRAM_HEADER.pack(
            PT_LOAD,
            _RWX,
            at,
            virtual & ALL,
            first * self._page,
            (end - first) * self._page,
            (behind - first) * self._page,
            0,
        )


def _joined(parts: Iterable[Part]) -> Iterator[Part]:
    """Join each part without bytes with the part directly before it.

    This makes room, but volatility3 ignores segments that have more memory than bytes.
    """
    before: Optional[Part] = None
    for part in parts:
        if before is not None and part[0] == part[1] and before[2] == part[0]:
            before = (*before[:2], part[2])
            continue
        if before is not None:
            yield before
        before = part
    if before is not None:
        yield before


def _too_many(count: int) -> NotWritten:
    return NotWritten(
        f"memory is in {count} pieces, and an ELF file has room for {_MAX_SEGMENTS}",
        "write a kdump: --to kdump",
    )
