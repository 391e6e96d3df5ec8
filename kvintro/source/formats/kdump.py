# SPDX-License-Identifier: LGPL-2.1-or-later
"""Kdumps, written by makedumpfile and QEMU: plain, flattened, or split. libkdumpfile reads their memory."""

from __future__ import annotations

from functools import cached_property
from itertools import chain
from typing import Callable, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import drgn

from kvintro.arch import Architecture, by_machine
from kvintro.arch.others import OtherArchitecture, other_by_machine
from kvintro.errors import KvintroError, NotADump, NotInDump, UsageError, WrongArchitecture
from kvintro.source.content import Content, FileContent
from kvintro.source.dump import COPY_AGAIN, Dump, Format, begins
from kvintro.source.flattened import Flattened
from kvintro.source.formats.elf import cannot_be_read
from kvintro.source.kallsyms import READ_ERRORS
from kvintro.source.kdump import (
    SIGNATURES,
    Kdump,
    eraseinfo_of,
    examine_kdump,
    has_frame,
    held,
    notes_of,
    vmcoreinfo_of,
    worth_a_look,
)
from kvintro.source.libkdumpfile import set_core_dump
from kvintro.source.opened import Source
from kvintro.source.physical import Extent, Held, PhysicalMemory, segment
from kvintro.source.program import empty_program, hide_null, program_of
from kvintro.source.scan import pieces
from kvintro.source.vmcoreinfo import Chosen

PARTS_MISSING = "parts of a split dump were not given, and are shown as not in the dump; name each with -c"
#: dump/dump.c:create_header64
_QEMU_DOES_NOT_KNOW = "Unknown"
_MAX_FRAMES = 1 << 40  # 4 PB
_BEYOND = 1 << 64  # all physical addresses


class _Opened(NamedTuple):
    """A program that reads physical memory, and VMCOREINFO's text if the file has a note with it."""

    prog: drgn.Program
    note: Optional[bytes]


