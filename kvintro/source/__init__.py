# SPDX-License-Identifier: LGPL-2.1-or-later
"""The only place that opens a :class:`drgn.Program`.

:func:`open_source` takes what the command line says and returns a :class:`Source`: a program whose memory can
be read, whose symbols and types come from the kernel itself where no debuginfo was given, and what is known
of how complete it is.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Callable, Dict, List, Optional, Protocol, Sequence, Tuple, Union

import drgn

from kvintro.errors import SourceError, UsageError
from kvintro.paging.broken import BrokenTable, Judged
from kvintro.source.elf import Segment
from kvintro.source.files import Kept, open_file, read_small_file
from kvintro.source.note import parse, text_from_file, text_of
from kvintro.source.privileges import hold_kernel_files
from kvintro.source.vmcoreinfo import Kernels, Search, Wanted, in_silence

if TYPE_CHECKING:
    from kvintro.source.kallsyms import Kallsyms


@dataclass(frozen=True)
class Request:
    """What to open.

    :ivar core: path of a dump, or of all parts of a split one; None for the running kernel or ``qemu``.
    :ivar qemu: QMP socket of a QEMU guest.
    :ivar vmlinux: path of a vmlinux with DWARF.
    :ivar btf: path of a file of BTF, or of an ELF file with a .BTF section.
    :ivar types: ``auto`` is ``dwarf`` with a vmlinux, else ``btf``.
    :ivar vmcoreinfo: path of a file with the text of VMCOREINFO, for dumps without the note.
    :ivar vmcoreinfo_at: physical address in the source of the VMCOREINFO to use, where it has several.
    :ivar form: what the dump is, one of :data:`kvintro.model.DUMP_FORMATS`; None to tell from its content.
    :ivar debuginfod: let drgn look for debuginfo on the system and download it.
    :ivar sudo: have sudo open /proc/kcore, and nothing else. From then on no other process of this user can
        trace this one, and it writes no core dumps (:func:`kvintro.source.privileges.shield`).
    :ivar opened: called when what may need root is open, before any of it is parsed. The files that
        ``vmlinux``, ``btf`` and ``vmcoreinfo`` name are opened after it.
    :ivar search: watches the search for VMCOREINFO, see :class:`kvintro.source.vmcoreinfo.MemorySearch`.
    """

    core: Union[str, Sequence[str], None] = None
    qemu: Optional[str] = None
    vmlinux: Optional[str] = None
    btf: Optional[str] = None
    types: str = "auto"
    vmcoreinfo: Optional[str] = None
    vmcoreinfo_at: Optional[int] = None
    form: Optional[str] = None
    debuginfod: bool = False
    sudo: bool = False
    opened: Callable[[], None] = field(default=lambda: None, compare=False)
    search: Search = field(default=in_silence, compare=False)


class Translation(Protocol):
    """How a source's addresses translate.

    :ivar judged: what is known of the page tables of the image, the direct map and the memory map, by name.
    """

    judged: Dict[str, Judged]

    def arithmetic(self, address: int) -> str:
        """By what a kernel address is read whose page table is broken; empty for others."""


@dataclass
class Source:
    """An opened program and what is known of it.

    :ivar kind: ``live``, ``core`` or ``qemu``.
    :ivar label: how the source is called in reports: a path, ``/proc/kcore``, a socket.
    :ivar format: ``ELF``, ``kdump``, ``flattened ELF``, ``flattened kdump``, ``split kdump``,
        ``raw memory``, ``LiME``, ``AVML``, ``kcore`` or ``QMP``.
    :ivar size: bytes of the file, None where it has none.
    :ivar complete: False if part of the file is missing; None if that cannot be told.
    :ivar left_out: bytes of memory that the machine had and the dump's maker left out (makedumpfile -d); None
        if that is not known.
    :ivar memory: bytes of the machine's memory that the file has, None if that is not known.
    :ivar vmcoreinfo: VMCOREINFO's lines as keys and values.
    :ivar vmcoreinfo_origin: where those come from, for people.
    :ivar kernels: looks through memory for the VMCOREINFO of all kernels in it; None where that is not done.
    :ivar segments: the PT_LOADs of an ELF file or of /proc/kcore; the ranges of a file of physical memory.
    :ivar symbols: where symbols come from, ``none`` if from nowhere.
    :ivar types: where types come from, ``none`` if from nowhere.
    :ivar kallsyms: the kernel's own symbol table, if symbols come from there.
    :ivar warnings: each one line that the user should read before the report.
    :ivar broken_tables: page tables of the image, the direct map and the memory map that cannot be used.
    :ivar translation: what :mod:`kvintro.source.translation` knows; None where drgn's reads are left alone.
    :ivar kept: the files of a dump as they were when they were opened.
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
    symbols: str = "none"
    types: str = "none"
    kallsyms: Optional[Kallsyms] = None
    warnings: List[str] = field(default_factory=list)
    broken_tables: Tuple[BrokenTable, ...] = ()
    translation: Optional[Translation] = None
    kept: Tuple[Kept, ...] = field(default=(), repr=False, compare=False)

    @property
    def real(self) -> int:
        """Bytes that the files of a dump have on the disk; 0 for what has no file."""
        return sum(kept.real for kept in self.kept)

    def check_size(self) -> None:
        """See that nothing was cut off the dump while it was open.

        :raises NotADump: it has become shorter. Reading it further may kill the process
            (:mod:`kvintro.bus_error`).
        """
        for kept in self.kept:
            kept.check()

    @property
    def live(self) -> bool:
        """Whether the kernel runs while it is read."""
        return self.kind != "core"


