# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reads a running QEMU guest through QEMU's monitor.

drgn can do that too (``set_qemu_qmp``), but it reads an unlimited amount from the other side, and trusts it
to name the process with the guest's memory. Here :mod:`kvintro.source.qmp` talks to the monitor, one
connection serves all purposes, and drgn reads memory through :class:`Guest`.
"""

from __future__ import annotations

import os
import re
import socket
from typing import Dict, Iterator, List, Optional, Tuple

from kvintro.errors import NotADump, NotInDump, SourceError
from kvintro.source.core import NOTHING_WANTED
from kvintro.source.elf import read_headers
from kvintro.source.opened import Source
from kvintro.source.physical import PAGE, Extent, Held, PhysicalMemory
from kvintro.source.privileges import peer_pid
from kvintro.source.program import program_of
from kvintro.source.qmp import Monitor, Refused
from kvintro.source.vmcoreinfo import Encrypted, MemorySearch, Search, Wanted, choose, in_silence

_NOTE_REMEDY = (
    "start QEMU with -device vmcoreinfo and load qemu_fw_cfg in the guest, or use --vmcoreinfo FILE"
)
_TAKE_A_DUMP = "write a dump with QEMU's dump-guest-memory, and name it with -c"
_MAX_MTREE = 4 << 20  # bytes of text
_MAX_RANGES = 1024  # a guest has a dozen, and one per DIMM
# Reading a device can have side effects, so only RAM and ROM are read. A line of "info mtree -f":
#   0000000000000000-000000000009ffff (prio 0, ram): pc.ram KVM
_RANGE = re.compile(r"^ *([0-9a-f]{16})-([0-9a-f]{16}) \(prio -?[0-9]{1,6}, (?:nv-)?(?:ram|rom)\):", re.M)
_FLAT_VIEW, _ROOT = "FlatView #", "Root memory region:"
_AT_HOST = re.compile(r"Host virtual address for [^\n)]*\) is 0x([0-9a-f]{1,16})\s*", re.ASCII)
_PIECE = 1 << 20  # bytes to read at once from QEMU's process
_ASKED = 16384  # bytes to request at once from the monitor
_PER_BYTE, _PER_LINE = 5, 32  # characters of its answer, at most
_LINE = 8  # bytes on a line of its answer
_SAMPLE = 64
# Bytes to search for VMCOREINFO, in addition to the memory that the process really has. The monitor alone
# returns each byte as five characters, and _SEARCH_BY_MONITOR takes 5 s of processor time.
_FREE_SEARCH = 256 << 20
_SEARCH_BY_MONITOR = 48 << 20
_MAX_MISSING = 1024  # pages of RAM that cannot be read; QEMU can read all
_LOOK = 4 << 30


def open_qemu(
    address: str, connection: socket.socket, wanted: Wanted = NOTHING_WANTED, search: Search = in_silence
) -> Source:
    """Open a running QEMU guest.

    :param address: its name in messages.
    :param connection: a new connection to its QMP socket; this function takes ownership.
    :param wanted: the user's choice of VMCOREINFO.
    :param search: shows the progress of the search for VMCOREINFO, see
        :class:`~kvintro.source.vmcoreinfo.MemorySearch`.
    :raises SourceError: nothing answers there, or it is not a Linux guest that can be identified.
    """
    local = connection.family == socket.AF_UNIX
    pid = peer_pid(connection) if local else 0
    monitor = Monitor(address, connection)
    try:
        return _open(address, monitor, pid, local, wanted, search)
    except BaseException:
        monitor.close()
        raise


def _open(address: str, monitor: Monitor, pid: int, local: bool, wanted: Wanted, search: Search) -> Source:
    guest = Guest(monitor, ram(address, monitor), pid)
    note = _note(monitor, guest) if local else None
    memory = MemorySearch(
        [guest], watch=search, lacks=lambda at: guest.extent_of(at) is None, limit=guest.search_limit
    )
    try:
        chosen = choose(memory, address, wanted, note, "its memory")
    except Encrypted:
        raise
    except NotADump as error:
        what = error.what if note is not None else f"the guest at {address}: {error.what}"
        remedy = _NOTE_REMEDY
        if not guest.direct and not memory.whole:
            remedy += "; or run kvintro on QEMU's host as QEMU's user, which is much faster"
        raise NotADump(what, remedy) from None
    by_note = chosen.address is None and wanted == NOTHING_WANTED
    return Source(
        program_of(guest, chosen.text, live=True),
        "qemu",
        address,
        "QMP",
        complete=True,
        # A note that fits is named after the guest, as is that of /proc/kcore.
        vmcoreinfo_origin="" if by_note and not chosen.warnings else chosen.origin,
        # The monitor takes minutes for a gigabyte, so it is used only if the search was needed anyway.
        kernels=(lambda watch: memory.kernels(watch, _LOOK)) if guest.direct or not by_note else None,
        warnings=list(chosen.warnings),
        held=lambda: [Held(start, start + size, True) for start, size, _ in guest.extents],
    )


def ram(address: str, monitor: Monitor) -> List[Extent]:
    """The ranges of the guest's RAM and ROM.

    :raises NotADump: QEMU does not say.
    """
    try:
        text = monitor.command_line("info mtree -f", limit=_MAX_MTREE)
    except Refused as error:
        what = f"QEMU at {address} does not list its guest's RAM: {error}"
        raise NotADump(what, _TAKE_A_DUMP) from None
    extents: List[Extent] = []
    end = 0
    for first, behind in sorted(_ranges(text)):
        start = max(first, end)
        if behind > start:
            extents.append(Extent(start, behind - start, 0))
            end = behind
    if not extents:
        raise NotADump(f"QEMU at {address} does not list any RAM of its guest", _NOTE_REMEDY)
    if len(extents) > _MAX_RANGES:
        raise NotADump(f"QEMU at {address} lists {len(extents)} ranges of RAM", "is it QEMU?")
    return extents


def _ranges(text: str) -> Iterator[Tuple[int, int]]:
    """The ranges (end exclusive) of the address space "memory", which the CPUs and ``xp`` read."""
    for view in text.replace("\r\n", "\n").split(_FLAT_VIEW):
        head, _, body = view.partition(_ROOT)
        if ' AS "memory"' in head:
            for first, last in _RANGE.findall(body):
                yield int(first, 16), int(last, 16) + 1
            return


def _note(monitor: Monitor, guest: Guest) -> Optional[bytes]:
    """VMCOREINFO's text as the guest passed it to QEMU; None if it did not.

    QEMU writes it into dumps. To get it, this makes a dump of one byte of memory in an unnamed file.
    """
    descriptor = os.memfd_create("kvintro-dump")
    with os.fdopen(descriptor, "rb") as file:
        where: Dict[str, "str | int | bool"] = {"begin": guest.extents[0].address, "length": 1}
        try:
            monitor.ask("getfd", {"fdname": "kvintro"}, descriptors=[descriptor])
            monitor.ask("dump-guest-memory", {"paging": False, "protocol": "fd:kvintro", **where})
        except Refused:
            try:
                monitor.ask("closefd", {"fdname": "kvintro"})
            except Refused:
                pass  # QEMU has already closed it
            return None
        try:
            return read_headers(file).note("VMCOREINFO")
        except NotADump:
            return None


class Guest(PhysicalMemory):
    """The RAM of a running guest: read from QEMU's process if that is allowed, otherwise from the monitor.

    :ivar direct: whether all of it is read from the process.
    :param pid: PID of QEMU's process; 0 if unknown.
    """

    def __init__(self, monitor: Monitor, ram: List[Extent], pid: int) -> None:
        self._monitor = monitor
        self._process: Optional[int] = None
        self._resident = 0
        super().__init__(ram)
        self._at_host: Dict[int, int] = self._find_at_host(pid) if pid else {}
        self.direct = len(self._at_host) == len(ram)

    def __del__(self) -> None:
        self._monitor.close()
        if self._process is not None:
            os.close(self._process)

    @property
    def search_limit(self) -> int:
        """Bytes to search at most: in proportion to the memory of the process, not to the claimed RAM."""
        return _FREE_SEARCH + 2 * self._resident if self.direct else _SEARCH_BY_MONITOR

    def _find_at_host(self, pid: int) -> Dict[int, int]:
        """Address of each range in QEMU's process. Omits ranges whose bytes differ from the monitor's."""
        try:
            # This remains the memory of that process even if its PID is reused.
            self._process = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
            self._resident = _resident(pid)
        except OSError:
            return {}
        found = {}
        for extent in self.extents:
            try:
                answer = _AT_HOST.fullmatch(self._monitor.command_line(f"gpa2hva {extent.address:#x}"))
            except Refused:
                continue
            if answer is not None and self._agrees(extent, int(answer[1], 16)):
                found[extent.address] = int(answer[1], 16)
            elif not found:
                break  # it may be another process, which opened the socket for QEMU
        return found

    def _agrees(self, extent: Extent, at: int) -> bool:
        size = min(_SAMPLE, extent.size)
        for _ in range(3):  # the guest keeps running
            try:
                if self._read_process(at, size) == self._read_by_monitor(extent.address, size):
                    return True
            except NotInDump:
                return False
        return False

    def _read_process(self, at: int, size: int) -> bytes:
        assert self._process is not None
        try:
            return os.pread(self._process, size, at)
        except (OSError, OverflowError):
            return b""

    def _read(self, extent: Extent, address: int, size: int) -> bytes:
        at = self._at_host.get(extent.address)
        if at is None:
            return self._read_by_monitor(address, min(size, _ASKED))
        return self._read_process(at + address - extent.address, size)

    def _read_by_monitor(self, address: int, size: int) -> bytes:
        """Bytes from the output of ``xp``: ``0000000000001000: 0x53 0xff ...``.

        :raises NotInDump: the output is something else.
        """
        limit = 256 + size * _PER_BYTE + (size // _LINE + 1) * _PER_LINE
        try:
            text = self._monitor.command_line(f"xp /{size}xb {address:#x}", limit=limit)
            words = "".join(line.partition(":")[2] for line in text.splitlines())
            data = bytes.fromhex(words.replace("0x", ""))
        except (Refused, ValueError):
            data = b""
        if len(data) != size:
            raise NotInDump(address, size, physical=True)
        return data

    def pieces(self) -> Iterator[Tuple[int, bytes]]:
        """As in the base class. If a piece cannot be read, its pages are tried one by one.

        :raises SourceError: too many of them cannot be read.
        """
        missing = 0
        for extent in self.extents:
            for start in range(extent.address, extent.address + extent.size, _PIECE):
                size = min(_PIECE, extent.address + extent.size - start)
                try:
                    yield start, self.read(start, size)
                    continue
                except NotInDump:
                    pass
                for page in range(start, start + size, PAGE):
                    try:
                        yield page, self.read(page, min(PAGE, start + size - page))
                    except NotInDump:
                        missing += 1
                if missing > _MAX_MISSING:
                    raise SourceError("QEMU does not let its guest's RAM be read", _TAKE_A_DUMP)


def _resident(pid: int) -> int:
    """Bytes of memory that a process has: in RAM, in swap files, and in huge pages.

    :raises OSError: the kernel does not say.
    """
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
        found = re.findall(r"^(?:VmRSS|VmSwap|HugetlbPages):\s+([0-9]{1,15}) kB", file.read(), re.M)
    return sum(map(int, found)) << 10
