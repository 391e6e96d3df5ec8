# SPDX-License-Identifier: LGPL-2.1-or-later
"""Makes drgn programs that read memory through kvintro."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import Iterable, Iterator, Optional, Tuple, Union

import drgn

from kvintro.arch import Architecture, by_vmcoreinfo, names
from kvintro.arch.others import OtherArchitecture
from kvintro.errors import NotADump
from kvintro.model import ALL
from kvintro.source.note import parse
from kvintro.source.physical import Extent, PhysicalMemory, segment


def empty_program(text: Optional[bytes], arch: Union[Architecture, OtherArchitecture]) -> drgn.Program:
    """A program without memory. It has a platform, which drgn needs to open kdumps whose header has an empty
    utsname, such as those by QEMU.

    :raises NotADump: drgn does not accept the text.
    """
    try:
        platform = drgn.Platform(drgn.Architecture[arch.drgn_name])
        return drgn.Program(platform, vmcoreinfo=text)
    except Exception as error:  # drgn has more rules for the text than kvintro checks
        raise NotADump(
            f"drgn does not accept this VMCOREINFO: {one_line(error)}",
            "give the whole text of the boot that was dumped with --vmcoreinfo FILE",
        ) from error


def program_of(memory: PhysicalMemory, vmcoreinfo: bytes, *, live: bool = False) -> drgn.Program:
    """A program of a kernel that reads its memory through kvintro.

    :raises NotADump: kvintro does not support the text's architecture, or drgn does not accept the text.
    """
    arch = by_vmcoreinfo(parse(vmcoreinfo))
    if arch is None:
        raise NotADump(
            "this VMCOREINFO is from an unsupported architecture", f"kvintro reads kernels of {names()}"
        )
    prog = empty_program(vmcoreinfo, arch)
    read = segment(memory)
    start = end = 0
    # Use one segment for adjacent ranges: AVML has a block for every 16 MB.
    for extent in (*memory.extents, Extent(0, 0, 0)):
        if extent.address != end or not extent.size:
            if end > start:
                prog.add_memory_segment(start, end - start, read, True)
            start = extent.address
        end = extent.address + extent.size
    prog.set_linux_kernel_custom("", live)  # the program has the text already
    hide_null(prog)
    return prog


def hide_null(prog: drgn.Program) -> None:
    """Make reads of the user half fault, as they do in other programs.

    In QEMU's ELF files, every segment has the virtual address 0, so reading through a NULL pointer would
    succeed and return physical memory.
    """
    hide(prog, [(0, ALL >> 1)], "user address or NULL pointer", physical=False)


def hide(prog: drgn.Program, ranges: Iterable[Tuple[int, int]], why: str, *, physical: bool) -> None:
    """Make reads of some memory fault that drgn would read as something else, mostly as zeros.

    :param ranges: first and last address of each range, both inclusive.
    """

    def fault(address: int, count: int, offset: int, physical: bool) -> bytes:
        raise drgn.FaultError(why, address)

    for first, last in ranges:
        prog.add_memory_segment(first, last - first + 1, fault, physical)


@contextmanager
def without_advice() -> Iterator[None]:
    """Suppress drgn's warnings while it opens a file; real problems raise an exception anyway.

    The logger belongs to the program that kvintro runs in, so its level is restored.
    """
    logger = logging.getLogger("drgn")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def one_line(error: BaseException) -> str:
    """An exception's text in one line of bounded length."""
    return " ".join(str(error).split())[:200] or type(error).__name__
