# SPDX-License-Identifier: LGPL-2.1-or-later
"""Kdumps that end too soon.

libkdumpfile maps the file. What begins before its end and reaches into the page behind that kills the process
that reads it (SIGBUS); what lies behind altogether reads as zeros, which is what an empty table looks like.
So what was cut off is found here and hidden from the reader, and a process that may die opens the
file first.

Their layout: makedumpfile's IMPLEMENTATION, diskdump_mod.h; header, sub-header, two bitmaps, a descriptor for
each bit of the second, the pages' data.
"""

from __future__ import annotations

import os
import signal
import struct
from typing import TYPE_CHECKING, BinaryIO, Callable, List, Optional, Tuple

import drgn

from kvintro.errors import NotADump
from kvintro.source.elf import read_at
from kvintro.source.kdump import within

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

_HEADER = struct.Struct("<iiI")  # block_size, sub_hdr_size, bitmap_blocks
_HEADER_AT = 428
_DESCRIPTOR_SIZE = 24  # struct page_desc: offset, size, flags, page_flags
_MAX_BITMAP = 1 << 30
_STEP = 1 << 20  # descriptors read at once
_COPY_AGAIN = "copy it again whole"
_OWN_READER = "DRGN_PREFER_PGTABLE_READER"  # drgn's variable


def open_cut_kdump(
    prog: drgn.Program,
    file: BinaryIO,
    size: int,
    vmcoreinfo: Optional[bytes],
    *,
    flattened: bool,
    part: Optional[Tuple[int, int]] = None,
) -> None:
    """Have a program read a kdump that ends too soon.

    :param vmcoreinfo: what the program was made with.
    :param part: the page frames that this file has of a split dump.
    :raises NotADump: nothing of it can be read.
    """
    # libkdumpfile refuses a flattened one that ends too soon, if it lives to.
    lost = None if flattened else first_lost(file, size, part)
    # Have drgn walk page tables, on memory as it is below, and not libkdumpfile on the file.
    before = os.environ.get(_OWN_READER)
    os.environ[_OWN_READER] = "1"
    try:
        other = drgn.Program(prog.platform, vmcoreinfo=vmcoreinfo)
        try_in_child(lambda: other.set_core_dump(os.dup(file.fileno())))
        prog.set_core_dump(os.dup(file.fileno()))
    finally:
        del os.environ[_OWN_READER]
        if before is not None:
            os.environ[_OWN_READER] = before
    if lost is not None:
        hide_from(prog, lost)


def first_lost(file: BinaryIO, size: int, part: Optional[Tuple[int, int]] = None) -> Optional[int]:
    """Physical address of the first page whose data is not there as a whole; None if there is none.

    :param part: the page frames that this file has of a split dump.
    :raises NotADump: not even what leads to the pages is there.
    """
    import numpy

    head = read_at(file, _HEADER_AT, _HEADER.size)
    if len(head) < _HEADER.size:
        raise NotADump("the dump is truncated within its header", _COPY_AGAIN)
    block_size, sub_blocks, bitmap_blocks = _HEADER.unpack(head)
    bitmap_size = bitmap_blocks * block_size // 2
    if not 4096 <= block_size <= 65536 or sub_blocks < 0 or bitmap_size > _MAX_BITMAP:
        return None  # not the layout we know; the reader will say
    bitmap_at = (1 + sub_blocks) * block_size + bitmap_size
    bitmap = numpy.frombuffer(within(read_at(file, bitmap_at, bitmap_size), part), numpy.uint8)
    counts = numpy.cumsum(_bits_of_bytes()[bitmap], dtype=numpy.int64)
    count = int(counts[-1]) if len(counts) else 0
    if len(bitmap) < bitmap_size:
        raise NotADump("the dump is truncated before its first page", _COPY_AGAIN)
    rank = _first_lost_rank(file, size, bitmap_at + bitmap_size, count)
    if rank is None:
        return None
    if rank == 0:
        raise NotADump("the dump is truncated before its first page", _COPY_AGAIN)
    byte = int(numpy.searchsorted(counts, rank, side="right"))
    before = int(counts[byte - 1]) if byte else 0
    bits = [bit for bit in range(8) if int(bitmap[byte]) >> bit & 1]
    return int(8 * byte + bits[rank - before]) * int(block_size)


def _first_lost_rank(file: BinaryIO, size: int, at: int, count: int) -> Optional[int]:
    """Which of the pages, in the order of their descriptors, is the first that has lost that or its data."""
    import numpy

    kind = numpy.dtype([("offset", "<i8"), ("size", "<u4"), ("flags", "<u4"), ("page_flags", "<u8")])
    for first in range(0, count, _STEP):
        number = min(_STEP, count - first)
        data = read_at(file, at + first * _DESCRIPTOR_SIZE, number * _DESCRIPTOR_SIZE)
        found = numpy.frombuffer(data[: len(data) // _DESCRIPTOR_SIZE * _DESCRIPTOR_SIZE], kind)
        room = size - found["size"].astype(numpy.int64)
        lost = numpy.flatnonzero((found["offset"] < 0) | (found["offset"] > room))
        if len(lost):
            return first + int(lost[0])
        if len(found) < number:
            return first + len(found)
    return None


def _bits_of_bytes() -> "NDArray[numpy.uint8]":
    import numpy

    found: NDArray[numpy.uint8] = numpy.array([bin(byte).count("1") for byte in range(256)], numpy.uint8)
    return found


def hide_from(prog: drgn.Program, address: int) -> None:
    """Make physical memory from an address on fault."""

    def fault(at: int, count: int, offset: int, physical: bool) -> bytes:
        raise drgn.FaultError("cut off with the end of the dump", at)

    prog.add_memory_segment(address, (1 << 64) - 1 - address, fault, True)


def try_in_child(attempt: Callable[[], None]) -> None:
    """Do in a child process what may kill the process.

    :raises NotADump: it did. Exceptions of the attempt are not seen here: it will be made again.
    """
    child = os.fork()
    if child == 0:
        try:
            # What libraries complain about, the second attempt says too.
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 2)
            signal.signal(signal.SIGBUS, signal.SIG_DFL)  # end_on_bus_error() would end it as if by itself
            attempt()
        except BaseException:
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        raise NotADump("the dump is truncated within what is needed to read it", _COPY_AGAIN)


def end_on_bus_error(message: str, code: int) -> None:
    """Make SIGBUS end the process with a message: the file shrank while it was read, or its table lies.

    A handler in Python would never run, as the instruction that fails is tried again when the signal's own
    handler returns; so this one is what the signal calls, and does not return.
    """
    import ctypes

    @ctypes.CFUNCTYPE(None, ctypes.c_int)  # type: ignore[untyped-decorator]
    def handler(_: int) -> None:
        os.write(2, message.encode())
        os._exit(code)

    _handlers.append(handler)
    library = ctypes.CDLL(None)
    library.signal.restype = ctypes.c_void_p
    library.signal(int(signal.SIGBUS), handler)


_handlers: List[object] = []  # what the process may still call must not be collected
