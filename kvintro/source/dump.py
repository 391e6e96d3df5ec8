# SPDX-License-Identifier: LGPL-2.1-or-later
"""The interface of readers of dump formats: the physical memory of a file, and its properties.

A reader is a file in :mod:`kvintro.source.formats` with a subclass of :class:`Dump` and a ``FORMAT``, which
recognises files by their content. :func:`kvintro.source.core.open_core` does the rest for all formats: it
finds the VMCOREINFO that fits, and calls the dump to make a program that reads memory with it.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from functools import cached_property
from itertools import accumulate
from typing import Callable, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import drgn

from kvintro.arch import Architecture
from kvintro.arch.others import OtherArchitecture
from kvintro.errors import NotADump
from kvintro.source.beside import Beside
from kvintro.source.content import Content
from kvintro.source.elf import Segment, writer_of
from kvintro.source.opened import Source
from kvintro.source.physical import Held, PhysicalMemory
from kvintro.source.vmcoreinfo import Chosen

READS = "kvintro reads ELF vmcores, kdumps, raw memory, LiME, AVML, and guests saved by QEMU or libvirt"
#: Name of the format without any header in :class:`~kvintro.source.Source`.
RAW = "raw memory"
TRUNCATED = "the dump is truncated: memory after its end is shown as not in the dump"
INTERRUPTED = (
    "makedumpfile could not write all of the dump, probably because its disk was full: the rest of memory is "
    "shown as not in the dump"
)
COPY_AGAIN = "copy it again whole"
TRUNCATED_REMEDY = f"the dump is truncated; {COPY_AGAIN}"


class Dump:
    """A file whose headers were read, or several files that make up one dump.

    :ivar path: its name in messages.
    :ivar format: as in :class:`~kvintro.source.Source`.
    :ivar content: content of the file; rearranged if the file is flattened.
    :ivar size: bytes of the file.
    :ivar complete: whether no part of the file is missing; None if unknown.
    :ivar left_out: bytes of the machine's memory that were excluded from the dump; None if unknown.
    :ivar memory: bytes of memory in it; None if unknown.
    :ivar segments: ranges of that memory, if the file lists ranges.
    :ivar packed: whether memory is compressed in the file, so that a small file can have much of it.
    :ivar called: the name of its memory in messages.
    :ivar packing: how the file was packed, outermost first.
    :ivar level: which pages were left out, as in makedumpfile's ``-d``; None if the file does not say.
    :ivar interrupted: whether the file says that not all of it could be written.
    :ivar others: further files that are part of the dump.
    """

    complete: Optional[bool] = None
    left_out: Optional[int] = None
    memory: Optional[int] = None
    segments: Tuple[Segment, ...] = ()
    packed = False
    called = "its memory"
    others: Sequence[Tuple[str, Content]] = ()
    packing: Tuple[str, ...] = ()
    level: Optional[int] = None
    interrupted = False

    def __init__(self, content: Content, path: str, form: str) -> None:
        self.content = content
        self.path = path
        self.format = form
        self.size = content.size

    @property
    def arch(self) -> Optional[Architecture]:
        """The machine's architecture; None if the file does not say."""
        return None

    @property
    def other(self) -> Optional[OtherArchitecture]:
        """The machine's architecture, if kvintro does not know its page tables but describes the dump."""
        return None

    @property
    def other_machine(self) -> Optional[str]:
        """``utsname.machine`` of a kernel of :attr:`other`; None if the headers do not say."""
        return None

    @property
    def note(self) -> Optional[bytes]:
        """The text of VMCOREINFO in a note of the file; None if there is no such note."""
        return None

    @cached_property
    def layouts(self) -> Sequence[PhysicalMemory]:
        """The file's physical memory. If the file does not record addresses, all possible layouts, the most
        likely first."""
        raise NotImplementedError

    def more_layouts(self, text: bytes) -> Sequence[PhysicalMemory]:
        """Further layouts to try if a text of VMCOREINFO fits none of :attr:`layouts`."""
        return ()

    @property
    def real(self) -> int:
        """Bytes that the file occupies on disk."""
        return self.content.real

    def notes(self) -> bytes:
        """The file's notes, unchanged; for instance with the CPUs' registers."""
        return b""

    def eraseinfo(self) -> bytes:
        """What makedumpfile overwrote in the dump, as text; empty if nothing."""
        return b""

    def lost(self) -> Optional[Iterable[Tuple[int, int]]]:
        """Physical memory (start, end exclusive) that should be in the file but is missing.

        :return: None if that is unknown.
        """
        return None if self.complete is False else ()

    def held(self) -> Iterable[Held]:
        """The physical memory that is in the file, and that was excluded from it; ranges may overlap."""
        return held_by(self.segments)

    def lacks(self, address: int) -> bool:
        """Whether the file says that the machine has no memory at a physical address."""
        return False

    def check_kernel(self) -> None:
        """Check that it is the dump of a kernel that kvintro can read.

        :raises SourceError: it is not.
        """

    def program(self, vmcoreinfo: bytes) -> drgn.Program:
        """A program that reads this memory.

        :raises NotADump: the memory cannot be read.
        """
        raise NotImplementedError

    def opened(self, chosen: Chosen) -> Source:
        """The source, once the VMCOREINFO of this memory was chosen."""
        return self.source(self.program(chosen.text), chosen)

    def source(self, prog: drgn.Program, chosen: Chosen) -> Source:
        """A source with the properties of this dump."""
        writer = writer_of(self.notes())
        return Source(
            prog,
            "core",
            self.path,
            self.format,
            self.size,
            self.complete,
            self.left_out,
            self.memory,
            segments=self.segments,
            vmcoreinfo_origin=chosen.origin,
            packing=", ".join(self.packing),
            held=self.held,
            lost=self.lost,
            notes=self.notes,
            # makedumpfile copies all notes of the file that it reads.
            writer=f"{writer}, or a program that read its file" if writer else "",
            level=self.level,
            eraseinfo=self.eraseinfo(),
            warnings=[*chosen.warnings, *([] if self.complete is not False else [self.shortened])],
        )

    @property
    def shortened(self) -> str:
        """The warning if part of the file is missing."""
        return INTERRUPTED if self.interrupted else TRUNCATED

    def refusal(self, error: NotADump) -> NotADump:
        """The error to report if no VMCOREINFO fits."""
        if self.note is not None:
            return error
        remedy = error.remedy if self.complete is not False else TRUNCATED_REMEDY
        return NotADump(f"{self.path} has no VMCOREINFO note, and {error.what}", remedy)


