# SPDX-License-Identifier: LGPL-2.1-or-later
"""A request to open a source, and a source that was opened."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Callable, Dict, Iterable, List, Optional, Protocol, Sequence, Tuple, Union

import drgn

from kvintro.paging.broken import BrokenTable, Judged
from kvintro.source.elf import Segment
from kvintro.source.files import Kept
from kvintro.source.note import parse, text_of
from kvintro.source.physical import Held
from kvintro.source.unpack import Watch, unwatched
from kvintro.source.vmcoreinfo import Kernels, Search, in_silence

if TYPE_CHECKING:
    from kvintro.source.kallsyms import Kallsyms


@dataclass(frozen=True)
class Request:
    """What to open.

    :ivar core: path of a dump, or of all parts of a split one; None for the running kernel or ``qemu``.
    :ivar qemu: QMP socket of a QEMU guest.
    :ivar vmlinux: path of a vmlinux with DWARF.
    :ivar btf: path of a BTF file, or of an ELF file with a .BTF section.
    :ivar types: ``auto`` is ``dwarf`` with a vmlinux, else ``btf``.
    :ivar vmcoreinfo: path of a file with the text of VMCOREINFO, for dumps without the note.
    :ivar vmcoreinfo_at: physical address of the VMCOREINFO to use, if the source has several.
    :ivar form: the dump's format, one of :data:`kvintro.model.DUMP_FORMATS`; None to detect it.
    :ivar snapshot: name or id of the snapshot to read, if a qcow2 disk image has several with memory.
    :ivar cache: keep the unpacked content of a packed dump in this user's cache, and use cached content.
    :ivar debuginfod: let drgn look for debuginfo on the system and download it.
    :ivar sudo: open /proc/kcore, and nothing else, with sudo. From then on, no other process of this user
        can trace this one, and it writes no core dumps (:func:`kvintro.source.privileges.shield`).
    :ivar opened: called once everything that may need root is open, before any of it is parsed. The files
        named by ``vmlinux``, ``btf`` and ``vmcoreinfo`` are opened after it.
    :ivar search: shows the progress of the search for VMCOREINFO, see
        :class:`kvintro.source.vmcoreinfo.MemorySearch`.
    :ivar unpacking: shows the progress of unpacking a packed dump.
    :ivar describe_others: if kvintro does not know the page tables of a dump's architecture, describe the
        dump in the exception, :class:`~kvintro.source.other.UnknownTables`.
    """

    core: Union[str, Sequence[str], None] = None
    qemu: Optional[str] = None
    vmlinux: Optional[str] = None
    btf: Optional[str] = None
    types: str = "auto"
    vmcoreinfo: Optional[str] = None
    vmcoreinfo_at: Optional[int] = None
    form: Optional[str] = None
    snapshot: Optional[str] = None
    cache: bool = True
    debuginfod: bool = False
    sudo: bool = False
    opened: Callable[[], None] = field(default=lambda: None, compare=False)
    search: Search = field(default=in_silence, compare=False)
    unpacking: Watch = field(default=unwatched, compare=False)
    describe_others: bool = False


class Translation(Protocol):
    """Translates a source's addresses.

    :ivar judged: verdicts on the page tables of the image, the direct map and the memory map, by name.
    """

    judged: Dict[str, Judged]

    def arithmetic(self, address: int) -> str:
        """The rule that translates a kernel address if its page table is broken; otherwise empty."""


@dataclass
class Source:
    """An opened program and its properties.

    :ivar kind: ``live``, ``core`` or ``qemu``.
    :ivar label: name of the source in reports: a path, ``/proc/kcore``, a socket.
    :ivar format: ``ELF``, ``kdump``, ``flattened ELF``, ``flattened kdump``, ``split kdump``,
        ``raw memory``, ``LiME``, ``AVML``, ``QEMU stream``, ``libvirt save file``, ``qcow2 snapshot``,
        ``VMware state``, ``VMware state and .vmem``, ``VMware debug.guest and .vmem``,
        ``VirtualBox core``, ``Xen core``, ``Xen save file``, ``Cloud Hypervisor snapshot``,
        ``kcore`` or ``QMP``.
    :ivar size: bytes of the file; None if there is no file.
    :ivar complete: False if part of the file is missing; None if that is unknown.
    :ivar left_out: bytes of the machine's memory that were excluded when the dump was made (makedumpfile -d);
        None if that is unknown.
    :ivar memory: bytes of the machine's memory that the file contains; None if that is unknown.
    :ivar vmcoreinfo: VMCOREINFO's lines as keys and values.
    :ivar vmcoreinfo_origin: where VMCOREINFO came from, for display.
    :ivar kernels: searches memory for the VMCOREINFO of all kernels in it; None if that is not supported.
    :ivar writer: the program that wrote it and the machine it was for, if the file says so.
    :ivar packing: how the file is packed, outermost first: ``gzip``, ``zstd, tar`` ...; empty if it is not.
    :ivar segments: the PT_LOADs of an ELF file or of /proc/kcore; the ranges of a file of physical memory.
    :ivar symbols: where symbols come from; ``none`` if there are none.
    :ivar types: where types come from; ``none`` if there are none.
    :ivar kallsyms: the kernel's own symbol table, if symbols come from there.
    :ivar warnings: lines that the user should read before the report.
    :ivar broken_tables: page tables of the image, the direct map and the memory map that cannot be used.
    :ivar translation: see :mod:`kvintro.source.translation`; None if drgn's reads are not changed.
    :ivar kept: the files of a dump, with their state when they were opened.
    :ivar held: lists the physical memory; None if that is unknown.
    :ivar lost: lists the physical memory (start, end exclusive) that should be in the file but is missing;
        returns None if that is unknown.
    :ivar level: which pages were left out, as in makedumpfile's ``-d``; None if the file does not say.
    :ivar eraseinfo: what makedumpfile overwrote, as text; empty if nothing.
    :ivar notes: reads the notes of an ELF file or a kdump, unchanged.
    """

    prog: drgn.Program
    kind: str
    label: str
    format: str
    size: Optional[int] = None
    complete: Optional[bool] = None
    left_out: Optional[int] = None
    memory: Optional[int] = None
    vmcoreinfo: Dict[str, str] = field(default_factory=dict)
    vmcoreinfo_origin: str = ""
    kernels: Optional[Callable[[Search], Kernels]] = field(default=None, repr=False, compare=False)
    segments: Tuple[Segment, ...] = ()
    writer: str = ""
    packing: str = ""
    symbols: str = "none"
    types: str = "none"
    kallsyms: Optional[Kallsyms] = None
    warnings: List[str] = field(default_factory=list)
    broken_tables: Tuple[BrokenTable, ...] = ()
    translation: Optional[Translation] = None
    kept: Tuple[Kept, ...] = field(default=(), repr=False, compare=False)
    held: Optional[Callable[[], Iterable[Held]]] = field(default=None, repr=False, compare=False)
    lost: Callable[[], Optional[Iterable[Tuple[int, int]]]] = field(default=tuple, repr=False, compare=False)
    level: Optional[int] = None
    eraseinfo: bytes = b""
    notes: Callable[[], bytes] = field(default=bytes, repr=False, compare=False)

    @property
    def real(self) -> int:
        """Bytes that the files of a dump occupy on disk; 0 if there are none."""
        return sum(kept.real for kept in self.kept)

    def check_size(self) -> None:
        """Check that the dump was not truncated while it was open.

        :raises NotADump: it was. Reading it further may kill the process (:mod:`kvintro.bus_error`).
        """
        for kept in self.kept:
            kept.check()

    @property
    def live(self) -> bool:
        """Whether the kernel is running while it is read."""
        return self.kind != "core"


def parse_vmcoreinfo(prog: drgn.Program) -> Dict[str, str]:
    """VMCOREINFO's ``KEY=VALUE`` lines; empty if the program has none."""
    try:
        return parse(text_of(prog))
    except LookupError:
        return {}
