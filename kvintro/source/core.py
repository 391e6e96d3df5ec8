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
from contextlib import ExitStack
from typing import BinaryIO, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import drgn

from kvintro.arch import architectures, by_elf_machine, by_machine
from kvintro.arch.x86_64 import START_KERNEL_MAP
from kvintro.errors import KvintroError, NotADump, NotInDump, UsageError
from kvintro.model import DUMP_FORMATS
from kvintro.source import Source, parse_vmcoreinfo
from kvintro.source.content import Content, FileContent
from kvintro.source.elf import ET_CORE, ElfHeaders, Segment, read_headers
from kvintro.source.files import keep
from kvintro.source.flattened import Flattened
from kvintro.source.formats import READS, recognise
from kvintro.source.kallsyms import READ_ERRORS, Kallsyms, KallsymsError, vmcoreinfo_symbols
from kvintro.source.kdump import PAGE, Kdump, dumped_ranges, examine_kdump
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
from kvintro.source.vmcoreinfo import Found, NotBelieved, Search, find_vmcoreinfo, in_silence, why_not

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
# Enough for drgn and libkdumpfile (which wants a number) to read physical memory.
_MINIMAL = (
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
        raise NotADump(f"{path} does not begin as {form} does", "leave --format-in away: the content tells")
    if found.form == "elf":
        headers = read_headers(content)
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
    vmcoreinfo: Optional[bytes],
    *,
    form: Optional[str] = None,
    search: Search = in_silence,
) -> Source:
    """Open a dump.

    :param files: the open files by their paths. The caller closes them.
    :param paths: of the dump's file, or of the parts of a split one in any order; standard input may be among
        them, and is read from here.
    :param vmcoreinfo: VMCOREINFO text to use in place of the dump's note.
    :param form: one of :data:`~kvintro.model.DUMP_FORMATS` if it is not to be told from the content.
    :param search: see :func:`~kvintro.source.vmcoreinfo.find_vmcoreinfo`.
    :raises SourceError: with the reason and the remedy.
    """
    assert form is None or form in DUMP_FORMATS
    with ExitStack() as stack:
        opened = dict(files)
        if STANDARD_INPUT in paths:
            opened[STANDARD_INPUT] = stack.enter_context(_open_standard_input(form))
        parts = [_part(stack, opened[path], path, form) for path in paths]
        file, path, dump = parts[0]
        if len(parts) > 1 or (dump.kdump is not None and dump.kdump.part is not None):
            source = _open_split(parts, vmcoreinfo)
        elif dump.headers is None and dump.kdump is None:
            source = _open_memory(path, dump, vmcoreinfo, search, forced=form is not None)
        else:
            source = _open_core(file, path, dump, vmcoreinfo, search)
        source.kept = tuple(keep(file, path) for path, file in opened.items())
        return source


def _open_standard_input(form: Optional[str]) -> BinaryIO:
    """Standard input as a file: itself, or a copy of what comes through a pipe."""

    def check(file: BinaryIO) -> None:
        if form != "raw":
            found = recognise(FileContent(file))
            if found.form == "raw" or found.form is None:
                raise NotADump(f"standard input is {found.name}", found.advice)

    return spooled(0, check)


def _part(stack: ExitStack, file: BinaryIO, path: str, form: Optional[str]) -> _Part:
    """A file and what it is; of a flattened kdump that libkdumpfile cannot read, the file rearranged."""
    path = "standard input" if path == STANDARD_INPUT else path
    dump = examine(file, path, form)
    if dump.kdump is not None and isinstance(dump.content, Flattened) and not dump.content.plain_enough:
        file = stack.enter_context(dump.content.rearranged())
    return _Part(file, path, dump)


