# SPDX-License-Identifier: LGPL-2.1-or-later
"""Dumps: what kind of file it is, whether it is whole, and the program that reads it.

Formats are told apart by content (:mod:`kvintro.source.formats`). drgn reads ELF itself and kdump through
libkdumpfile, of a split one each part by a program of its own; flattened ELF and files of physical memory are
read by :mod:`kvintro.source.physical`, and what has no VMCOREINFO is looked through for it
(:mod:`kvintro.source.vmcoreinfo`).
"""

from __future__ import annotations

import logging
import os
import sys
from bisect import bisect_right
from contextlib import ExitStack
from itertools import accumulate
from typing import (
    BinaryIO,
    Callable,
    Dict,
    Iterable,
    Iterator,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
)

import drgn

from kvintro.arch import architectures, by_elf_machine, by_machine
from kvintro.arch.x86_64 import START_KERNEL_MAP
from kvintro.errors import KvintroError, NoSuchSource, NotADump, NotInDump, UsageError, WrongVmcoreinfo
from kvintro.model import DUMP_FORMATS
from kvintro.source import Source, parse_vmcoreinfo
from kvintro.source.content import Content, FileContent
from kvintro.source.elf import ET_CORE, ElfHeaders, Segment, read_headers
from kvintro.source.files import keep
from kvintro.source.flattened import Flattened
from kvintro.source.formats import READS, recognise
from kvintro.source.kallsyms import READ_ERRORS, Kallsyms, KallsymsError, vmcoreinfo_symbols
from kvintro.source.kdump import PAGE, Kdump, examine_kdump, has_frame, vmcoreinfo_of, worth_a_look
from kvintro.source.note import parse, what_is_missing
from kvintro.source.physical import (
    AvmlFile,
    Extent,
    MemoryFile,
    PhysicalMemory,
    open_lime,
    raw_layouts,
    segment,
)
from kvintro.source.scan import find_kallsyms, pieces
from kvintro.source.spool import spooled
from kvintro.source.translation import prepare
from kvintro.source.vmcoreinfo import (
    Chosen,
    Encrypted,
    Kernels,
    MemorySearch,
    NotBelieved,
    Search,
    Wanted,
    build_ids_in,
    choose,
    found_at,
    identity_of,
    in_silence,
    text_at,
)

_TRUNCATED = "the dump is truncated: what lies behind its end shows as not in the dump"
_GAP = (
    "whether this file has the gap below 4 GB is not known, as max_pfn has no name in its kernel: what lies "
    "above the gap may be elsewhere; convert it to LiME or ELF, which say what lies where"
)
PARTS_MISSING = "parts of a split dump were not given, and show as not in the dump; name each with a -c"
_COPY_AGAIN = "copy it again whole"
_MAX_FRAMES = 1 << 40  # 4 PB
#: How standard input is named with -c.
STANDARD_INPUT = "-"
NOTHING_WANTED = Wanted()
# How many bytes are looked through for VMCOREINFO: more for what really is in the file. Compressed files have
# up to some thirty times as much memory, and a hostile one would have any number.
_FREE_SEARCH = 256 << 20
_SEARCH_TO_FILE, _PACKED_SEARCH_TO_FILE = 2, 32
_MAX_NOTES = 64 << 10
_LOOK, _PACKED_LOOK = 4 << 30, 256 << 20
# Enough for drgn and libkdumpfile (which wants a number) to read physical memory.
MINIMAL_VMCOREINFO = (
    b"OSRELEASE=5.4.0\nPAGESIZE=4096\nKERNELOFFSET=0\n"
    b"NUMBER(pgtable_l5_enabled)=0\nSYMBOL(swapper_pg_dir)=ffffffff81000000\n"
)


