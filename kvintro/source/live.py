# SPDX-License-Identifier: LGPL-2.1-or-later
"""The running kernel through /proc/kcore, and a QEMU guest through its QMP socket."""

from __future__ import annotations

import errno
import os
import platform
import subprocess
from typing import BinaryIO, Callable, Optional

import drgn

from kvintro.errors import NoSuchSource, NotADump, NotPermitted, SourceError, WrongArchitecture
from kvintro.source import Source
from kvintro.source.core import one_line
from kvintro.source.elf import read_headers
from kvintro.source.privileges import hold_kernel_files

KCORE = "/proc/kcore"
_LOCKDOWN = "/sys/kernel/security/lockdown"
_USE_DUMP = "use -c with a dump of it, or with a sample core"


def open_running_kernel(
    vmcoreinfo: Optional[bytes], *, sudo: bool = False, opened: Callable[[], None] = lambda: None
) -> Source:
    """Open the kernel that this process runs on.

    :param sudo: have sudo open /proc/kcore.
    :param opened: called when everything that needs root is open.
    :raises SourceError: there is no /proc/kcore, or it may not be read; says why.
    """
    if platform.machine() != "x86_64":
        raise WrongArchitecture(
            f"this host is {platform.machine()}, and kvintro reads kernels of x86-64",
            "use -c with a dump of an x86-64 kernel",
        )
    try:
        # Closed below, once the program has a descriptor of its own.
        file = _open_by_sudo() if sudo and os.geteuid() != 0 else open(KCORE, "rb")  # noqa: SIM115
    except OSError as error:
        raise _why_not(error) from None
    with file:
        hold_kernel_files()
        opened()
        segments = read_headers(file).segments
        prog = drgn.Program(vmcoreinfo=vmcoreinfo)
        try:
            # The program keeps the descriptor, and closes it.
            prog.set_core_dump(os.dup(file.fileno()))
        except Exception as error:
            raise SourceError(f"{KCORE} cannot be used: {one_line(error)}", _USE_DUMP) from error
    return Source(prog, "live", KCORE, "kcore", complete=None, segments=segments)


def _open_by_sudo() -> BinaryIO:
    """/proc/kcore, opened by a process of root's that does nothing else and hands it over (drgn's)."""
    os.stat(KCORE)  # nobody need give a password for what is not there
    try:
        from drgn.internal.sudohelper import open_via_sudo

        return os.fdopen(open_via_sudo(KCORE, os.O_RDONLY), "rb")
    except (ImportError, FileNotFoundError, subprocess.CalledProcessError) as error:
        raise NotPermitted(f"sudo did not open {KCORE}: {one_line(error)}", _USE_DUMP) from None


def open_qemu(address: str, vmcoreinfo: Optional[bytes]) -> Source:
    """Open a running QEMU guest.

    :param address: path of a QMP socket, or HOST:PORT.
    :raises SourceError: nothing answers there, or the guest is no Linux kernel that can be identified.
    """
    prog = drgn.Program(vmcoreinfo=vmcoreinfo)
    try:
        prog.set_qemu_qmp(address)
    except OSError as error:
        raise NoSuchSource(
            f"no QEMU answers at {address}: {one_line(error)}",
            "start QEMU with -qmp unix:PATH,server=on,wait=off and name PATH",
        ) from error
    except Exception as error:
        raise NotADump(
            f"the guest at {address} cannot be read: {one_line(error)}",
            "start QEMU with -device vmcoreinfo and load qemu_fw_cfg in the guest, or use --vmcoreinfo",
        ) from error
    if not prog.flags & drgn.ProgramFlags.IS_LINUX_KERNEL:
        raise NotADump(
            f"the guest at {address} has not said which kernel it is",
            "start QEMU with -device vmcoreinfo and load qemu_fw_cfg in the guest, or use --vmcoreinfo",
        )
    return Source(prog, "qemu", address, "QMP", complete=True)


def _why_not(error: OSError) -> SourceError:
    if error.errno == errno.ENOENT:
        return NoSuchSource(f"this kernel has no {KCORE} (it lacks CONFIG_PROC_KCORE)", _USE_DUMP)
    if error.errno in (errno.EPERM, errno.EACCES):
        if _locked_down():
            return NotPermitted(
                f"kernel lockdown (confidentiality) forbids reading {KCORE}",
                "take a dump instead, or boot with lockdown=integrity",
            )
        if os.geteuid() != 0:
            return NotPermitted(
                f"{KCORE} may be read by root only", "run it with --sudo, or as root, or " + _USE_DUMP
            )
        return NotPermitted(
            f"root may not read {KCORE} here (a container, or a security module)",
            "run it on the host with CAP_SYS_RAWIO, or " + _USE_DUMP,
        )
    return SourceError(f"{KCORE}: {one_line(error)}", _USE_DUMP)


def _locked_down() -> bool:
    try:
        with open(_LOCKDOWN, encoding="ascii") as file:
            return "[confidentiality]" in file.read()
    except OSError:
        return False
