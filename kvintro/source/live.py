# SPDX-License-Identifier: LGPL-2.1-or-later
"""The running kernel, through /proc/kcore."""

from __future__ import annotations

import errno
import os
import platform
import stat
from typing import BinaryIO, Tuple

import drgn

from kvintro.arch import architectures, by_machine, names
from kvintro.errors import NoSuchSource, NotPermitted, SourceError, WrongArchitecture
from kvintro.source.content import FileContent
from kvintro.source.core import NOTHING_WANTED
from kvintro.source.dump import held_by
from kvintro.source.elf import ElfHeaders, Segment, read_headers
from kvintro.source.formats.elf import extents_of
from kvintro.source.opened import Source
from kvintro.source.physical import MemoryFile
from kvintro.source.privileges import open_by_sudo
from kvintro.source.program import one_line
from kvintro.source.vmcoreinfo import Chosen, MemorySearch, Search, Wanted, choose, in_silence

KCORE = "/proc/kcore"
_NO_PHYSICAL = 1 << 52
_LOCKDOWN = "/sys/kernel/security/lockdown"
_USE_DUMP = "use -c with a dump of it, or with a sample core"
_ON_THE_HOST = "run it on the host, or in a container with --privileged (CAP_SYS_RAWIO), or " + _USE_DUMP


def open_kcore(*, sudo: bool = False) -> BinaryIO:
    """Open /proc/kcore, without reading it yet.

    :param sudo: open it with sudo.
    :raises SourceError: it does not exist, or may not be opened; says why.
    """
    machine = platform.machine()
    if machine not in {arch.machine for arch in architectures()}:
        raise WrongArchitecture(
            f"this host is {machine}, and kvintro reads kernels of {names()}",
            "use -c with a dump of such a kernel",
        )
    by_sudo = sudo and os.geteuid() != 0
    try:
        if by_sudo:
            os.stat(KCORE)  # do not prompt for a password if it does not exist
            return open_by_sudo(KCORE)
        return open(KCORE, "rb")
    except OSError as error:
        raise _why_not(error, as_root=by_sudo or os.geteuid() == 0) from None


def open_running_kernel(
    file: BinaryIO, wanted: Wanted = NOTHING_WANTED, search: Search = in_silence
) -> Source:
    """Open the kernel that this process runs on.

    :param file: /proc/kcore. The caller closes it.
    :param wanted: the user's choice of VMCOREINFO.
    :param search: shows the progress of the search for VMCOREINFO, if one is needed.
    :raises SourceError: it is not the kernel's file, or cannot be read.
    :raises WrongVmcoreinfo: the user's text is not the running kernel's.
    """
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode) or not file.peek(1):  # type: ignore[attr-defined]
        # Container runtimes mount /dev/null or an empty file over it.
        raise NotPermitted(f"{KCORE} is masked, as in a container", _ON_THE_HOST)
    headers = read_headers(file)
    chosen = _compared(file, headers, wanted, search) if wanted.text is not None else None
    prog = drgn.Program(vmcoreinfo=wanted.text)
    try:
        # The program keeps the descriptor, and closes it.
        prog.set_core_dump(os.dup(file.fileno()))
    except Exception as error:
        raise SourceError(f"{KCORE} cannot be used: {one_line(error)}", _USE_DUMP) from error
    return Source(
        prog,
        "live",
        KCORE,
        "kcore",
        complete=None,
        segments=headers.segments,
        vmcoreinfo_origin=chosen.origin if chosen is not None else "",
        warnings=list(chosen.warnings) if chosen is not None else [],
        held=lambda: held_by(_ram(headers)),
    )


def _compared(file: BinaryIO, headers: ElfHeaders, wanted: Wanted, search: Search) -> Chosen:
    """The user's text, compared with the kernel's memory and with its own note, as for dumps.

    :raises WrongVmcoreinfo: it is not this kernel's.
    """
    memory = MemoryFile(FileContent(file), extents_of(headers._replace(segments=_ram(headers))))
    found = MemorySearch(
        [memory],
        watch=search,
        lacks=lambda at: memory.extent_of(at) is None,
        arch=by_machine(platform.machine()),
    )
    return choose(found, KCORE, wanted, headers.note("VMCOREINFO"), "its memory")


def _ram(headers: ElfHeaders) -> Tuple[Segment, ...]:
    """The segments of RAM. Others (vmalloc, modules) have the physical address -1
    (fs/proc/kcore.c:read_kcore_iter)."""
    return tuple(part for part in headers.segments if part.paddr < _NO_PHYSICAL)


def _why_not(error: OSError, *, as_root: bool) -> SourceError:
    if error.errno == errno.ENOENT:
        if not os.path.exists("/proc/self"):
            return NoSuchSource("/proc is not mounted", "mount it, or " + _USE_DUMP)
        if not os.path.exists("/proc/kallsyms"):
            return NoSuchSource("this /proc shows processes only (subset=pid)", _ON_THE_HOST)
        return NoSuchSource(f"this kernel has no {KCORE} (it lacks CONFIG_PROC_KCORE)", _USE_DUMP)
    if error.errno in (errno.EPERM, errno.EACCES):
        if _locked_down():
            return NotPermitted(
                f"kernel lockdown (confidentiality) forbids reading {KCORE}",
                "take a dump instead, or boot with lockdown=integrity",
            )
        if not as_root:
            return NotPermitted(
                f"{KCORE} may be read by root only",
                "run it with --sudo, or as root, or " + _USE_DUMP,
                by="--sudo",
            )
        return NotPermitted(
            f"root may not read {KCORE} here (a container, or a security module)", _ON_THE_HOST
        )
    return SourceError(f"{KCORE}: {one_line(error)}", _USE_DUMP)


def _locked_down() -> bool:
    try:
        with open(_LOCKDOWN, encoding="ascii") as file:
            return "[confidentiality]" in file.read()
    except OSError:
        return False