class DumpFile(NamedTuple):
    """What kind of dump a file is.

    :ivar format: as in :class:`~kvintro.source.Source`.
    :ivar content: what is in it; of a flattened one, rearranged.
    :ivar complete: None if that is not known.
    :ivar left_out: bytes of memory that the machine had and the dump's maker left out; None if not known.
    :ivar headers: of an ELF file.
    :ivar kdump: of a kdump file.
    """

    format: str
    size: int
    content: Content
    complete: Optional[bool] = None
    left_out: Optional[int] = None
    headers: Optional[ElfHeaders] = None
    kdump: Optional[Kdump] = None


#: What formats are called that are read as they are.
_MEMORY = {"lime": "LiME", "avml": "AVML", "raw": "raw memory"}


def examine(file: BinaryIO, path: str, form: Optional[str] = None) -> DumpFile:
    """Tell what kind of dump a file is.

    :param form: one of :data:`~kvintro.model.DUMP_FORMATS` if it is not to be told from the content.
    :raises NotADump: it is none; or its headers say what cannot be.
    """
    try:
        return _examined(FileContent(file), path, form)
    except NotADump as error:
        if path in error.what:
            raise
        raise NotADump(f"{path}: {error.what}", error.remedy) from error


def _examined(content: Content, path: str, form: Optional[str]) -> DumpFile:
    size, prefix, whole = content.size, "", True
    if form == "raw":
        return DumpFile(_MEMORY[form], size, content)
    found = recognise(content)
    if found.form == "flattened":
        assert isinstance(content, FileContent)
        content = Flattened(content)
        prefix, whole, found = "flattened ", content.complete, recognise(content)
        if found.form not in ("elf", "kdump"):
            if not whole:
                raise NotADump(f"{path}: the flattened dump is truncated before its header", _COPY_AGAIN)
            raise NotADump(f"{path} is flattened, and not a kernel dump", "take the dump again")
    if form not in (None, found.form):
        raise NotADump(
            f"{path} does not begin as {form} does",
            "run it without --format-in: the content tells the format",
        )
    if found.form == "elf":
        headers = read_headers(content)
        if not whole and not headers.segments:
            raise NotADump(
                f"{path}: the flattened dump is truncated before its program headers, which come last, and "
                "nothing else says where its memory was",
                _COPY_AGAIN,
            )
        left_out = sum(last - first + 1 for first, last in headers.left_out())
        return DumpFile(prefix + "ELF", size, content, whole and not headers.truncated, left_out, headers)
    if found.form == "kdump":
        kdump = examine_kdump(content)
        whole = whole and kdump.complete
        return DumpFile(prefix + "kdump", size, content, whole, kdump.left_out, kdump=kdump)
    if found.form is not None:
        return DumpFile(_MEMORY[found.form], size, content)
    raise NotADump(f"{path} is {found.name}", found.advice)


def open_core(
    files: Mapping[str, BinaryIO],
    paths: Sequence[str],
    wanted: Wanted = NOTHING_WANTED,
    *,
    form: Optional[str] = None,
    search: Search = in_silence,
) -> Source:
    """Open a dump.

    :param files: the open files by their paths. The caller closes them.
    :param paths: of the dump's file, or of the parts of a split one in any order; standard input may be among
        them, and is read from here.
    :param wanted: which VMCOREINFO to use, if the user says.
    :param form: one of :data:`~kvintro.model.DUMP_FORMATS` if it is not to be told from the content.
    :param search: watches the search for VMCOREINFO, see :class:`~kvintro.source.vmcoreinfo.MemorySearch`.
    :raises SourceError: with the reason and the remedy.
    """
    assert form is None or form in DUMP_FORMATS
    with ExitStack() as stack:
        opened = dict(files)
        if STANDARD_INPUT in paths:
            opened[STANDARD_INPUT] = stack.enter_context(_open_standard_input(form))
        parts = [_part(stack, opened[path], path, form) for path in paths]
        _, path, dump = parts[0]
        if len(parts) > 1 or (dump.kdump is not None and dump.kdump.part is not None):
            source = _open_split(parts, wanted, search)
        elif dump.headers is not None:
            source = _open_elf(parts[0], dump.headers, wanted, search)
        elif dump.kdump is not None:
            source = _open_kdump(parts[0], dump.kdump, wanted, search)
        else:
            source = _open_memory(path, dump, wanted, search, forced=form is not None)
        source.kept = tuple(keep(file, path) for path, file in opened.items())
        return source