def _open_core(
    file: BinaryIO, path: str, dump: DumpFile, vmcoreinfo: Optional[bytes], search: Search
) -> Source:
    """ELF and kdump, by drgn."""
    origin = "--vmcoreinfo" if vmcoreinfo is not None else "the dump's note"
    if dump.kdump is not None:
        by_machine(dump.kdump.machine)
    if dump.headers is not None:
        _check_elf(path, dump.headers)
        if vmcoreinfo is None and dump.headers.note("VMCOREINFO") is None:
            vmcoreinfo, origin = _vmcoreinfo_of_elf(path, dump, search)
    try:
        prog = _program(file, path, dump, vmcoreinfo)
    except NotADump:
        # libkdumpfile has no notion of a kdump without the note.
        if vmcoreinfo is not None or dump.kdump is None or not dump.kdump.memory:
            raise
        vmcoreinfo, origin = _vmcoreinfo_of_kdump(file, path, dump, search)
        prog = _program(file, path, dump, vmcoreinfo)
    if not prog.flags & drgn.ProgramFlags.IS_LINUX_KERNEL:
        raise NotADump(
            f"{path} has no VMCOREINFO note, so nothing tells which kernel it is",
            "give its text with --vmcoreinfo FILE; for QEMU guests use -device vmcoreinfo",
        )
    if dump.headers is not None and dump.left_out:
        _hide_left_out(prog, dump.headers)
    hide_null(prog)
    return Source(
        prog,
        "core",
        path,
        dump.format,
        dump.size,
        dump.complete,
        dump.left_out,
        _memory_in(dump),
        segments=dump.headers.segments if dump.headers is not None else (),
        vmcoreinfo_origin=origin,
        warnings=[] if dump.complete else [_TRUNCATED],
    )


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
        text = vmcoreinfo or dump.headers.note("VMCOREINFO")
        if text is not None:
            return _program_of(_memory_of_elf(dump), text)
    # Its advice on flattened files would stand above every report; what matters raises an exception anyway.
    logging.getLogger("drgn").setLevel(logging.ERROR)
    # With a platform given, drgn opens kdumps whose header has an empty utsname, as QEMU writes them.
    prog = drgn.Program(drgn.Platform(drgn.Architecture.X86_64), vmcoreinfo=vmcoreinfo)
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
    """The memory of several programs; an extent's ``offset`` says of which."""

    def __init__(self, progs: Sequence[drgn.Program], extents: List[Extent]) -> None:
        super().__init__(extents)
        self._progs = progs

    def _read(self, extent: Extent, address: int, size: int) -> bytes:
        try:
            data: bytes = self._progs[extent.offset].read(address, size, True)
            return data
        except READ_ERRORS:
            return b""


def _open_split(parts: Sequence[_Part], vmcoreinfo: Optional[bytes]) -> Source:
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
    progs = [_program(part.file, part.path, part.dump, vmcoreinfo) for part in parts]
    texts = [prog["VMCOREINFO"].string_() for prog in progs]
    for text, part in zip(texts, parts):
        if text != texts[0]:
            raise NotADump(
                f"{part.path} is not of the dump that {parts[0].path} is of", "name one dump's parts"
            )
    complete = all(part.dump.complete for part in parts)
    warnings = [] if whole else [PARTS_MISSING]
    more = f" and {len(parts) - 1} more" if len(parts) > 1 else ""
    return Source(
        _program_of(_OfParts(progs, extents), texts[0]),
        "core",
        parts[0].path + more,
        "split kdump",
        sum(part.dump.size for part in parts),
        complete and whole,
        _sum([part.dump.left_out for part in parts]),
        _sum([part.dump.kdump.memory for part in parts if part.dump.kdump is not None]),
        vmcoreinfo_origin="--vmcoreinfo" if vmcoreinfo is not None else "the dump's note",
        warnings=warnings if complete else [*warnings, _TRUNCATED],
    )


def _sum(sizes: Sequence[Optional[int]]) -> Optional[int]:
    """None where one is not known."""
    known = [size for size in sizes if size is not None]
    return sum(known) if len(known) == len(sizes) else None


# VMCOREINFO of dumps that have no note of it


def _found_at(address: int) -> str:
    return f"found in memory at physical {address:#x}"


def _vmcoreinfo_of_elf(path: str, dump: DumpFile, search: Search) -> Tuple[bytes, str]:
    try:
        found = find_vmcoreinfo([_memory_of_elf(dump)], what="its memory", search=search)
    except NotADump as error:
        raise NotADump(f"{path} has no VMCOREINFO note, and {error.what}", error.remedy) from None
    return found.text, _found_at(found.address)


