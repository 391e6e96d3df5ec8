# SPDX-License-Identifier: LGPL-2.1-or-later
"""The running kernel through /proc/kcore, and a QEMU guest through its QMP socket."""

from __future__ import annotations

import errno
import os
import platform
import socket
import stat
import struct
from typing import BinaryIO, Callable, Optional, Tuple

import drgn

from kvintro.errors import NoSuchSource, NotADump, NotPermitted, SourceError, WrongArchitecture
from kvintro.source import Source
from kvintro.source.core import one_line
from kvintro.source.elf import read_headers
from kvintro.source.privileges import invoker, open_by_sudo, peer_uid

KCORE = "/proc/kcore"
_LOCKDOWN = "/sys/kernel/security/lockdown"
_USE_DUMP = "use -c with a dump of it, or with a sample core"
_ON_THE_HOST = "run it on the host, or in a container with --privileged (CAP_SYS_RAWIO), or " + _USE_DUMP
_ANSWER = 10  # seconds; QEMU's monitor answers at once


def open_kcore(*, sudo: bool = False) -> BinaryIO:
    """Open /proc/kcore. Nothing is read yet.

    :param sudo: have sudo open it.
    :raises SourceError: it is not there, or may not be opened; says why.
    """
    if platform.machine() != "x86_64":
        raise WrongArchitecture(
            f"this host is {platform.machine()}, and kvintro reads kernels of x86-64",
            "use -c with a dump of an x86-64 kernel",
        )
    by_sudo = sudo and os.geteuid() != 0
    try:
        if by_sudo:
            os.stat(KCORE)  # nobody need give a password for what is not there
            return open_by_sudo(KCORE)
        return open(KCORE, "rb")
    except OSError as error:
        raise _why_not(error, as_root=by_sudo or os.geteuid() == 0) from None


def open_running_kernel(file: BinaryIO, vmcoreinfo: Optional[bytes]) -> Source:
    """The kernel that this process runs on.

    :param file: /proc/kcore. The caller closes it.
    :raises SourceError: it is not the kernel's file, or cannot be read.
    """
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode) or not file.peek(1):  # type: ignore[attr-defined]
        # Container runtimes mount /dev/null or an empty file over it.
        raise NotPermitted(f"{KCORE} is masked, as in a container", _ON_THE_HOST)
    segments = read_headers(file).segments
    prog = drgn.Program(vmcoreinfo=vmcoreinfo)
    try:
        # The program keeps the descriptor, and closes it.
        prog.set_core_dump(os.dup(file.fileno()))
    except Exception as error:
        raise SourceError(f"{KCORE} cannot be used: {one_line(error)}", _USE_DUMP) from error
    return Source(prog, "live", KCORE, "kcore", complete=None, segments=segments)


def connect(address: str, *, opened: Callable[[], None] = lambda: None) -> socket.socket:
    """Connect to a guest's QMP socket. Nothing is said or read yet.

    A Unix socket is connected to before ``opened`` is called, as its directory may be root's; a network
    address after it. Root connects to no other user's socket than that of the user who called sudo: it
    would read what a stranger says. The kernel tells whose it is, by the connection that is made, so that
    no link or exchanged file misleads.

    :param address: path of a socket, or HOST:PORT.
    :param opened: called when what may need root is open.
    :raises SourceError: nothing answers there, or it is a stranger's.
    """
    network = _host_and_port(address)
    try:
        if network is not None:
            opened()
            return socket.create_connection(network, _ANSWER)
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(_ANSWER)
            connection.connect(address)
            _check_owner(address, connection)
            opened()
        except BaseException:
            connection.close()
            raise
        return connection
    except (socket.timeout, BlockingIOError):  # TimeoutError since Python 3.10; others wait in line already
        raise _busy(address) from None
    except (OSError, ValueError) as error:
        raise NoSuchSource(
            f"no QEMU answers at {address}: {one_line(error)}",
            "start QEMU with -qmp unix:PATH,server=on,wait=off and name PATH",
        ) from error


def _host_and_port(address: str) -> Optional[Tuple[str, int]]:
    """The network address that a word means, as drgn reads it; None if it is a path."""
    host, colon, port = address.rpartition(":")
    if address.startswith(("/", ".")) or not colon or not (port.isascii() and port.isdigit()):
        return None
    return (host or "localhost", int(port)) if 1 <= int(port) <= 65535 else None


def _check_owner(address: str, connection: socket.socket) -> None:
    if os.geteuid() != 0:
        return
    owner, caller = peer_uid(connection), invoker()
    if owner not in (0, caller.uid if caller is not None else 0):
        raise NotPermitted(
            f"the socket {address} is of user {owner}, and root does not listen to other users",
            f"run it as that user: sudo -u '#{owner}' kvintro ...",
        )


def _busy(address: str) -> SourceError:
    return SourceError(
        f"QEMU does not answer at {address} within {_ANSWER} s; it talks to one client at a time",
        "end the other client (libvirt is one), or give QEMU a second -qmp socket",
    )


def open_qemu(address: str, connection: socket.socket, vmcoreinfo: Optional[bytes]) -> Source:
    """A running QEMU guest.

    :param address: how people call it.
    :param connection: a new one to its QMP socket. The program keeps it.
    :raises SourceError: nothing answers there, or the guest is no Linux kernel that can be identified.
    """
    try:
        connection.recv(1, socket.MSG_PEEK)  # QEMU greets whom it listens to
    except socket.timeout:  # TimeoutError since Python 3.10
        raise _busy(address) from None
    except OSError as error:
        raise NoSuchSource(
            f"no QEMU answers at {address}: {one_line(error)}", "is the guest running?"
        ) from None
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", _ANSWER, 0))
    prog = drgn.Program(vmcoreinfo=vmcoreinfo)
    try:
        prog.set_qemu_qmp(connection.detach())
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
                f"{KCORE} may be read by root only", "run it with --sudo, or as root, or " + _USE_DUMP
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
