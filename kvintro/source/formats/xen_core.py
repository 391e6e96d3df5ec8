# SPDX-License-Identifier: LGPL-2.1-or-later
"""Cores of Xen guests (`xl dump-core`, `virsh dump` with Xen): ELF with sections and no program headers.

Xen's docs/misc/dump-core-format.txt: ``.xen_pages`` has the pages, ``.xen_pfn`` the frame of each. For a
paravirtualised guest ``.xen_p2m`` also has the machine's frames, which its page tables contain.
"""

from __future__ import annotations

import struct
from typing import Dict, NamedTuple, Tuple

from kvintro.errors import NotADump
from kvintro.source.content import Content
from kvintro.source.dump import COPY_AGAIN, Format
from kvintro.source.elf import ET_CORE, parse_notes
from kvintro.source.formats.elf import MAGIC
from kvintro.source.formats.memory import MemoryDump
from kvintro.source.opened import Source
from kvintro.source.physical import PAGE
from kvintro.source.scattered import add_frames, scattered
from kvintro.source.stream import Index
from kvintro.source.vmcoreinfo import Chosen

_SECTION = struct.Struct("<IIQQQQ")  # name, type, flags, address, offset, size
_SECTION_SIZE = 64
_MAX_SECTIONS = 1000
_MAX_NAMES = 1 << 16
_MAX_NOTES = 1 << 16
_HEADER_NOTE, _VERSION_NOTE = 0x2000001, 0x2000002
_PV, _HVM = 0xF00FEBED, 0xF00FEBEE
_CHUNK = 1 << 20  # entries read at once
_FREE_PAGES = 1 << 16
PV_REMEDY = "use crash, which translates them; or have kdump write a dump in the guest"


class Section(NamedTuple):
    """Offset and size of a section."""

    offset: int
    size: int


def _sections(content: Content, head: bytes) -> Dict[bytes, Section]:
    """The sections of an ELF core without program headers, by name; empty if it is something else."""
    if not head.startswith(MAGIC + b"\2\1") or len(head) < 64:
        return {}
    (kind,), (offset,) = struct.unpack_from("<H", head, 16), struct.unpack_from("<Q", head, 40)
    segments, size, count, names_in = struct.unpack_from("<HHHH", head, 56)
    if kind != ET_CORE or segments or size != _SECTION_SIZE or not names_in < count <= _MAX_SECTIONS:
        return {}
    table = content.at(offset, count * size)
    if len(table) < count * size:
        return {}
    entries = [_SECTION.unpack_from(table, number * size) for number in range(count)]
    *_, names_at, names_size = entries[names_in]
    names = content.at(names_at, min(names_size, _MAX_NAMES))
    found: Dict[bytes, Section] = {}
    for name, _, _, _, at, length in entries:
        found.setdefault(names[name:].partition(b"\0")[0], Section(at, length))
    return found


def _fits(content: Content, head: bytes) -> bool:
    return b".xen_pages" in _sections(content, head)


class XenCoreDump(MemoryDump):
    """A core of a guest with hardware virtualisation (HVM, PVH).

    :raises NotADump: it is another kind of guest, or its tables are invalid.
    """

    def __init__(self, content: Content, path: str) -> None:
        sections = _sections(content, content.at(0, 64))
        notes = sections.get(b".note.Xen", Section(0, 0))
        self._writer = "Xen"
        for owner, kind, data in parse_notes(content.at(notes.offset, min(notes.size, _MAX_NOTES))):
            if owner == "Xen" and kind == _HEADER_NOTE and len(data) >= 32:
                mark, _, _, page = struct.unpack_from("<4Q", data)
                _check(mark, page, path)
            if owner == "Xen" and kind == _VERSION_NOTE and len(data) >= 16:
                self._writer = "Xen {}.{}".format(*struct.unpack_from("<2Q", data))
        if b".xen_p2m" in sections:
            _check(_PV, PAGE, path)
        frames = sections.get(b".xen_pfn")
        if frames is None:
            raise NotADump(f"{path} does not contain the numbers of its page frames (.xen_pfn)", COPY_AGAIN)
        index, complete = _index(content, frames, sections[b".xen_pages"])
        if not len(index.keys):
            raise NotADump(f"{path} is truncated before its first page", COPY_AGAIN)
        memory = scattered(content, index, complete=complete)
        super().__init__(content, path, "Xen core", [memory])
        self.complete = complete
        self.left_out = 0 if complete else None
        self._memory = index.pages * PAGE

    def opened(self, chosen: Chosen) -> Source:
        source = super().opened(chosen)
        source.writer, source.memory = self._writer, self._memory
        return source


def _check(mark: int, page: int, path: str) -> None:
    if mark == _PV:
        raise NotADump(
            f"{path} is the core of a paravirtualised guest of Xen (PV), whose page tables contain "
            "the machine's page frames instead of its own",
            PV_REMEDY,
        )
    if mark != _HVM or page != PAGE:
        raise NotADump(f"{path}: invalid Xen header", COPY_AGAIN)


def _index(content: Content, frames: Section, pages: Section) -> Tuple[Index, bool]:
    """An index of frames, and whether all are there."""
    import numpy

    index = Index()
    said = min(frames.size // 8, pages.size // PAGE)
    # A table larger than the file is a hole.
    count = min(said, _FREE_PAGES + content.real // 8)
    there = max(0, content.size - pages.offset) // PAGE
    complete = count <= there and count == said
    for first in range(0, min(count, there), _CHUNK):
        wanted = min(_CHUNK, min(count, there) - first)
        data = content.at(frames.offset + 8 * first, 8 * wanted)
        found = len(data) // 8
        numbers = numpy.frombuffer(data[: 8 * found], "<u8").astype(numpy.uint64)
        places = numpy.arange(first, first + found, dtype=numpy.uint64) * numpy.uint64(PAGE)
        add_frames(index, numbers, places + numpy.uint64(pages.offset))
        if found < wanted:
            complete = False
            break
    index.settle()
    return index, complete


FORMAT = Format("a core dump of Xen (xl dump-core)", _fits, form="xen", read=XenCoreDump)
