# SPDX-License-Identifier: LGPL-2.1-or-later
"""Crash dumps: what kind of file it is, whether it is whole, and the program that reads it.

Formats are told apart by content. drgn reads ELF itself and kdump (plain and flattened) through libkdumpfile.
"""

from __future__ import annotations

import logging
import os
import struct
from typing import BinaryIO, Callable, NamedTuple, Optional, Tuple

import drgn

from kvintro.arch import architectures, by_elf_machine
from kvintro.errors import KvintroError, NoSuchSource, NotADump, NotPermitted
from kvintro.source import Source
from kvintro.source.elf import ET_CORE, ElfHeaders, read_at, read_headers

_SMALL_FILE = 64 << 20
_PACKED = {
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd FILE"),
    b"\xfd7zXZ": ("xz", "unxz FILE"),
    b"\x1f\x8b": ("gzip", "gunzip FILE"),
    b"BZh": ("bzip2", "bunzip2 FILE"),
}
_FLATTENED = b"makedumpfile\0\0\0\0"
_KDUMP = b"KDUMP   "
_DISKDUMP = b"DISKDUMP"
_FLAT_HEADER_SIZE = 4096
# Ends a flattened file: offset and size of a record, both -1 (makedumpfile.h:END_FLAG_FLAT_HEADER).
_FLAT_END = b"\xff" * 16
# diskdump_mod.h:DUMP_DH_COMPRESSED_INCOMPLETE, set by makedumpfile when the disk filled up.
_KDUMP_INCOMPLETE = 0x8
# struct disk_dump_header: signature, version, utsname (6 x 65), padding, timeval; then these.
_KDUMP_STATUS = 424
_KDUMP_HEADER = struct.Struct("<IiiI")  # status, block_size, sub_hdr_size, bitmap_blocks
_MAX_BITMAP = 64 << 20  # 2 TB of memory; beyond that counting would be felt
_TRUNCATED = "the dump is truncated: what lies behind its end shows as not in the dump"


class DumpFile(NamedTuple):
    """What kind of dump a file is.

    :ivar format: as in :class:`~kvintro.source.Source`.
    :ivar left_out: bytes of memory that the machine had and the dump's maker left out.
    :ivar headers: of an ELF file.
    """

    format: str
    size: int
    complete: bool
    left_out: int = 0
    headers: Optional[ElfHeaders] = None


def examine(file: BinaryIO, path: str) -> DumpFile:
    """Tell what kind of dump a file is.

    :raises NotADump: it is none.
    """
    size = os.fstat(file.fileno()).st_size
    head = file.read(16)
    if not head:
        raise NotADump(f"{path} is empty", "take the dump again; check the disk it was written to")
    for magic, (name, command) in _PACKED.items():
        if head.startswith(magic):
            raise NotADump(f"{path} is compressed with {name}", f"unpack it first: {command}")
    if head.startswith(b"\x7fELF"):
        headers = read_headers(file)
        return DumpFile("ELF", size, not headers.truncated, headers.left_out, headers)
    if head.startswith(_FLATTENED):
        return DumpFile("flattened kdump", size, _flattened_is_whole(file, size))
    if head.startswith(_KDUMP) or head.startswith(_DISKDUMP):
        return DumpFile("kdump", size, _kdump_is_whole(file, size), _kdump_left_out(file))
    raise NotADump(
        f"{path} is not a kernel dump",
        "kvintro reads ELF vmcores and kdump files (makedumpfile, QEMU's dump-guest-memory)",
    )


def open_core(
    path: str, vmcoreinfo: Optional[bytes], *, opened: Callable[[], None] = lambda: None
) -> Source:
    """Open a dump.

    :param vmcoreinfo: VMCOREINFO text to use in place of the dump's note.
    :param opened: called when the file is open, before it is parsed.
    :raises SourceError: with the reason and the remedy.
    """
    with open_file(path) as file:
        opened()
        return _open_core(file, path, vmcoreinfo)


def _open_core(file: BinaryIO, path: str, vmcoreinfo: Optional[bytes]) -> Source:
    kind, size, complete, left_out, headers = examine(file, path)
    if headers is not None:
        _check_elf(path, headers, vmcoreinfo is not None)
    # Its advice on flattened files would stand above every report; what matters raises an exception anyway.
    logging.getLogger("drgn").setLevel(logging.ERROR)
    # With a platform given, drgn opens kdumps whose header has an empty utsname, as QEMU writes them.
    platform = drgn.Platform(drgn.Architecture.X86_64)
    prog = drgn.Program(platform, vmcoreinfo=vmcoreinfo)
    try:
        # By descriptor, as this process may not be allowed to open it again. The program closes it.
        file.seek(0)
        prog.set_core_dump(os.dup(file.fileno()))
    except KvintroError:
        raise
    except Exception as error:
        # drgn and libkdumpfile report a damaged file with whatever fits: ValueError, OSError, FaultError.
        raise NotADump(
            f"{path} cannot be read as {kind}: {one_line(error)}",
            "take or copy the dump again" if complete else "the dump is truncated; copy it again whole",
        ) from error
    if not prog.flags & drgn.ProgramFlags.IS_LINUX_KERNEL:
        raise NotADump(
            f"{path} has no VMCOREINFO note, so nothing tells which kernel it is",
            "give its text with --vmcoreinfo FILE; for QEMU guests use -device vmcoreinfo",
        )
    hide_null(prog)
    warnings = [] if complete else [_TRUNCATED]
    segments = headers.segments if headers is not None else ()
    return Source(prog, "core", path, kind, size, complete, left_out, segments=segments, warnings=warnings)


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


