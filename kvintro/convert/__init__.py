# SPDX-License-Identifier: LGPL-2.1-or-later
"""Writes the memory of a source as ELF or kdump, for other tools to read."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import chain
from typing import Dict, Iterator, List, Optional, Protocol, Tuple

from kvintro.convert.elf import Addresses, ElfWriter
from kvintro.convert.kdump import KdumpWriter, Origin
from kvintro.convert.target import Target
from kvintro.errors import NotInDump, Unavailable, UsageError
from kvintro.kernels import Kernel
from kvintro.model import ALL
from kvintro.queries.pages.census import Progress
from kvintro.queries.pages.frames import Frames, memory_of
from kvintro.queries.pages.levels import MAX_LEVEL, Watch, left_out, unwatched
from kvintro.queries.pages.sections import sections_of
from kvintro.source.elf import WRITER_NOTE, parse_notes
from kvintro.source.note import MAX_TEXT
from kvintro.version import __version__

__all__ = ("COMPRESSIONS", "FORMATS", "Conversion", "Watch", "convert", "unwatched")

FORMATS = ("elf", "kdump")
COMPRESSIONS = ("zstd", "zlib", "none")
_PIECE = 1 << 20
# Notes with registers of the CPUs, which crash and drgn know.
_OWNERS = ("CORE", "LINUX", "QEMU")
_NT_PRSTATUS = 1
_UTS_NAMES, _UTS_FIELD, _MACHINE = 6, 65, 4  # struct new_utsname: names, bytes of each, index of the machine
_MAX_UTS_OFFSET = 64


@dataclass(frozen=True)
class Conversion:
    """Counts of what was written.

    :ivar page: size of a page in bytes.
    :ivar size: size of the file in bytes.
    :ivar real: number of those bytes that take space on the disk.
    :ivar written: pages in the file.
    :ivar zeros: number of those that contain only zeros.
    :ivar excluded: pages left out, by :data:`kvintro.convert.levels.REASONS`; ``firmware`` for pages that the
        format cannot hold.
    :ivar left_out: pages that the source does not have because they were left out when it was made.
    :ivar unreadable: pages that should be in the source but could not be read.
    """

    page: int
    size: int
    real: int
    written: int
    zeros: int
    excluded: Dict[str, int]
    left_out: int
    unreadable: int


class _Writer(Protocol):
    """Writer of a format."""

    def add(self, frame: int, data: bytes) -> int:
        """Write consecutive page frames and return the number of zero pages among them."""

    def finish(self, written: Frames, left_out: Frames) -> None:
        """Write the headers."""


def convert(
    kernel: Kernel,
    path: str,
    *,
    form: str = "elf",
    compress: str = "zstd",
    level: int = 0,
    force: bool = False,
    watch: Watch = unwatched,
) -> Conversion:
    """Write the memory of a kernel's source to a new file.

    :param form: one of :data:`FORMATS`.
    :param compress: one of :data:`COMPRESSIONS`, for kdumps.
    :param level: which pages to leave out, from 0 to 31 like makedumpfile's ``-d``.
    :param force: replace an existing file.
    :raises NotWritten: the file exists, or cannot be written.
    :raises UsageError: the file is one of the source's, or there is no such format, compression or level.
    :raises Unavailable: the source does not say which memory it has, or how its pages are used.
    """
    for value, choices in ((form, FORMATS), (compress, COMPRESSIONS)):
        if value not in choices:
            raise UsageError(f"there is no {value}", f"choose from {', '.join(choices)}")
    if not 0 <= level <= MAX_LEVEL:
        raise UsageError(f"there is no level {level}", f"levels go from 0 to {MAX_LEVEL}")
    with Target(path, force=force, sources=kernel.source.kept) as target:
        memory = memory_of(kernel)
        known = memory.there | memory.left_out
        found = left_out(kernel, level, watch)
        if form == "kdump":
            found["firmware"] = Frames.of([(_end_of_sections(kernel), known.end)])
            known = known - found["firmware"]
        excluded = {reason: frames & memory.there for reason, frames in found.items()}
        planned = memory.there
        for frames in excluded.values():
            planned = planned - frames
        writer = _writer(kernel, target, planned, known, form, compress, level)
        zeros, lost = _copy(kernel, planned, writer, watch("writing", planned.count))
        written = planned - lost
        writer.finish(written, known - written)
        counts = {reason: frames.count for reason, frames in excluded.items()}
        left = memory.left_out.count
        page = kernel.form.page_size
        return Conversion(page, *target.commit(), written.count, zeros, counts, left, lost.count)


def _end_of_sections(kernel: Kernel) -> int:
    """Last page frame with a struct page, plus one; 2^52 if unknown.

    makedumpfile rejects longer bitmaps (makedumpfile.c:get_mem_map), and so kdumps with the firmware that
    QEMU has at the end of the first 4 GB.
    """
    try:
        return sections_of(kernel).end or 1 << 52
    except Unavailable:
        return 1 << 52


def _copy(kernel: Kernel, frames: Frames, writer: _Writer, progress: Progress) -> Tuple[int, Frames]:
    """Write page frames and return the number of zero pages, and the frames that cannot be read."""
    zeros = 0
    lost: List[Tuple[int, int]] = []
    for frame, count, data in _pieces(kernel, frames):
        if data is not None:
            zeros += writer.add(frame, data)
        elif lost and lost[-1][1] == frame:
            lost[-1] = lost[-1][0], frame + count
        else:
            lost.append((frame, frame + count))
        progress(count)
    return zeros, Frames.of(lost)


def _pieces(kernel: Kernel, frames: Frames) -> Iterator[Tuple[int, int, Optional[bytes]]]:
    """(first frame, number of frames, content) of all memory, in pieces; None if it cannot be read."""
    page = kernel.form.page_size
    step = _PIECE // page
    for first, end in frames:
        for frame in range(first, end, step):
            yield from _readable(kernel, frame, min(step, end - frame), page)


def _readable(
    kernel: Kernel, frame: int, count: int, page: int
) -> Iterator[Tuple[int, int, Optional[bytes]]]:
    try:
        yield frame, count, kernel.read_physical(frame * page, count * page)
    except NotInDump:
        if count == 1:
            yield frame, 1, None
            return
        half = count // 2
        yield from _readable(kernel, frame, half, page)
        yield from _readable(kernel, frame + half, count - half, page)


def _writer(
    kernel: Kernel, target: Target, planned: Frames, known: Frames, form: str, compress: str, level: int
) -> _Writer:
    text: bytes = kernel.prog["VMCOREINFO"].string_()[:MAX_TEXT]
    page = kernel.form.page_size
    others = list(_kept_notes(kernel))
    notes = b"".join(
        _note(owner, kind, data)
        for owner, kind, data in chain(
            others, [("VMCOREINFO", 0, text), (WRITER_NOTE, 0, f"kvintro {__version__}".encode())]
        )
    )
    if form == "elf":
        machine = kernel.arch.elf_machine
        return ElfWriter(target, planned, known, page, machine, notes, _addresses(kernel))
    cpus = sum(owner == "CORE" and kind == _NT_PRSTATUS for owner, kind, _ in others)
    origin = Origin(_utsname(kernel), _phys_base(kernel), level, max(cpus, 1))
    return KdumpWriter(target, planned, known, page, text, notes, origin, compress)


def _kept_notes(kernel: Kernel) -> Iterator[Tuple[str, int, bytes]]:
    """Notes of the source that are copied unchanged."""
    for owner, kind, data in parse_notes(kernel.source.notes()):
        if owner in _OWNERS:
            yield owner, kind, bytes(data)


def _note(owner: str, kind: int, data: bytes) -> bytes:
    name = owner.encode() + b"\0"
    head = struct.pack("<III", len(name), len(data), kind)
    return head + name.ljust(-(-len(name) // 4) * 4, b"\0") + data.ljust(-(-len(data) // 4) * 4, b"\0")


def _addresses(kernel: Kernel) -> Addresses:
    """Addresses of the direct map and the image, as far as they are known."""
    linear, image = None, None
    try:
        linear = kernel.linear_offset.value
    except Unavailable:
        pass
    try:
        start, end = kernel.text.value, kernel.symbol("_end")
        if start < end:
            image = start, start - kernel.image_offset.value & ALL, end - start
    except Unavailable:
        pass
    return Addresses(linear, image)


def _utsname(kernel: Kernel) -> bytes:
    """Six names of 65 bytes, from ``init_uts_ns`` if it can be read; none of them is empty.

    libkdumpfile, and so drgn, takes the architecture from the name of the machine, if sysname, release and
    version are not empty either.
    """
    release = kernel.source.vmcoreinfo.get("OSRELEASE", "")
    names = _own_names(kernel, release.encode()) or [b"Linux", b"", release.encode(), b"", b"", b""]
    names[_MACHINE] = kernel.arch.machine.encode()
    return b"".join((name or b"(unknown)")[: _UTS_FIELD - 1].ljust(_UTS_FIELD, b"\0") for name in names)


def _own_names(kernel: Kernel, release: bytes) -> Optional[List[bytes]]:
    """The names in ``init_uts_ns``; None if it cannot be read.

    VMCOREINFO does not have their offset in old kernels, where a reference counter precedes them.
    """
    try:
        address = kernel.number("SYMBOL(init_uts_ns)").value & ALL
        found = kernel.read(address, _MAX_UTS_OFFSET + _UTS_NAMES * _UTS_FIELD)
    except Unavailable:
        return None
    for start in range(_MAX_UTS_OFFSET):
        fields = [found[start + at * _UTS_FIELD :][:_UTS_FIELD] for at in range(_UTS_NAMES)]
        names = [field.split(b"\0")[0] for field in fields]
        if names[0] == b"Linux" and names[2] == release:
            return names
    return None


def _phys_base(kernel: Kernel) -> int:
    try:
        return kernel.number("NUMBER(phys_base)").value
    except Unavailable:
        return 0
