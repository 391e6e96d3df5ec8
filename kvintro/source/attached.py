# SPDX-License-Identifier: LGPL-2.1-or-later
"""A program that somebody else opened: a session of drgn's, a notebook."""

from __future__ import annotations

import contextlib
import os
from typing import BinaryIO, Optional

import drgn
from drgn import ProgramFlags

from kvintro.arch import x86_64
from kvintro.errors import KvintroError, NotADump, WrongArchitecture
from kvintro.source import Request, Source, debuginfo, parse_vmcoreinfo, translation
from kvintro.source.core import PARTS_MISSING, DumpFile, examine, hide_null
from kvintro.source.files import keep, open_file
from kvintro.source.live import KCORE

_KEY = "kvintro"


def attach(prog: drgn.Program) -> Source:
    """What is known of a program. One without debuginfo is given the kernel's own symbols and types.

    A second time the same record is returned.

    :raises NotADump: it is no Linux kernel.
    :raises WrongArchitecture: it is one of an architecture that kvintro does not know.
    """
    known = prog.config.get(_KEY)
    if isinstance(known, Source):
        return known
    if not prog.flags & ProgramFlags.IS_LINUX_KERNEL:
        raise NotADump("this program is no Linux kernel", "open a dump with drgn -c, or the running kernel")
    platform = prog.platform
    if platform is None or platform.arch.name != x86_64.ARCHITECTURE.drgn_name:
        name = "unknown" if platform is None else platform.arch.name
        raise WrongArchitecture(f"this kernel's architecture is {name}", "kvintro reads kernels of x86-64")
    source = _described(prog)
    source.vmcoreinfo = parse_vmcoreinfo(prog)
    translation.prepare(source)
    if _has_types(prog) and "btf" not in prog.enabled_type_finders():
        source.types = source.symbols = "DWARF"
    else:
        debuginfo.load(source, Request())
    translation.prepare_with_symbols(source)
    adopt(source)
    return source


def adopt(source: Source) -> None:
    """Make :func:`attach` return this record for its program."""
    source.prog.config[_KEY] = source


def _described(prog: drgn.Program) -> Source:
    if prog.flags & ProgramFlags.IS_LIVE and not prog.flags & ProgramFlags.IS_LOCAL:
        return Source(prog, "qemu", "QEMU guest", "QMP", complete=True)
    path = prog.core_dump_path
    if prog.flags & ProgramFlags.IS_LIVE:
        headers = None
        with contextlib.suppress(KvintroError), open_file(path or KCORE) as file:
            headers = _examined(file, KCORE)
        segments = headers.headers.segments if headers is not None and headers.headers is not None else ()
        return Source(prog, "live", KCORE, "kcore", segments=segments)
    if path is None:
        return Source(prog, "core", "a program", "memory")
    # drgn knows it by its full path; a person by the shorter one.
    path = os.path.relpath(path) if path.startswith(os.path.join(os.getcwd(), "")) else path
    try:
        file = open_file(path)
    except KvintroError:
        return Source(prog, "core", path, "dump")
    with file:
        source = _described_dump(prog, path, _examined(file, path))
        source.kept = (keep(file, path),)
    return source


def _described_dump(prog: drgn.Program, path: str, found: Optional[DumpFile]) -> Source:
    if found is None:
        return Source(prog, "core", path, "dump")
    segments = found.headers.segments if found.headers is not None else ()
    if segments and not any(segment.vaddr for segment in segments):
        hide_null(prog)
    if found.kdump is not None and found.kdump.part is not None:
        # drgn takes one file of a split dump; kernel() takes them all.
        return Source(prog, "core", path, "split kdump", found.size, False, warnings=[PARTS_MISSING])
    return Source(
        prog, "core", path, found.format, found.size, found.complete, found.left_out, segments=segments
    )


def _examined(file: BinaryIO, path: str) -> Optional[DumpFile]:
    """None where it makes no sense: the program has it open, and that must do."""
    try:
        return examine(file, os.path.basename(path))
    except (OSError, KvintroError):
        return None


def _has_types(prog: drgn.Program) -> bool:
    try:
        prog.type("struct page")
    except LookupError:
        return False
    return True
