# SPDX-License-Identifier: LGPL-2.1-or-later
"""Loads symbols and types for an opened program: from debuginfo if given, otherwise from the kernel."""

from __future__ import annotations

from typing import Optional

from kvintro.errors import KvintroError, NoTypes, WrongVmcoreinfo, WrongVmlinux
from kvintro.source.elf import ET_CORE, read_headers
from kvintro.source.files import open_file, read_small_file
from kvintro.source.installed import Missing, install
from kvintro.source.note import symbols_of
from kvintro.source.opened import Request, Source
from kvintro.source.program import one_line, without_advice


def load(source: Source, request: Request) -> None:
    """Add symbols and types to a source, and record where they came from."""
    if request.vmlinux is not None or request.types == "dwarf":
        _load_dwarf(source, request)
        return
    _load_builtin(source, request)


def _load_dwarf(source: Source, request: Request) -> None:
    prog = source.prog
    if request.vmlinux is None:
        try:
            with without_advice():
                prog.load_debug_info(None, True)
        except Exception as error:
            raise WrongVmlinux(
                f"no debuginfo was found: {one_line(error)}", "name it with -s VMLINUX"
            ) from error
        source.symbols = source.types = "DWARF"
        return
    path = request.vmlinux
    with open_file(path) as file:
        try:
            headers = read_headers(file, section_notes=True)
        except KvintroError as error:
            raise WrongVmlinux(
                f"{path} is not a vmlinux: {error.what}", "-s takes the uncompressed vmlinux"
            ) from error
    if headers.type == ET_CORE:
        raise WrongVmlinux(
            f"{path} is a dump, not a vmlinux", "name the dump with -c, and the vmlinux with -s"
        )
    wanted = source.vmcoreinfo.get("BUILD-ID", "")
    if wanted and headers.build_id and headers.build_id != wanted:
        raise WrongVmlinux(
            f"{path} belongs to another kernel: its build id is {headers.build_id}, the source's is {wanted}",
            f"use the vmlinux of {source.vmcoreinfo.get('OSRELEASE', 'the kernel dumped')}",
        )
    try:
        with without_advice():
            prog.load_debug_info([path])
            # drgn also accepts a file without debuginfo, or of another program.
            prog.type("struct task_struct")
    except Exception as error:
        raise WrongVmlinux(
            f"{path} has no usable debuginfo: {one_line(error)}",
            "install the kernel's -dbg package, or run it without -s to use the kernel's own types",
        ) from error
    _check_place(source)
    source.symbols = source.types = "DWARF"


def _check_place(source: Source) -> None:
    """Check the addresses of symbols from debuginfo, which drgn moves by VMCOREINFO's KERNELOFFSET.

    :raises WrongVmcoreinfo: they differ from VMCOREINFO's.
    """
    wanted = symbols_of(source.vmcoreinfo).get("_stext")
    try:
        found = source.prog.symbol("_stext").address
    except LookupError:
        return
    if wanted is not None and found != wanted:
        raise WrongVmcoreinfo(
            f"VMCOREINFO contradicts itself: with its KERNELOFFSET _stext is at {found:#x}, "
            f"and its SYMBOL(_stext) is {wanted:#x}",
            "run it without -s: the kernel's own symbols do not depend on KERNELOFFSET",
        )


def _load_builtin(source: Source, request: Request) -> None:
    btf: Optional[bytes] = None
    if request.btf is not None:
        btf = read_small_file(request.btf, "--btf")
    installed = install(source.prog, btf=btf, types=request.types != "none")
    source.symbols = installed.symbols or "none"
    source.types = installed.types or "none"
    source.kallsyms = installed.kallsyms
    if installed.kallsyms is not None and installed.kallsyms.code_only:
        source.symbols += " (code only: CONFIG_KALLSYMS_ALL is off)"
    missing = installed.types_missing
    if missing is not None and (request.btf is not None or request.types == "btf"):
        # The user explicitly requested types, so a report without them is not wanted.
        raise NoTypes(missing.reason, missing.remedy or "run it without --btf and --types")
    if installed.symbols_missing is not None:
        _warn(source, "symbols", installed.symbols_missing)
    if missing is not None and request.types != "none":
        _warn(source, "types", missing)


def _warn(source: Source, what: str, missing: Missing) -> None:
    remedy = f"; {missing.remedy}" if missing.remedy else ""
    source.warnings.append(f"no {what}: {missing.reason}{remedy}")