class KdumpDump(Dump):
    """A kdump, or a part of one.

    :raises NotADump: its headers are invalid.
    """

    packed = True

    def __init__(self, content: Content, path: str) -> None:
        flat = isinstance(content, Flattened)
        super().__init__(content, path, "flattened kdump" if flat else "kdump")
        self.kdump: Kdump = examine_kdump(content)
        self.complete = self.kdump.complete and (not isinstance(content, Flattened) or content.complete)
        self.left_out = self.kdump.left_out
        self.memory = self.kdump.memory
        self.level = self.kdump.level
        self.interrupted = self.kdump.interrupted

    @cached_property
    def first_look(self) -> _Opened:
        """A program for reading memory before the right VMCOREINFO is known."""
        try:
            prog = self._program(None)
            return _Opened(prog, prog["VMCOREINFO"].string_())
        except (NotADump, LookupError):
            # libkdumpfile rejects kdumps without a note, or whose note does not fit. Reading physical
            # memory does not need VMCOREINFO, but drgn requires it.
            text = (self.other or self.arch).minimal_vmcoreinfo(self.kdump.page)
            return _Opened(self._program(text), vmcoreinfo_of(self.content))

    @property
    def arch(self) -> Architecture:
        return by_machine(self.kdump.machine)

    @property
    def other(self) -> Optional[OtherArchitecture]:
        return other_by_machine(self.kdump.machine)

    @property
    def other_machine(self) -> Optional[str]:
        orders = self.other.orders if self.other is not None else {}
        found = [name for name, order in orders.items() if order == self.kdump.order]
        return found[0] if found else None

    @property
    def note(self) -> Optional[bytes]:
        # The text may be readable even if the pages are not.
        return self.first_look.note if self.other is None else vmcoreinfo_of(self.content)

    @cached_property
    def layouts(self) -> Sequence[PhysicalMemory]:
        prog = self.first_look.prog
        return [_OfProgram(prog, self.memory or 0, lambda: worth_a_look(self.content, self.kdump))]

    def notes(self) -> bytes:
        return notes_of(self.content)

    def eraseinfo(self) -> bytes:
        return eraseinfo_of(self.content)

    def held(self) -> Iterator[Held]:
        return held(self.content, self.kdump)

    def lost(self) -> Iterable[Tuple[int, int]]:
        from kvintro.source.cut_off import first_lost

        first = None if self.complete else first_lost(self.content, self.kdump)
        if first is None:
            return ()
        return ((max(one.start, first), one.end) for one in self.held() if one.there and one.end > first)

    def lacks(self, address: int) -> bool:
        return has_frame(self.content, self.kdump, address // self.kdump.page) is False

    def check_kernel(self) -> None:
        if self.kdump.machine == _QEMU_DOES_NOT_KNOW:
            raise WrongArchitecture(
                f"{self.path} is a kdump by QEMU, which does not name its architecture, and its "
                "page size may be wrong",
                "take the dump as ELF: dump-guest-memory without a format, virsh dump --format elf",
            )
        if self.other is None:
            by_machine(self.kdump.machine)

    def opened(self, chosen: Chosen) -> Source:
        prog = self.first_look.prog
        if chosen.text != prog["VMCOREINFO"].string_():
            prog = self.program(chosen.text)
        hide_null(prog)
        return self.source(prog, chosen)

    def program(self, vmcoreinfo: bytes) -> drgn.Program:
        return self._program(vmcoreinfo)

    def _program(self, vmcoreinfo: Optional[bytes]) -> drgn.Program:
        prog = empty_program(vmcoreinfo, self.other or self.arch)
        try:
            if self.complete:
                set_core_dump(prog, self._descriptor)
            else:
                from kvintro.source.cut_off import open_cut_kdump

                open_cut_kdump(prog, self._descriptor, self.content, self.kdump)
        except NotADump as error:
            raise NotADump(f"{self.path}: {error.what}", error.remedy) from error
        except KvintroError:
            raise
        except Exception as error:
            raise cannot_be_read(self, error) from error
        return prog

    @cached_property
    def _descriptor(self) -> int:
        """The file, rearranged if it is a flattened one that libkdumpfile cannot read."""
        content = self.content
        if isinstance(content, Flattened) and not content.plain_enough:
            self._rearranged = content.rearranged()  # stays open as long as this object exists
            return self._rearranged.fileno()
        assert isinstance(content, (FileContent, Flattened))
        return content.descriptor


class _OfProgram(PhysicalMemory):
    """The physical memory of a program.

    :param size: its size in bytes.
    :param ranges: ranges (start, end exclusive) that contain all of it.
    """

    def __init__(
        self, prog: drgn.Program, size: int, ranges: Callable[[], Iterable[Tuple[int, int]]]
    ) -> None:
        super().__init__([Extent(0, size, 0)])
        self._prog = prog
        self._ranges = ranges

    def read(self, address: int, size: int) -> bytes:
        try:
            data: bytes = self._prog.read(address, size, True)
            return data
        except READ_ERRORS as error:
            raise NotInDump(address, size, physical=True) from error

    def pieces(self) -> Iterator[Tuple[int, bytes]]:
        for start, end in self._ranges():
            yield from pieces(lambda address, size: self._prog.read(address, size, True), start, end)


# Split dumps


class SplitKdump(Dump):
    """The files of ``makedumpfile --split``, or some of them.

    Each has the headers and bitmaps of the whole dump, and the pages of its own range.

    :raises NotADump: they do not belong together.
    :raises UsageError: one of them is not a part of a split dump.
    """

    packed = True

    def __init__(self, dumps: Sequence[Dump]) -> None:
        parts = [_part(dump) for dump in dumps]
        more = f" and {len(parts) - 1} more" if len(parts) > 1 else ""
        super().__init__(parts[0].content, parts[0].path + more, "split kdump")
        self._parts = parts
        self.size = sum(part.size for part in parts)
        self.left_out = _sum([part.left_out for part in parts])
        self.memory = _sum([part.memory for part in parts])
        extents = _extents(parts)
        touching = all(one.address + one.size == two.address for one, two in zip(extents, extents[1:]))
        machine = max(part.kdump.frames * part.kdump.page for part in parts)
        last = extents[-1] if extents else Extent(0, 0, 0)
        first = extents[0].address if extents else 0
        self._have_all = touching and first == 0 and last.address + last.size >= machine
        self._whole = all(part.complete for part in parts)
        self.complete = self._whole and self._have_all
        for part in parts:
            if part.note != parts[0].note:
                raise NotADump(
                    f"{part.path} and {parts[0].path} are parts of different dumps",
                    "name the parts of one dump",
                )
        self.level = parts[0].level
        self.interrupted = any(part.interrupted for part in parts)
        self._memory = _OfParts(parts, extents)

    @property
    def arch(self) -> Architecture:
        return self._parts[0].arch

    @property
    def other(self) -> Optional[OtherArchitecture]:
        return self._parts[0].other

    @property
    def other_machine(self) -> Optional[str]:
        return self._parts[0].other_machine

    @property
    def note(self) -> Optional[bytes]:
        return self._parts[0].note

    @cached_property
    def layouts(self) -> Sequence[PhysicalMemory]:
        return [self._memory]

    def notes(self) -> bytes:
        return self._parts[0].notes()

    def held(self) -> Iterator[Held]:
        return chain.from_iterable(part.held() for part in self._parts)

    def eraseinfo(self) -> bytes:
        return b"".join(part.eraseinfo() for part in self._parts)

    def lost(self) -> Iterator[Tuple[int, int]]:
        for part in self._parts:
            yield from part.lost()
        if self._have_all:
            return
        # Each part has the bitmaps of the whole dump.
        first = self._parts[0]
        bounds = [0, *(at for e in self._memory.extents for at in (e.address, e.address + e.size)), _BEYOND]
        missing = list(zip(bounds[0::2], bounds[1::2]))
        for one in held(first.content, first.kdump._replace(part=None)):
            if one.there:
                yield from _overlaps(one.start, one.end, missing)

    @property
    def real(self) -> int:
        return sum(part.real for part in self._parts)

    def program(self, vmcoreinfo: bytes) -> drgn.Program:
        return program_of(self._memory, vmcoreinfo)

    def refusal(self, error: NotADump) -> NotADump:
        if self.note is not None:
            return error
        return NotADump(f"{self.path} has no VMCOREINFO note, and {error.what}", error.remedy)

    def source(self, prog: drgn.Program, chosen: Chosen) -> Source:
        source = super().source(prog, chosen)
        missing = [] if self._have_all else [PARTS_MISSING]
        source.warnings = [*chosen.warnings, *missing, *([] if self._whole else [self.shortened])]
        return source


def is_part(dump: Dump) -> bool:
    """Whether a file is a part of a split dump."""
    return isinstance(dump, KdumpDump) and dump.kdump.part is not None


def _part(dump: Dump) -> KdumpDump:
    if isinstance(dump, KdumpDump) and dump.kdump.part is None and not dump.kdump.complete:
        raise NotADump(f"{dump.path} is truncated within its headers", COPY_AGAIN)
    if not isinstance(dump, KdumpDump) or dump.kdump.part is None:
        raise UsageError(
            f"more than one dump is named, and {dump.path} is not a part of a split one",
            "name one dump with -c; kvintro diff A B compares two",
        )
    dump.check_kernel()
    return dump


def _extents(parts: Sequence[KdumpDump]) -> List[Extent]:
    """The memory of all parts, in ascending order; an extent's ``offset`` is the number of its part."""
    extents: List[Extent] = []
    for index, part in enumerate(parts):
        assert part.kdump.part is not None
        first, behind = part.kdump.part
        if not first <= behind <= _MAX_FRAMES:
            raise NotADump(
                f"{part.path}: invalid range of page frames, {first:#x} to {behind:#x}", COPY_AGAIN
            )
        page = part.kdump.page
        extents.append(Extent(first * page, (behind - first) * page, index))
    extents = sorted(extent for extent in extents if extent.size)
    for one, two in zip(extents, extents[1:]):
        if two.address < one.address + one.size:
            raise NotADump(
                f"{parts[two.offset].path} has memory that another part has too",
                "name each part of one dump once",
            )
    return extents


class _OfParts(PhysicalMemory):
    """The memory of several files; an extent's ``offset`` is the number of the file."""

    def __init__(self, parts: Sequence[KdumpDump], extents: List[Extent]) -> None:
        super().__init__(extents)
        self._parts = parts

    def _read(self, extent: Extent, address: int, size: int) -> bytes:
        try:
            data: bytes = self._parts[extent.offset].first_look.prog.read(address, size, True)
            return data
        except READ_ERRORS:
            return b""

    def pieces(self) -> Iterator[Tuple[int, bytes]]:
        def read(address: int, size: int) -> bytes:
            return segment(self)(address, size, 0, True)

        for extent in self.extents:
            part = self._parts[extent.offset]
            for start, end in worth_a_look(part.content, part.kdump):
                yield from pieces(read, start, end)


def _overlaps(start: int, end: int, ranges: Sequence[Tuple[int, int]]) -> Iterator[Tuple[int, int]]:
    for low, high in ranges:
        if max(start, low) < min(end, high):
            yield max(start, low), min(end, high)


def _sum(sizes: Sequence[Optional[int]]) -> Optional[int]:
    """The sum; None if any is unknown."""
    known = [size for size in sizes if size is not None]
    return sum(known) if len(known) == len(sizes) else None


FORMAT = Format("a kdump", begins(*SIGNATURES), form="kdump", read=KdumpDump)
