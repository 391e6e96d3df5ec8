# SPDX-License-Identifier: LGPL-2.1-or-later
"""The running kernel through /proc/kcore, and a QEMU guest through its QMP socket."""

from __future__ import annotations

import errno
import json
import os
import platform
import re
import socket
import stat
import struct
import time
from io import BufferedRWPair
from typing import BinaryIO, Callable, Dict, Iterator, List, Optional, Tuple

import drgn

from kvintro.errors import NoSuchSource, NotADump, NotInDump, NotPermitted, SourceError, WrongArchitecture
from kvintro.paging.step import ReadPhysical
from kvintro.source import Source
from kvintro.source.core import MINIMAL_VMCOREINFO, NOTHING_WANTED, one_line, program_of
from kvintro.source.elf import read_headers
from kvintro.source.kallsyms import READ_ERRORS
from kvintro.source.physical import Extent, PhysicalMemory
from kvintro.source.privileges import invoker, open_by_sudo, peer_uid
from kvintro.source.scan import pieces
from kvintro.source.vmcoreinfo import Encrypted, Judge, MemorySearch, Search, Wanted, choose, in_silence

KCORE = "/proc/kcore"
_LOCKDOWN = "/sys/kernel/security/lockdown"
_USE_DUMP = "use -c with a dump of it, or with a sample core"
_ON_THE_HOST = "run it on the host, or in a container with --privileged (CAP_SYS_RAWIO), or " + _USE_DUMP
_NOTE_REMEDY = (
    "start QEMU with -device vmcoreinfo and load qemu_fw_cfg in the guest, or use --vmcoreinfo FILE"
)
_QMP_REMEDY = "start QEMU with -qmp unix:PATH,server=on,wait=off and name PATH"
_RAM = re.compile(r"^ *([0-9a-f]{16})-([0-9a-f]{16}) \(prio -?[0-9]{1,6}, ram\):", re.M)
_MAX_ANSWER, _MAX_EVENTS = 4 << 20, 1000
_MAX_GREETING = 4096  # bytes; QEMU's has about 150
_GREETING = b'{"QMP":'
_PAUSE = 0.01  # seconds
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
        raise NoSuchSource(f"no QEMU answers at {address}: {_reason(error)}", _QMP_REMEDY) from error


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


def open_qemu(
    address: str, connection: socket.socket, wanted: Wanted = NOTHING_WANTED, search: Search = in_silence
) -> Source:
    """A running QEMU guest.

    :param address: how people call it. Where the guest does not say which kernel it is, this is connected to
        again.
    :param connection: a new one to its QMP socket. The program keeps it.
    :param wanted: which VMCOREINFO to use, if the user says.
    :param search: watches the search for VMCOREINFO, see :class:`~kvintro.source.vmcoreinfo.MemorySearch`.
    :raises SourceError: nothing answers there, or the guest is no Linux kernel that can be identified.
    """
    prog = _listen(address, connection, None)
    note: Optional[bytes] = None
    if prog.flags & drgn.ProgramFlags.IS_LINUX_KERNEL:
        note = prog["VMCOREINFO"].string_()
        if wanted == NOTHING_WANTED:
            verdict = Judge(_physical(prog))(note, with_build_id=False)
            if verdict.state == "fits":
                return Source(prog, "qemu", address, "QMP", complete=True)
    del prog  # QEMU talks to one client at a time
    with connect(address) as other:
        ram = _ram(address, other)
    prog = _listen(address, connect(address), MINIMAL_VMCOREINFO)
    guest = _Guest(prog, ram)
    memory = MemorySearch([guest], watch=search, lacks=lambda at: guest.extent_of(at) is None)
    try:
        chosen = choose(memory, address, wanted, note, "its memory")
    except Encrypted:
        raise
    except NotADump as error:
        what = error.what if note is not None else f"the guest at {address}: {error.what}"
        raise NotADump(what, _NOTE_REMEDY) from None
    return Source(
        program_of(guest, chosen.text, live=True),
        "qemu",
        address,
        "QMP",
        complete=True,
        vmcoreinfo_origin=chosen.origin,
        kernels=memory.kernels,
        warnings=list(chosen.warnings),
    )