def open_source(request: Request) -> Source:
    """Open what the request names.

    :raises SourceError: it cannot be opened; the exception says what to do.
    :raises UsageError: the request contradicts itself.
    """
    from kvintro.source import core, debuginfo, translation

    if request.core is not None and request.qemu is not None:
        raise UsageError("-c and --qemu name two different sources", "give one of them")
    if request.vmcoreinfo is not None and request.vmcoreinfo_at is not None:
        raise UsageError(
            "--vmcoreinfo and --vmcoreinfo-at both say which VMCOREINFO to use", "give one of them"
        )
    if request.vmcoreinfo_at is not None and request.core is None and request.qemu is None:
        raise UsageError("the running kernel is the one that runs", "--vmcoreinfo-at goes with -c or --qemu")
    if request.types == "dwarf" and request.vmlinux is None and not request.debuginfod:
        raise UsageError("--types dwarf needs debuginfo", "name it with -s VMLINUX, or allow --debuginfod")
    try:
        with ExitStack() as stack:
            source = _open(request, stack)
    except OSError as error:
        # A bad disk, or a file system that went away.
        raise SourceError(
            f"the source cannot be read: {(error.strerror or str(error)).lower()}", "check the disk it is on"
        ) from error
    source.vmcoreinfo = parse_vmcoreinfo(source.prog)
    if source.vmcoreinfo and not source.vmcoreinfo_origin:
        given = request.vmcoreinfo is not None
        source.vmcoreinfo_origin = "--vmcoreinfo" if given else f"the note of {source.label}"
    translation.prepare(source)
    debuginfo.load(source, request)
    translation.prepare_with_symbols(source)
    core.check_end(source)
    core.check_vmcoreinfo(source, request.vmcoreinfo)
    return source


def _open(request: Request, stack: ExitStack) -> Source:
    """Open first, with all rights; then give these up; then read what was opened."""
    from kvintro.source import core, live

    if request.core is not None:
        paths = [request.core] if isinstance(request.core, str) else request.core
        named = [path for path in paths if path != core.STANDARD_INPUT]
        files = {path: stack.enter_context(open_file(path, dump=True)) for path in named}
        request.opened()
        return core.open_core(files, paths, _wanted(request), form=request.form, search=request.search)
    if request.qemu is not None:
        connection = stack.enter_context(live.connect(request.qemu, opened=request.opened))
        return live.open_qemu(request.qemu, connection, _wanted(request), request.search)
    file = stack.enter_context(live.open_kcore(sudo=request.sudo))
    hold_kernel_files()
    request.opened()
    return live.open_running_kernel(file, _wanted(request).text)


def _wanted(request: Request) -> Wanted:
    """Which VMCOREINFO the user wants."""
    if request.vmcoreinfo is None:
        return Wanted(address=request.vmcoreinfo_at)
    data = read_small_file(request.vmcoreinfo, "--vmcoreinfo")
    return Wanted(text_from_file(data, request.vmcoreinfo), request.vmcoreinfo)


def parse_vmcoreinfo(prog: drgn.Program) -> Dict[str, str]:
    """VMCOREINFO's ``KEY=VALUE`` lines, empty if the program has none."""
    try:
        return parse(text_of(prog))
    except LookupError:
        return {}