# How formats are recognised

Test = Callable[[Content, bytes], bool]
Reader = Callable[[Content, str], Dump]
ReaderOfSeveral = Callable[[Content, str, Beside], Dump]


class Format(NamedTuple):
    """One format.

    :ivar name: description with an article: "FILE is NAME".
    :ivar fits: whether a file has this format, by its content and its first kilobyte; never by its name.
    :ivar advice: what to do with such a file, if kvintro does not read it.
    :ivar form: its name for ``--format-in``; None if kvintro does not read it.
    :ivar read: reads the headers of a file; the path is for messages; raises NotADump.
    :ivar packing: the name of the packing, if the format is one that kvintro unpacks.
    :ivar read_with: as ``read``, for a format that can have other files beside it.
    """

    name: str
    fits: Test
    advice: str = ""
    form: Optional[str] = None
    read: Optional[Reader] = None
    read_with: Optional[ReaderOfSeveral] = None
    packing: str = ""


def begins(*marks: bytes) -> Test:
    """Files that begin with one of these marks."""
    return lambda content, head: head.startswith(marks)


def has(offset: int, *marks: bytes) -> Test:
    """Files that have one of these marks at an offset."""
    return lambda content, head: content.at(offset, max(map(len, marks))).startswith(marks)


def matches(pattern: bytes) -> Test:
    """Files whose first kilobyte begins with a match of a pattern."""
    compiled = re.compile(pattern, re.DOTALL)
    return lambda content, head: compiled.match(head) is not None


def ends(distance: int, mark: bytes) -> Test:
    """Files that have a mark ``distance`` bytes before their end."""
    return lambda content, head: content.at(content.size - distance, len(mark)) == mark


def either(*tests: Test) -> Test:
    """Files that pass any of the tests."""
    return lambda content, head: any(test(content, head) for test in tests)


# Shared by readers


def held_by(segments: Iterable[Segment]) -> Iterator[Held]:
    """The memory of segments. The part after the bytes in the file was excluded."""
    for part in segments:
        yield Held(part.paddr, part.paddr + part.filesz, True)
        if part.memsz > part.filesz:
            yield Held(part.paddr + part.filesz, part.paddr + part.memsz, False)


def outside(ranges: Sequence[Tuple[int, int]]) -> Callable[[int], bool]:
    """A function that returns whether an address is in none of the ranges (start, end exclusive).

    :param ranges: in ascending order. There can be 200,000, and the function is called for each entry of a
        page table.
    """
    starts = [start for start, _ in ranges]
    ends_before: List[int] = list(accumulate((end for _, end in ranges), max))  # they may overlap

    def is_outside(address: int) -> bool:
        before = bisect_right(starts, address)
        return not before or address >= ends_before[before - 1]

    return is_outside


def most_parts(content: Content, few: int, least: int) -> int:
    """Upper bound on the parts of a file: ``few`` of any size, and others of at least ``least`` bytes."""
    return few + content.real // least
