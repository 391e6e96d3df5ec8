# SPDX-License-Identifier: LGPL-2.1-or-later
"""Uses a program that other code opened, such as a drgn session or a notebook."""

from __future__ import annotations

import contextlib
import os
from typing import BinaryIO, Optional

import drgn
from drgn import ProgramFlags

from kvintro.arch import architectures, names
from kvintro.errors import KvintroError, NotADump, WrongArchitecture
from kvintro.source import debuginfo, translation
from kvintro.source.dump import Dump
from kvintro.source.files import keep, open_file
from kvintro.source.formats import examine
from kvintro.source.formats.kdump import PARTS_MISSING, is_part
from kvintro.source.live import KCORE
from kvintro.source.opened import Request, Source, parse_vmcoreinfo
from kvintro.source.program import hide_null

_KEY = "kvintro"


def attach(prog: drgn.Program) -> Source:
    """Make a source from a program. Adds the kernel's own symbols and types if there is no debuginfo.

    Further calls for the same program return the same object.

    :raises NotADump: it is not a Linux kernel.
    :raises WrongArchitecture: kvintro does not support its architecture.
    """
    known = prog.config.get(_KEY)
    if isinstance(known, Source):
        return known
    if not prog.flags & ProgramFlags.IS_LINUX_KERNEL:
        raise NotADump(
            "this program is not a Linux kernel", "open a dump with drgn -c, or the running kernel"
        )
    platform = prog.platform
    name = "unknown" if platform is None else platform.arch.name
    if name not in {arch.drgn_name for arch in architectures()}:
        raise WrongArchitecture(
            f"this kernel's architecture is {name}", f"kvintro reads kernels of {names()}"
        )
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
    """Make :func:`attach` return this source for its program."""
    source.prog.config[_KEY] = source


def _described(prog: drgn.Program) -> Source:
    if prog.flags & ProgramFlags.IS_LIVE and not prog.flags & ProgramFlags.IS_LOCAL:
        return Source(prog, "qemu", "QEMU guest", "QMP", complete=True)
    path = prog.core_dump_path
    if prog.flags & ProgramFlags.IS_LIVE:
        dump = None
        with contextlib.suppress(KvintroError), open_file(path or KCORE) as file:
            dump = _examined(file, KCORE)
        return Source(prog, "live", KCORE, "kcore", segments=dump.segments if dump is not None else ())
    if path is None:
        return Source(prog, "core", "a program", "memory")
    # drgn has the full path; use the relative one if the file is below the current directory.
    path = os.path.relpath(path) if path.startswith(os.path.join(os.getcwd(), "")) else path
    try:
        file = open_file(path)
    except KvintroError:
        return Source(prog, "core", path, "dump")
    with file:
        source = _described_dump(prog, path, _examined(file, path))
        source.kept = (keep(file.fileno(), path),)
    return source


def _described_dump(prog: drgn.Program, path: str, found: Optional[Dump]) -> Source:
    if found is None:
        return Source(prog, "core", path, "dump")
    segments = found.segments
    if segments and not any(segment.vaddr for segment in segments):
        hide_null(prog)
    if is_part(found):
        # drgn opens one file of a split dump; kernel() opens all of them.
        return Source(prog, "core", path, "split kdump", found.size, False, warnings=[PARTS_MISSING])
    return Source(
        prog,
        "core",
        path,
        found.format,
        found.size,
        found.complete,
        found.left_out,
        segments=segments,
        held=found.held,
        lost=found.lost,
        level=found.level,
        eraseinfo=found.eraseinfo(),
        notes=found.notes,
    )


def _examined(file: BinaryIO, path: str) -> Optional[Dump]:
    """The file's dump; None if it is invalid, as the program has it open anyway."""
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