def read_small_file(path: str, option: str) -> bytes:
    """The content of a file named by an option.

    :raises NoSuchSource: it cannot be read, or is too large to be meant.
    """
    with open_file(path) as file:
        if os.fstat(file.fileno()).st_size > _SMALL_FILE:
            raise NoSuchSource(f"{path} is too large for {option}", "is it the right file?")
        return file.read()


def open_file(path: str) -> BinaryIO:
    try:
        if os.path.isdir(path):
            raise NoSuchSource(f"{path} is a directory", "name the dump in it")
        return open(path, "rb")
    except FileNotFoundError:
        raise NoSuchSource(f"{path}: no such file", "check the path") from None
    except PermissionError:
        raise NotPermitted(f"{path}: permission denied", "read it as its owner, or with sudo") from None
    except (OSError, ValueError) as error:
        raise NoSuchSource(f"{path}: {one_line(error)}", "check the path") from None


def _check_elf(path: str, headers: ElfHeaders, has_vmcoreinfo: bool) -> None:
    if headers.machine not in {a.elf_machine for a in architectures()}:
        by_elf_machine(headers.machine)
    if headers.type != ET_CORE:
        raise NotADump(
            f"{path} is an ELF file but no core dump",
            "a vmlinux goes with -s; the dump itself with -c",
        )
    if headers.note("VMCOREINFO") is not None or has_vmcoreinfo:
        return
    process = any(owner == "CORE" and kind == 3 for owner, kind, _ in headers.notes)  # NT_PRPSINFO
    if process:
        raise NotADump(
            f"{path} is the core dump of a program, not of a kernel",
            "kernel dumps are written by kdump, crash, virsh dump or QEMU",
        )


def _flattened_is_whole(file: BinaryIO, size: int) -> bool:
    file.seek(max(0, size - len(_FLAT_END)))
    return size > _FLAT_HEADER_SIZE and file.read() == _FLAT_END


def _kdump_is_whole(file: BinaryIO, size: int) -> bool:
    """Whether the last page that a kdump's table names lies within the file."""
    file.seek(0)
    head = file.read(4096)
    if len(head) < 4096:
        return False
    status, block_size, sub_blocks, bitmap_blocks = _KDUMP_HEADER.unpack_from(head, _KDUMP_STATUS)
    if status & _KDUMP_INCOMPLETE:
        return False
    if not 4096 <= block_size <= 65536 or sub_blocks < 0:
        return True  # not the layout we know; the reader will say
    first_desc = (1 + sub_blocks + bitmap_blocks) * block_size
    # Descriptors run up to the first page's data, which the first descriptor names.
    first = _descriptor(file, first_desc)
    if first is None:
        return False
    last = _descriptor(file, max(first_desc, first[0] - 24))
    return last is not None and last[0] + last[1] <= size


def _kdump_left_out(file: BinaryIO) -> int:
    """Bytes of the pages that the first of a kdump's bitmaps has (they exist) and the second has not.

    The header's dump level does not tell: QEMU writes 1 and leaves nothing out.
    """
    head = read_at(file, 0, 4096)
    if len(head) < 4096:
        return 0
    _, block_size, sub_blocks, bitmap_blocks = _KDUMP_HEADER.unpack_from(head, _KDUMP_STATUS)
    size = bitmap_blocks * block_size // 2
    if not 4096 <= block_size <= 65536 or not 0 <= size <= _MAX_BITMAP:
        return 0
    start = (1 + sub_blocks) * block_size
    exist, dumped = (_count_bits(read_at(file, at, size)) for at in (start, start + size))
    return max(0, exist - dumped) * block_size


def _count_bits(data: bytes) -> int:
    step = 1 << 16
    return sum(
        bin(int.from_bytes(data[at : at + step], "little")).count("1") for at in range(0, len(data), step)
    )


def _descriptor(file: BinaryIO, at: int) -> Optional[Tuple[int, int]]:
    data = read_at(file, at, 12) if at >= 0 else b""
    return struct.unpack("<qI", data) if len(data) == 12 else None