class _OfProgram(PhysicalMemory):
    """What a program has of physical memory.

    :param size: bytes of it.
    :param ranges: where it is, at most; read once.
    """

    def __init__(self, prog: drgn.Program, size: int, ranges: Iterator[Tuple[int, int]]) -> None:
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
        for start, end in self._ranges:
            yield from pieces(lambda address, size: self._prog.read(address, size, True), start, end)


def _vmcoreinfo_of_kdump(file: BinaryIO, path: str, dump: DumpFile, search: Search) -> Tuple[bytes, str]:
    assert dump.kdump is not None and dump.kdump.memory is not None
    # To read physical memory no VMCOREINFO is needed, but drgn wants one.
    prog = _program(file, path, dump, _MINIMAL)
    try:
        memory = _OfProgram(prog, dump.kdump.memory, dumped_ranges(dump.content, dump.kdump))
        found = find_vmcoreinfo([memory], what="its memory", search=search)
    except NotADump as error:
        raise NotADump(f"{path} has no VMCOREINFO note, and {error.what}", error.remedy) from None
    return found.text, _found_at(found.address)


# Files of physical memory


def _open_memory(
    path: str,
    dump: DumpFile,
    vmcoreinfo: Optional[bytes],
    search: Search,
    *,
    forced: bool,
) -> Source:
    """Raw memory, LiME and AVML, by a reader of ours."""
    layouts: List[PhysicalMemory]
    if dump.format == "LiME":
        layouts = [open_lime(dump.content, path)]
    elif dump.format == "AVML":
        layouts = [AvmlFile(dump.content, path)]
    else:
        layouts = raw_layouts(dump.content)
    origin = "--vmcoreinfo"
    found: Optional[Found] = None
    if vmcoreinfo is not None:
        problems = [why_not(layout.read, vmcoreinfo) for layout in layouts]
        right = [layout for layout, problem in zip(layouts, problems) if problem is None]
        if not right:
            raise NotADump(f"the VMCOREINFO given does not fit {path}: {problems[0]}", "is it of this boot?")
    else:
        try:
            found = find_vmcoreinfo(layouts, what="it", search=search)
        except NotADump as error:
            what, remedy = f"{path}: {error.what}", error.remedy
            if not layouts[0].complete:
                remedy = "the dump is truncated; copy it again whole"
            elif isinstance(error, NotBelieved):
                remedy = "is it whole? copy or take it again"
            elif dump.format == "raw memory" and not forced:
                what, remedy = f"{path} is not a kernel dump: as raw memory, {error.what}", READS
            raise NotADump(what, remedy) from None
        vmcoreinfo, right = found.text, found.layouts
    memory, nameless = _by_max_pfn(right, vmcoreinfo)
    if found is not None:
        # Where it was by the first layout is where the file has it.
        origin = _found_at(memory.moved(layouts[0], found.address))
    prog = _program_of(memory, vmcoreinfo)
    return Source(
        prog,
        "core",
        path,
        dump.format,
        dump.size,
        # Whether more should follow only the kernel knows: see check_end().
        None if memory.complete else False,
        None if dump.format != "raw memory" else 0,
        memory=sum(extent.size for extent in memory.extents),
        segments=tuple(Segment(e.offset, 0, e.address, e.size, e.size) for e in memory.extents),
        vmcoreinfo_origin=origin,
        warnings=[*([] if memory.complete else [_TRUNCATED]), *([_GAP] if nameless else [])],
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


def _program_of(memory: PhysicalMemory, vmcoreinfo: bytes) -> drgn.Program:
    prog = drgn.Program(drgn.Platform(drgn.Architecture.X86_64))
    read = segment(memory)
    start = end = 0
    # One segment for what lies side by side: AVML has a block for every 16 MB.
    for extent in (*memory.extents, Extent(0, 0, 0)):
        if extent.address != end or not extent.size:
            if end > start:
                prog.add_memory_segment(start, end - start, read, True)
            start = extent.address
        end = extent.address + extent.size
    prog.set_linux_kernel_custom(vmcoreinfo.decode("ascii", "replace"), False)
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
        prog = _program_of(layout, vmcoreinfo)
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