def _listen(address: str, connection: socket.socket, vmcoreinfo: Optional[bytes]) -> drgn.Program:
    """A program that reads a guest's memory."""
    _await_greeting(address, connection)
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", _ANSWER, 0))
    prog = drgn.Program(vmcoreinfo=vmcoreinfo)
    try:
        prog.set_qemu_qmp(connection.detach())
    except Exception as error:
        raise NotADump(f"the guest at {address} cannot be read: {one_line(error)}", _QMP_REMEDY) from error
    return prog


def _await_greeting(address: str, connection: socket.socket) -> None:
    """Wait for QEMU's greeting and leave it in the socket. drgn reads until the line ends, without a limit.

    :raises SourceError: there is none, or something else talks there.
    """
    deadline = time.monotonic() + _ANSWER
    said = b""
    try:
        while b"\n" not in said and len(said) < _MAX_GREETING:
            connection.settimeout(max(deadline - time.monotonic(), 0.001))
            more = connection.recv(_MAX_GREETING, socket.MSG_PEEK)
            if not more:
                raise NoSuchSource(f"{address} closes the connection at once", _QMP_REMEDY)
            if not more.startswith(_GREETING[: len(more)]):
                break
            if time.monotonic() > deadline:
                raise socket.timeout
            if more == said:
                time.sleep(_PAUSE)  # half a line: MSG_PEEK does not wait for the rest
            said = more
    except socket.timeout:  # TimeoutError since Python 3.10
        raise _busy(address) from None
    except OSError as error:
        raise NoSuchSource(
            f"no QEMU answers at {address}: {_reason(error)}", "is the guest running?"
        ) from None
    if b"\n" not in said:
        raise NoSuchSource(f"what listens at {address} does not speak QMP", _QMP_REMEDY)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or one_line(error)


def _ram(address: str, connection: socket.socket) -> List[Extent]:
    """Where the guest has RAM, by QEMU's monitor. What else has addresses are devices, which act when they
    are read."""
    _await_greeting(address, connection)
    try:
        with connection.makefile("rwb") as stream:
            stream.readline(_MAX_ANSWER)
            _ask(stream, "qmp_capabilities")
            text = str(_ask(stream, "human-monitor-command", {"command-line": "info mtree -f"}))
    except (OSError, ValueError, KeyError) as error:
        raise NotADump(f"QEMU at {address} does not say where its guest has RAM: {one_line(error)}") from None
    found = [(int(first, 16), int(last, 16) + 1) for first, last in _RAM.findall(text)]
    extents: List[Extent] = []
    end = 0
    for first, behind in sorted(found):
        start = max(first, end)
        if behind > start:
            extents.append(Extent(start, behind - start, 0))
            end = behind
    if not extents:
        raise NotADump(f"QEMU at {address} names no RAM of its guest", _NOTE_REMEDY)
    return extents


def _ask(stream: BufferedRWPair, command: str, arguments: Optional[Dict[str, str]] = None) -> object:
    """One QMP command's answer.

    :raises ValueError: QEMU says no, or nonsense.
    """
    stream.write(json.dumps({"execute": command, "arguments": arguments or {}}).encode() + b"\r\n")
    stream.flush()
    for _ in range(_MAX_EVENTS):
        answer = json.loads(stream.readline(_MAX_ANSWER))
        if "return" in answer:
            return answer["return"]
        if "error" in answer:
            raise ValueError(str(answer["error"]))
    raise ValueError(f"no answer to {command}")


def _physical(prog: drgn.Program) -> ReadPhysical:
    def read(address: int, size: int) -> bytes:
        try:
            data: bytes = prog.read(address, size, True)
            return data
        except READ_ERRORS as error:
            raise NotInDump(address, size, physical=True) from error

    return read


class _Guest(PhysicalMemory):
    """The RAM of a running guest."""

    def __init__(self, prog: drgn.Program, ram: List[Extent]) -> None:
        super().__init__(ram)
        self._prog = prog

    def _read(self, extent: Extent, address: int, size: int) -> bytes:
        return _physical(self._prog)(address, size)

    def pieces(self) -> Iterator[Tuple[int, bytes]]:
        for extent in self.extents:
            end = extent.address + extent.size
            yield from pieces(lambda at, size: self._prog.read(at, size, True), extent.address, end)


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