def _open_standard_input(form: Optional[str]) -> BinaryIO:
    """Standard input as a file: itself, or a copy of what comes through a pipe."""

    def check(file: BinaryIO) -> None:
        if form != "raw":
            found = recognise(FileContent(file))
            if found.form == "raw" or found.form is None:
                raise NotADump(f"standard input is {found.name}", found.advice)

    if sys.stdin is None:
        raise NoSuchSource("standard input is closed", "give it a dump: < FILE, or name one with -c FILE")
    return spooled(0, check)


def _part(stack: ExitStack, file: BinaryIO, path: str, form: Optional[str]) -> _Part:
    """A file and what it is; of a flattened kdump that libkdumpfile cannot read, the file rearranged."""
    path = "standard input" if path == STANDARD_INPUT else path
    dump = examine(file, path, form)
    if dump.kdump is not None and isinstance(dump.content, Flattened) and not dump.content.plain_enough:
        file = stack.enter_context(dump.content.rearranged())
    return _Part(file, path, dump)


def _open_elf(part: _Part, headers: ElfHeaders, wanted: Wanted, search: Search) -> Source:
    """ELF files, read by drgn."""
    file, path, dump = part
    _check_elf(path, headers)
    ram = sorted((s.paddr, s.paddr + max(s.filesz, s.memsz)) for s in headers.segments)
    memory = MemorySearch(
        [_memory_of_elf(dump)],
        watch=search,
        lacks=_outside(ram, dump.complete),
        limit=_FREE_SEARCH + _SEARCH_TO_FILE * dump.content.real,
    )
    chosen = _choose(memory, path, wanted, headers.note("VMCOREINFO"), dump.complete)
    prog = _program(file, path, dump, chosen.text)
    if dump.left_out:
        _hide_left_out(prog, headers)
    hide_null(prog)
    return _source(prog, part, chosen, memory, headers.segments)


