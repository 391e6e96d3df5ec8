# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reads the headers of ELF files with bounds checks.

drgn opens ELF cores itself. This reads only what drgn does not provide, or not before it opens the file:
whether the file is complete, the physical ranges in it, whether it is a kernel's, and the build id of a
vmlinux.
"""

from __future__ import annotations

import re
import struct
from typing import BinaryIO, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Set, Tuple, Union

from kvintro.arch.others import elf_machine_name
from kvintro.errors import NotADump
from kvintro.source.content import Content, FileContent
from kvintro.text import size_text

ET_CORE = 4
PT_LOAD = 1
PT_NOTE = 4
PN_XNUM = 0xFFFF
#: The owner of the note that kvintro adds to files that it writes.
WRITER_NOTE = "KVINTRO"
NT_GNU_BUILD_ID = 3
SHT_NOTE = 7
_HEADER_SIZE = 64
# Elf64_Ehdr.e_ident[EI_DATA]: ELFDATA2LSB, ELFDATA2MSB
_BYTE_ORDERS = {1: "<", 2: ">"}
_PROGRAM_HEADER = "IIQQQQQQ"
_PROGRAM_HEADER_SIZE = 56
_SECTION_HEADER = "IIQQQQIIQQ"
_SECTION_HEADER_SIZE = 64
_NOTE = "III"  # namesz, descsz, type
_NOTE_SIZE = 12
_INCOMPLETE = 1  # in e_flags: makedumpfile.h:DUMP_ELF_INCOMPLETE
_ENTRIES = 1 << 12  # program headers read at once
# makedumpfile begins a new segment after excluding a megabyte or more: enough for 256 GB in such pieces.
_MAX_HEADERS = 1 << 18
_MAX_NOTES = 16 << 20  # bytes in total: 400 for each CPU, and VMCOREINFO
_MAX_NOTE_COUNT = 1 << 16  # a few for each CPU
_MAX_KINDS = 64
_MAX_NAME = 64
_MAX_ADDRESS = 1 << 52
_WRITER = re.compile(rb"kvintro [0-9][0-9A-Za-z.+]{0,31}")


class Segment(NamedTuple):
    """One PT_LOAD: ``filesz`` bytes at ``offset`` of the file are memory at ``vaddr`` and ``paddr``."""

    offset: int
    vaddr: int
    paddr: int
    filesz: int
    memsz: int


class ElfHeaders(NamedTuple):
    """Headers of a 64-bit ELF file.

    :ivar order: its byte order, as a character for :mod:`struct`.
    :ivar notes: (owner, type, content) of the first note of each owner and type.
    :ivar note_places: offset and size of each part of the file that has notes.
    :ivar truncated: whether segments extend beyond the end of the file.
    :ivar interrupted: whether makedumpfile says that it could not write all of it (``DUMP_ELF_INCOMPLETE``).
    """

    type: int
    machine: int
    segments: Tuple[Segment, ...]
    notes: Sequence[Tuple[str, int, bytes]]
    file_size: int
    truncated: bool
    order: str = "<"
    note_places: Tuple[Tuple[int, int], ...] = ()
    interrupted: bool = False

    def left_out(self) -> Iterator[Tuple[int, int]]:
        """Physical memory of segments without bytes in the file: pages that makedumpfile excluded.

        :return: first and last address of each range, in ascending order. kexec's cores have the image's
            memory in two segments; it counts as excluded if neither has bytes for it.
        """
        return _without_bytes(
            (part.paddr, part.filesz, max(part.filesz, part.memsz)) for part in self.segments
        )

    def lost(self) -> Iterator[Tuple[int, int]]:
        """Physical memory of segments whose bytes would be after the end of the file, in the same form."""
        return _without_bytes(
            (part.paddr, min(part.filesz, max(0, self.file_size - part.offset)), part.filesz)
            for part in self.segments
        )

    @property
    def build_id(self) -> Optional[str]:
        """The GNU build id in hex; None if there is none."""
        for name, kind, data in self.notes:
            if name == "GNU" and kind == NT_GNU_BUILD_ID:
                return data.hex()
        return None

    def note(self, name: str) -> Optional[bytes]:
        """The content of the first note of that owner; None if there is none."""
        for owner, _, data in self.notes:
            if owner == name:
                return data
        return None


def _without_bytes(parts: Iterable[Tuple[int, int, int]]) -> Iterator[Tuple[int, int]]:
    """First and last address of each range for which no part has bytes.

    :param parts: physical address, bytes in the file, and size of each part.
    """
    borders: List[Tuple[int, int, int]] = []  # address, changes in the number of parts and of bytes
    for first, size, whole in parts:
        borders += [(first, 1, 1), (first + size, 0, -1), (first + whole, -1, 0)]
    here = with_bytes = start = 0
    for address, more, bytes_too in sorted(borders):
        if here and not with_bytes and start < address <= _MAX_ADDRESS:
            yield start, address - 1
        here += more
        with_bytes += bytes_too
        start = address


def read_headers(file: Union[BinaryIO, Content], *, section_notes: bool = False) -> ElfHeaders:
    """Read an ELF file's program headers and notes.

    :param section_notes: also read notes in sections (a vmlinux has its build id in one).
    :raises NotADump: the file is not a 64-bit ELF file, ends within its headers, or claims headers that are
        larger than those of any real file.
    """
    content = file if isinstance(file, Content) else FileContent(file)
    head = _exactly(content, 0, _HEADER_SIZE, "the ELF header")
    if head[:4] != b"\x7fELF":
        raise NotADump("the file is not an ELF file")
    order = _BYTE_ORDERS.get(head[5])
    if head[4] not in (1, 2) or order is None:
        raise NotADump("invalid ELF header", "take the dump again")
    e_type, machine = struct.unpack_from(order + "HH", head, 16)
    if head[4] == 1:
        name = elf_machine_name(machine)
        raise NotADump(f"it is a 32-bit ELF file, for {name}", "kvintro reads kernels of 64 bits")
    phoff, shoff = struct.unpack_from(order + "QQ", head, 32)
    (flags,) = struct.unpack_from(order + "I", head, 48)
    phentsize, phnum, shentsize, shnum = struct.unpack_from(order + "HHHH", head, 54)
    if phnum == PN_XNUM and shoff:
        phnum = struct.unpack_from(order + "I", _exactly(content, shoff, 64, "the section headers"), 44)[0]
    if phnum > _MAX_HEADERS or (phnum and phentsize != _PROGRAM_HEADER_SIZE):
        raise NotADump("invalid ELF header", "take the dump again")
    segments: List[Segment] = []
    notes = _Notes(content, order)
    places: List[Tuple[int, int]] = []
    headers = _program_headers(content, order + _PROGRAM_HEADER, phoff, phnum)
    for p_type, _, offset, vaddr, paddr, filesz, memsz, _ in headers:
        if p_type == PT_LOAD:
            segments.append(Segment(offset, vaddr, paddr, filesz, memsz))
        elif p_type == PT_NOTE:
            notes.read(offset, filesz)
            places.append((offset, filesz))
    if section_notes and shoff and shentsize == _SECTION_HEADER_SIZE:
        sections = content.at(shoff, shnum * shentsize)
        whole = len(sections) // shentsize * shentsize
        for _, kind, _, _, offset, length, *_ in struct.iter_unpack(
            order + _SECTION_HEADER, sections[:whole]
        ):
            if kind == SHT_NOTE:
                notes.read(offset, length)
    truncated = not all(content.has_all(s.offset, s.filesz) for s in segments)
    found = tuple(segments), notes.found, content.size, truncated, order, tuple(places)
    interrupted = e_type == ET_CORE and bool(flags & _INCOMPLETE)
    return ElfHeaders(e_type, machine, *found, interrupted=interrupted)


def _program_headers(content: Content, form: str, offset: int, count: int) -> Iterator[Tuple[int, ...]]:
    """The entries of the table, which is read in pieces."""
    for first in range(0, count, _ENTRIES):
        size = min(_ENTRIES, count - first) * _PROGRAM_HEADER_SIZE
        at = offset + first * _PROGRAM_HEADER_SIZE
        yield from struct.iter_unpack(form, _exactly(content, at, size, "the program headers"))


class _Notes:
    """The notes of a file, the first of each owner and type.

    :ivar found: as (owner, type, content).
    """

    def __init__(self, content: Content, order: str) -> None:
        self._content = content
        self._order = order
        self._left = _MAX_NOTES
        self._count = 0
        self._known: Set[Tuple[str, int]] = set()
        self.found: List[Tuple[str, int, bytes]] = []

    def read(self, offset: int, size: int) -> None:
        """Read the notes in a part of the file.

        :raises NotADump: there are more than in a real file.
        """
        if size > self._left:
            raise NotADump(
                f"its headers say that the notes have {size_text(size)} or more", "take the dump again"
            )
        self._left -= max(size, _NOTE_SIZE)
        for owner, kind, data in parse_notes(self._content.at(offset, size), self._order):
            self._count += 1
            if self._count > _MAX_NOTE_COUNT:
                raise NotADump("it has more notes than a machine can have CPUs", "take the dump again")
            if (owner, kind) not in self._known and len(self._known) < _MAX_KINDS:
                self._known.add((owner, kind))
                self.found.append((owner, kind, bytes(data)))


def parse_notes(data: bytes, order: str = "<") -> Iterator[Tuple[str, int, memoryview]]:
    """(owner, type, content) of each note; stops at invalid data."""
    view = memoryview(data)
    at = 0
    while at + _NOTE_SIZE <= len(data):
        namesz, descsz, kind = struct.unpack_from(order + _NOTE, data, at)
        if not namesz and not descsz:
            return  # padding, or a hole
        name_at = at + _NOTE_SIZE
        desc_at = name_at + (namesz + 3 & ~3)
        at = desc_at + (descsz + 3 & ~3)
        if namesz > _MAX_NAME or desc_at + descsz > len(data):
            return
        name = data[name_at : name_at + namesz].rstrip(b"\0").decode("ascii", "replace")
        yield name, kind, view[desc_at : desc_at + descsz]


def writer_of(notes: bytes) -> str:
    """The version of kvintro in the note that it adds to its own files; empty if there is none."""
    for owner, _, data in parse_notes(notes):
        if owner == WRITER_NOTE and _WRITER.fullmatch(data):
            return bytes(data).decode("ascii")
    return ""


def _exactly(content: Content, offset: int, size: int, what: str) -> bytes:
    data = content.at(offset, size)
    if len(data) != size:
        raise NotADump(f"the file ends within {what}", "the dump is truncated; copy it again whole")
    return data
