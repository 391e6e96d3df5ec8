# SPDX-License-Identifier: LGPL-2.1-or-later
"""The only package that opens a :class:`drgn.Program`.

:func:`open_source` takes a request from the command line and returns a :class:`Source`: a program whose
memory can be read, and how complete it is. Without debuginfo, symbols and types come from the kernel itself.
"""

from __future__ import annotations

from contextlib import ExitStack

from kvintro.errors import SourceError, UsageError
from kvintro.source.cache import user_cache
from kvintro.source.files import open_file, read_small_file
from kvintro.source.note import text_from_file
from kvintro.source.opened import Request, Source, Translation, parse_vmcoreinfo
from kvintro.source.other import OtherDump, UnknownTables
from kvintro.source.privileges import hold_kernel_files
from kvintro.source.unpack import Unpacker
from kvintro.source.vmcoreinfo import Wanted

__all__ = (
    "OtherDump",
    "Request",
    "Source",
    "Translation",
    "UnknownTables",
    "open_source",
    "parse_vmcoreinfo",
)


def open_source(request: Request) -> Source:
    """Open the source that a request names.

    :raises SourceError: it cannot be opened; the exception has a remedy.
    :raises UsageError: the request contradicts itself.
    """
    from kvintro.source import debuginfo, translation, verify

    if request.core is not None and request.qemu is not None:
        raise UsageError("-c and --qemu name two different sources", "give one of them")
    if request.vmcoreinfo is not None and request.vmcoreinfo_at is not None:
        raise UsageError(
            "--vmcoreinfo and --vmcoreinfo-at both say which VMCOREINFO to use", "give one of them"
        )
    if request.vmcoreinfo_at is not None and request.core is None and request.qemu is None:
        raise UsageError("the running kernel is the one that runs", "--vmcoreinfo-at needs -c or --qemu")
    if request.types == "dwarf" and request.vmlinux is None and not request.debuginfod:
        raise UsageError("--types dwarf needs debuginfo", "name it with -s VMLINUX, or allow --debuginfod")
    try:
        with ExitStack() as stack:
            source = _open(request, stack)
    except OSError as error:
        # A bad disk, or a file system that disappeared.
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
    verify.check_start(source)
    verify.check_end(source)
    verify.check_vmcoreinfo(source, request.vmcoreinfo)
    return source


def _open(request: Request, stack: ExitStack) -> Source:
    """Open files first, with all rights; then give these up; then read the files."""
    if request.core is not None:
        from kvintro.source import core

        paths = [request.core] if isinstance(request.core, str) else request.core
        named = [path for path in paths if path != core.STANDARD_INPUT]
        files = {path: stack.enter_context(open_file(path, dump=True)) for path in named}
        request.opened()
        return core.open_core(
            files,
            paths,
            _wanted(request),
            form=request.form,
            snapshot=request.snapshot,
            search=request.search,
            unpacker=Unpacker(request.unpacking, user_cache() if request.cache else None),
            describe_others=request.describe_others,
        )
    if request.qemu is not None:
        from kvintro.source import guest, qmp

        connection = stack.enter_context(qmp.connect(request.qemu, opened=request.opened))
        return guest.open_qemu(request.qemu, connection, _wanted(request), request.search)
    from kvintro.source import live

    file = stack.enter_context(live.open_kcore(sudo=request.sudo))
    hold_kernel_files()
    request.opened()
    return live.open_running_kernel(file, _wanted(request), request.search)


def _wanted(request: Request) -> Wanted:
    """The user's choice of VMCOREINFO."""
    if request.vmcoreinfo is None:
        return Wanted(address=request.vmcoreinfo_at)
    data = read_small_file(request.vmcoreinfo, "--vmcoreinfo")
    return Wanted(text_from_file(data, request.vmcoreinfo), request.vmcoreinfo)