def _open_kdump(part: _Part, kdump: Kdump, wanted: Wanted, search: Search) -> Source:
    """kdump files, read by drgn through libkdumpfile."""
    file, path, dump = part
    by_machine(kdump.machine)
    prog, note = _with_its_note(part)
    of_program = _OfProgram(prog, kdump.memory or 0, lambda: worth_a_look(dump.content, kdump))
    memory = MemorySearch(
        [of_program],
        watch=search,
        lacks=lambda address: has_frame(dump.content, kdump, address // PAGE) is False,
        limit=_FREE_SEARCH + _PACKED_SEARCH_TO_FILE * dump.content.real,
    )
    chosen = _choose(memory, path, wanted, note, dump.complete)
    if chosen.text != prog["VMCOREINFO"].string_():
        prog = _program(file, path, dump, chosen.text)
    hide_null(prog)
    return _source(prog, part, chosen, memory)


def _with_its_note(part: _Part) -> Tuple[drgn.Program, Optional[bytes]]:
    """A program that reads a kdump's physical memory, and VMCOREINFO's text if the file has a note of it."""
    try:
        prog = _program(*part, None)
        return prog, prog["VMCOREINFO"].string_()
    except (NotADump, LookupError):
        # libkdumpfile refuses kdumps without the note, and those whose note does not fit. To read physical
        # memory none is needed, but drgn wants one.
        return _program(*part, MINIMAL_VMCOREINFO), vmcoreinfo_of(part.dump.content)


def _outside(ranges: Sequence[Tuple[int, int]], known: Optional[bool]) -> Callable[[int], bool]:
    """Whether an address is in none of the ranges (start, end exclusive), which are all if that is known.

    :param ranges: in ascending order. There can be 200,000, and each entry of a page table is looked for.
    """
    starts = [start for start, _ in ranges]
    ends = list(accumulate((end for _, end in ranges), max))  # they may overlap

    def outside(address: int) -> bool:
        before = bisect_right(starts, address)
        return bool(known) and (not before or address >= ends[before - 1])

    return outside


def _choose(
    memory: MemorySearch, path: str, wanted: Wanted, note: Optional[bytes], complete: Optional[bool]
) -> Chosen:
    """The VMCOREINFO of a format that has a note for it.

    :param complete: False for a dump that was cut off.
    """
    try:
        return choose(memory, path, wanted, note, "its memory")
    except NotADump as error:
        if note is not None:
            raise
        remedy = error.remedy if complete is not False else "the dump is truncated; copy it again whole"
        raise NotADump(f"{path} has no VMCOREINFO note, and {error.what}", remedy) from None


def _source(
    prog: drgn.Program,
    part: _Part,
    chosen: Chosen,
    memory: MemorySearch,
    segments: Tuple[Segment, ...] = (),
) -> Source:
    _, path, dump = part
    return Source(
        prog,
        "core",
        path,
        dump.format,
        dump.size,
        dump.complete,
        dump.left_out,
        _memory_in(dump),
        segments=segments,
        vmcoreinfo_origin=chosen.origin,
        kernels=_kernels_in(memory, chosen, dump.format),
        warnings=[*chosen.warnings, *([] if dump.complete else [_TRUNCATED])],
    )


def _kernels_in(memory: MemorySearch, chosen: Chosen, form: str) -> Callable[[Search], Kernels]:
    """What looks for all kernels in a dump. Where the dump's note was taken, opening it took no search,
    and this one ends early; compressed memory takes ten times as long to look through.
    """
    limit = None
    if chosen.address is None:
        limit = _PACKED_LOOK if form.endswith("kdump") else _LOOK
    return lambda watch: memory.kernels(watch, limit)


def _memory_in(dump: DumpFile) -> Optional[int]:
    if dump.kdump is not None:
        return dump.kdump.memory
    return sum(extent.size for extent in _extents(dump.headers)) if dump.headers is not None else None


def _extents(headers: ElfHeaders) -> List[Extent]:
    """The physical memory that an ELF file has."""
    extents: List[Extent] = []
    for part in sorted(headers.segments, key=lambda s: (s.paddr, -s.filesz)):
        # kexec's have the image's memory twice, by its own addresses and as RAM.
        behind = extents[-1].address + extents[-1].size if extents else 0
        skip = max(0, behind - part.paddr)
        size = min(part.filesz, headers.file_size - part.offset)
        if size > skip:
            extents.append(Extent(part.paddr + skip, size - skip, part.offset + skip))
    return extents


def _memory_of_elf(dump: DumpFile) -> MemoryFile:
    assert dump.headers is not None
    return MemoryFile(dump.content, _extents(dump.headers))


def _program(file: BinaryIO, path: str, dump: DumpFile, vmcoreinfo: Optional[bytes]) -> drgn.Program:
    if dump.headers is not None and (
        isinstance(dump.content, Flattened) or not any(s.paddr or s.vaddr for s in dump.headers.segments)
    ):
        # drgn does not know flattened ELF. And a machine whose RAM is one piece from 0 on, as QEMU writes it,
        # it takes for a file without physical addresses.
        assert vmcoreinfo is not None
        return program_of(_memory_of_elf(dump), vmcoreinfo)
    # Its advice on flattened files would stand above every report; what matters raises an exception anyway.
    logging.getLogger("drgn").setLevel(logging.ERROR)
    prog = _with_vmcoreinfo(vmcoreinfo)
    try:
        # By descriptor, as this process may not be allowed to open it again. The program closes it.
        file.seek(0)
        if dump.kdump is None or dump.complete:
            prog.set_core_dump(os.dup(file.fileno()))
        else:
            from kvintro.source.cut_off import open_cut_kdump

            open_cut_kdump(prog, file, dump.content, dump.kdump, vmcoreinfo)
    except NotADump as error:
        raise NotADump(f"{path}: {error.what}", error.remedy) from error
    except KvintroError:
        raise
    except Exception as error:
        # drgn and libkdumpfile report a damaged file with whatever fits: ValueError, OSError, FaultError.
        raise NotADump(
            f"{path} cannot be read as {dump.format}: {one_line(error)}",
            "take or copy the dump again" if dump.complete else "the dump is truncated; copy it again whole",
        ) from error
    return prog


# Split dumps


class _Part(NamedTuple):
    """One file of a dump."""

    file: BinaryIO
    path: str
    dump: DumpFile


class _OfParts(PhysicalMemory):
    """The memory of several programs; an extent's ``offset`` says of which.

    :param parts: the files that they read.
    """

    def __init__(self, progs: Sequence[drgn.Program], parts: Sequence[_Part], extents: List[Extent]) -> None:
        super().__init__(extents)
        self._progs = progs
        self._parts = parts

    def _read(self, extent: Extent, address: int, size: int) -> bytes:
        try:
            data: bytes = self._progs[extent.offset].read(address, size, True)
            return data
        except READ_ERRORS:
            return b""

    def pieces(self) -> Iterator[Tuple[int, bytes]]:
        def read(address: int, size: int) -> bytes:
            return segment(self)(address, size, 0, True)

        for extent in self.extents:
            dump = self._parts[extent.offset].dump
            assert dump.kdump is not None
            for start, end in worth_a_look(dump.content, dump.kdump):
                yield from pieces(read, start, end)


def _open_split(parts: Sequence[_Part], wanted: Wanted, search: Search) -> Source:
    """The files of ``makedumpfile --split``, or some of them.

    Each has the whole dump's headers and bitmaps, and the pages of a range of its own.
    """
    extents: List[Extent] = []
    machine = 0
    for index, (_, path, dump) in enumerate(parts):
        if dump.kdump is not None and dump.kdump.part is None and not dump.kdump.complete:
            raise NotADump(f"{path} is truncated within its headers", _COPY_AGAIN)
        if dump.kdump is None or dump.kdump.part is None:
            raise UsageError(
                f"more than one dump is named, and {path} is no part of a split one",
                "name one dump with -c; kvintro diff A B compares two",
            )
        by_machine(dump.kdump.machine)
        first, behind = dump.kdump.part
        if not first <= behind <= _MAX_FRAMES:
            raise NotADump(f"{path}: its page frames {first:#x} to {behind:#x} make no sense", _COPY_AGAIN)
        extents.append(Extent(first * PAGE, (behind - first) * PAGE, index))
        machine = max(machine, dump.kdump.frames * PAGE)
    extents = sorted(extent for extent in extents if extent.size)
    whole, end = True, 0
    for extent in extents:
        if extent.address < end:
            raise NotADump(
                f"{parts[extent.offset].path} has memory that another part has too",
                "name each part of one dump once",
            )
        whole &= extent.address == end
        end = extent.address + extent.size
    whole &= end >= machine
    progs, notes = zip(*map(_with_its_note, parts))
    for note, part in zip(notes, parts):
        if note != notes[0]:
            raise NotADump(
                f"{part.path} is not of the dump that {parts[0].path} is of", "name one dump's parts"
            )
    of_parts = _OfParts(progs, parts, extents)
    real = sum(part.dump.content.real for part in parts)
    memory = MemorySearch([of_parts], watch=search, limit=_FREE_SEARCH + _PACKED_SEARCH_TO_FILE * real)
    chosen = _choose(memory, parts[0].path, wanted, notes[0], None)
    complete = all(part.dump.complete for part in parts)
    warnings = [] if whole else [PARTS_MISSING]
    more = f" and {len(parts) - 1} more" if len(parts) > 1 else ""
    return Source(
        program_of(of_parts, chosen.text),
        "core",
        parts[0].path + more,
        "split kdump",
        sum(part.dump.size for part in parts),
        complete and whole,
        _sum([part.dump.left_out for part in parts]),
        _sum([part.dump.kdump.memory for part in parts if part.dump.kdump is not None]),
        vmcoreinfo_origin=chosen.origin,
        kernels=_kernels_in(memory, chosen, "split kdump"),
        warnings=[*chosen.warnings, *warnings, *([] if complete else [_TRUNCATED])],
    )


def _sum(sizes: Sequence[Optional[int]]) -> Optional[int]:
    """None where one is not known."""
    known = [size for size in sizes if size is not None]
    return sum(known) if len(known) == len(sizes) else None


class _OfProgram(PhysicalMemory):
    """What a program has of physical memory.

    :param size: bytes of it.
    :param ranges: where it is, at most.
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


# Files of physical memory


def _open_memory(path: str, dump: DumpFile, wanted: Wanted, search: Search, *, forced: bool) -> Source:
    """Raw memory, LiME and AVML, by a reader of ours."""
    layouts: List[PhysicalMemory]
    if dump.format == "LiME":
        layouts = [open_lime(dump.content, path)]
    elif dump.format == "AVML":
        layouts = [AvmlFile(dump.content, path)]
    else:
        layouts = raw_layouts(dump.content)
    first = layouts[0]
    # Of a raw file it is not known how long it should be.
    whole = first.complete and dump.format != "raw memory"
    ram = [(extent.address, extent.address + extent.size) for extent in first.extents]
    factor = _PACKED_SEARCH_TO_FILE if dump.format == "AVML" else _SEARCH_TO_FILE
    memory = MemorySearch(
        layouts,
        watch=search,
        lacks=_outside(ram, whole),
        limit=_FREE_SEARCH + factor * dump.content.real,
    )
    try:
        chosen = choose(memory, path, wanted, None, "it")
    except NotADump as error:
        what, remedy = f"{path}: {error.what}", error.remedy
        if isinstance(error, Encrypted):
            what = error.what
            if dump.format == "raw memory" and not forced:
                what = f"{path} is not a kernel dump, or {what[len(path) + 2 :]}"
        elif not first.complete:
            remedy = "the dump is truncated; copy it again whole"
        elif isinstance(error, NotBelieved):
            remedy = "is it whole? copy or take it again"
        elif dump.format == "raw memory" and not forced:
            what, remedy = f"{path} is not a kernel dump: as raw memory, {error.what}", READS
        raise NotADump(what, remedy) from None
    right, nameless = _by_max_pfn([layouts[number] for number in chosen.layouts], chosen.text)
    if chosen.address is not None:
        # Where it was by the first layout is where the file has it.
        chosen = chosen._replace(origin=found_at(right.moved(first, chosen.address)))
    warnings = [*chosen.warnings]
    warnings += [_TRUNCATED] if not right.complete else []
    warnings += [_GAP] if nameless else []
    return Source(
        program_of(right, chosen.text),
        "core",
        path,
        dump.format,
        dump.size,
        # Whether more should follow only the kernel knows: see check_end().
        None if right.complete else False,
        None if dump.format != "raw memory" else 0,
        memory=sum(extent.size for extent in right.extents),
        segments=tuple(Segment(e.offset, 0, e.address, e.size, e.size) for e in right.extents),
        vmcoreinfo_origin=chosen.origin,
        kernels=_kernels_in(memory, chosen, dump.format),
        warnings=warnings,
    )


def check_end(source: Source) -> None:
    """Whether a file of physical memory is whole, by what its kernel says of the end of RAM."""
    if source.format not in _MEMORY.values() or source.complete is False or source.kallsyms is None:
        return
    address = source.kallsyms.lookup("max_pfn")
    if address is None:
        return
    last = max(segment.paddr + segment.filesz for segment in source.segments)
    try:
        end = source.prog.read_u64(address) << 12
    except READ_ERRORS:
        # The image itself may go on behind the end of the file, and have this variable there.
        try:
            end = address - START_KERNEL_MAP + int(source.vmcoreinfo["NUMBER(phys_base)"]) + 8
        except (KeyError, ValueError):
            return
        if end <= last:
            return
    if end > last and source.format == "AVML":
        return  # It leaves out zeros, and may have done so at the end.
    # RAM may begin late and have gaps, but the file has all up to its end.
    source.complete = end <= last
    if not source.complete:
        source.warnings.append(_TRUNCATED)


def _with_vmcoreinfo(text: Optional[bytes]) -> drgn.Program:
    """An empty program. With a platform given, drgn opens kdumps whose header has an empty utsname, as QEMU
    writes them.

    :raises NotADump: drgn does not accept the text.
    """
    try:
        return drgn.Program(drgn.Platform(drgn.Architecture.X86_64), vmcoreinfo=text)
    except Exception as error:  # what it parses has more rules than kvintro checks
        raise NotADump(
            f"drgn does not accept this VMCOREINFO: {one_line(error)}",
            "give the whole text of the boot that was dumped with --vmcoreinfo FILE",
        ) from error


def check_vmcoreinfo(source: Source, given: Optional[str]) -> None:
    """Compare VMCOREINFO with what needs symbols to be found: the kernel's own copy of it, and the build id.

    Before there were symbols, only what leads to the memory was compared. A dump's note that differs from the
    kernel's copy yields to it.

    :param given: the file of ``--vmcoreinfo``, if the text is from there.
    :raises WrongVmcoreinfo: the file's text differs.
    """
    if source.kallsyms is None:
        return
    own = _kernels_copy(source)
    different = sorted(key for key, value in own.items() if source.vmcoreinfo.get(key) != value)
    if different:
        key = different[0]
        said = source.vmcoreinfo.get(key)
        reason = f"it says {key}={said}" if said is not None else f"it has no {key}"
        reason += f", and the kernel's own copy says {key}={own[key]}"
        if given is not None:
            raise WrongVmcoreinfo(
                f"{given} is not the VMCOREINFO of {source.label}: {reason}",
                "run it without --vmcoreinfo: the kernel's own copy is in the memory",
            )
        origin = source.vmcoreinfo_origin
        source.warnings.append(
            f"VMCOREINFO ({origin}) was not believed: {reason}; the kernel's own copy is used"
        )
        source.vmcoreinfo, source.vmcoreinfo_origin = own, "the kernel's own copy in memory"
    if source.kind != "live" or given is not None:
        _check_build_id(source, given)


def _kernels_copy(source: Source) -> Dict[str, str]:
    """The lines of the text that the kernel keeps ready for a crash; none if it cannot be read.

    A copy that names other page tables than those that led to it is damaged, and is none either.
    kernel/crash_core.c:crash_save_vmcoreinfo_init, kernel/vmcore_info.c since 6.9. When it crashes,
    crash_save_vmcoreinfo() adds a line to it, CRASHTIME, before it is dumped.
    """
    assert source.kallsyms is not None
    pointer = source.kallsyms.lookup("vmcoreinfo_note")
    if pointer is None:
        return {}
    read = source.prog.read
    try:
        text = text_at(lambda at, size: bytes(read(at, size)), source.prog.read_u64(pointer))
    except READ_ERRORS:
        return {}
    if text is None or what_is_missing(text) is not None:
        return {}
    lines = parse(text)
    return lines if identity_of(lines) == identity_of(source.vmcoreinfo) else {}


def _check_build_id(source: Source, given: Optional[str]) -> None:
    """Whether the image has VMCOREINFO's build id."""
    assert source.kallsyms is not None
    said = source.vmcoreinfo.get("BUILD-ID")
    start, stop = (source.kallsyms.lookup(name) for name in ("__start_notes", "__stop_notes"))
    if said is None or start is None or stop is None or not 0 < stop - start <= _MAX_NOTES:
        return
    try:
        found = [data.hex() for _, data in build_ids_in(start, source.prog.read(start, stop - start))]
    except READ_ERRORS:
        return
    if not found or said in found:
        return
    reason = f"its BUILD-ID is {said}, and the image in memory has {found[0]}"
    if given is not None:
        raise WrongVmcoreinfo(
            f"{given} is not the VMCOREINFO of {source.label}: {reason}", "is it of the boot that was dumped?"
        )
    source.warnings.append(f"VMCOREINFO is of another build: {reason}")


def program_of(memory: PhysicalMemory, vmcoreinfo: bytes, *, live: bool = False) -> drgn.Program:
    """A program of a kernel that reads its memory through us."""
    prog = _with_vmcoreinfo(vmcoreinfo)
    read = segment(memory)
    start = end = 0
    # One segment for what lies side by side: AVML has a block for every 16 MB.
    for extent in (*memory.extents, Extent(0, 0, 0)):
        if extent.address != end or not extent.size:
            if end > start:
                prog.add_memory_segment(start, end - start, read, True)
            start = extent.address
        end = extent.address + extent.size
    prog.set_linux_kernel_custom("", live)  # the text is the program's already
    hide_null(prog)
    return prog


def _by_max_pfn(layouts: Sequence[PhysicalMemory], vmcoreinfo: bytes) -> Tuple[PhysicalMemory, bool]:
    """Of the layouts that a raw file can have, the one that ends where the kernel says that memory does.

    All of them have the same below the gap, and the image is mostly there; so VMCOREINFO does not tell.

    :return: the layout, and whether it is none but the first because ``max_pfn`` has no name.
    """
    nameless = False
    symbols = vmcoreinfo_symbols(vmcoreinfo.decode("ascii", "replace"))
    for layout in layouts if len(layouts) > 1 else ():
        prog = program_of(layout, vmcoreinfo)
        prepare(Source(prog, "core", "", "raw memory", vmcoreinfo=parse_vmcoreinfo(prog)))
        try:
            if "kallsyms_names" in symbols:
                table = Kallsyms.from_memory(prog.read, symbols)
            else:
                table = find_kallsyms(prog.read, symbols)
            address = table.lookup("max_pfn")
            nameless |= address is None
            if address is not None and prog.read_u64(address) << 12 == layout.end:
                return layout, False
        except (KallsymsError, *READ_ERRORS):
            continue
    return layouts[0], nameless


def _hide_left_out(prog: drgn.Program, headers: ElfHeaders) -> None:
    """Make what an ELF file has no bytes for fault: drgn reads zeros, and a table of zeros maps nothing."""

    def fault(address: int, count: int, offset: int, physical: bool) -> bytes:
        raise drgn.FaultError("left out of the dump", address)

    for first, last in headers.left_out():
        prog.add_memory_segment(first, last - first + 1, fault, True)
    for part in headers.segments:
        size = min(part.memsz, (1 << 64) - 1 - part.vaddr) - part.filesz
        if part.vaddr and size > 0:
            prog.add_memory_segment(part.vaddr + part.filesz, size, fault, False)


def hide_null(prog: drgn.Program) -> None:
    """Make reads of the user half fault, as they do on other programs.

    QEMU's ELF files give every segment the virtual address 0, so that reading through a NULL pointer
    succeeds there and returns physical memory.
    """

    def fault(address: int, count: int, offset: int, physical: bool) -> bytes:
        raise drgn.FaultError("user address or NULL pointer", address)

    prog.add_memory_segment(0, 1 << 47, fault, False)


def one_line(error: BaseException) -> str:
    """An exception's text in one line of bounded length."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def _check_elf(path: str, headers: ElfHeaders) -> None:
    if headers.machine not in {a.elf_machine for a in architectures()}:
        by_elf_machine(headers.machine)
    if headers.type != ET_CORE:
        raise NotADump(
            f"{path} is an ELF file but no core dump",
            "a vmlinux goes with -s; the dump itself with -c",
        )
    if headers.note("VMCOREINFO") is not None:
        return
    process = any(owner == "CORE" and kind == 3 for owner, kind, _ in headers.notes)  # NT_PRPSINFO
    if process:
        raise NotADump(
            f"{path} is the core dump of a program, not of a kernel",
            "kernel dumps are written by kdump, crash, virsh dump or QEMU",
        )
