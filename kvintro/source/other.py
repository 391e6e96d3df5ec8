# SPDX-License-Identifier: LGPL-2.1-or-later
"""Describes dumps of architectures whose page tables kvintro does not know, for ``kvintro info``.

VMCOREINFO is found and compared with memory as for other dumps, but without page tables: init_uts_ns must
have its release, and the image must have its build id.
"""

from __future__ import annotations

from itertools import islice
from typing import Callable, Dict, Iterator, NamedTuple, Optional

import drgn

from kvintro.arch import names
from kvintro.arch.others import OtherArchitecture
from kvintro.errors import KvintroError, NotADump, WrongArchitecture
from kvintro.paging.step import ReadPhysical
from kvintro.source.dump import Dump
from kvintro.source.elf import Segment
from kvintro.source.note import parse, symbols_of
from kvintro.source.opened import Source
from kvintro.source.physical import MemoryFile, PhysicalMemory
from kvintro.source.vmcoreinfo import (
    MAX_UTS_OFFSET,
    UTS_FIELD,
    BuildIds,
    Chosen,
    Claims,
    Judge,
    MemorySearch,
    Search,
    Verdict,
    Wanted,
    choose_from_any,
    names_begin,
)

_MACHINE = 4 * UTS_FIELD  # struct new_utsname.machine
_MAX_RANGES = 1 << 16
_NOTHING = Chosen(b"", "", ())


class OtherDump(NamedTuple):
    """What a dump says about itself and its kernel.

    :ivar source: its properties. Its program has no memory.
    :ivar arch: its architecture.
    :ivar machine: the kernel's name for its architecture; None if unknown.
    :ivar known_from: where that was read.
    :ivar problem: why there is no VMCOREINFO; empty if there is one.
    """

    source: Source
    arch: OtherArchitecture
    machine: Optional[str]
    known_from: str
    problem: str


class UnknownTables(WrongArchitecture):
    """kvintro does not know the page tables of a dump's architecture.

    :ivar dump: the dump's description, if the request asked for it.
    """

    def __init__(self, path: str, arch: OtherArchitecture, dump: Optional[OtherDump] = None) -> None:
        super().__init__(
            f"{path} is a dump of {arch.name}, and kvintro does not know the page tables of {arch.name} yet",
            f"kvintro info shows what the dump says about itself; all commands work on dumps of {names()}",
        )
        self.dump = dump


class _OtherClaims(Claims):
    def __init__(self, lines: Dict[str, str], arch: OtherArchitecture) -> None:
        super().__init__(lines, symbols_of(lines))
        self._lines = lines
        self._arch = arch

    def physical(self, address: int) -> int:
        return self._arch.physical(address, self._lines)


class OtherJudge(Judge):
    """Compares texts with the memory of an architecture whose page tables are not known."""

    def __init__(self, arch: OtherArchitecture, read: ReadPhysical, lacks: Callable[[int], bool]) -> None:
        super().__init__(read, lacks=lacks)
        self._other = arch
        self._ids = {order: BuildIds(read, order=order) for order in arch.orders.values()}

    def __call__(self, text: bytes, *, with_build_id: bool = True) -> Verdict:
        lines = parse(text)
        if not lines.get("OSRELEASE"):
            return Verdict("wrong", "it has no OSRELEASE")
        claims = _OtherClaims(lines, self._other)
        try:
            verdict = self._release(claims)
        except ValueError:
            return Verdict("wrong", "it has a malformed number")
        if verdict.state != "fits":
            # If the machine has no such memory, the text is from another one.
            return verdict._replace(state="wrong") if verdict.state == "absent" else verdict
        order = self._other.orders.get(self.machine(text) or "")
        if order is None:
            return Verdict("wrong", f"the kernel in memory is not one of {self._other.name}")
        self._build_ids = self._ids[order]
        return self._build_id(claims)

    def recognises(self, text: bytes) -> bool:
        return False

    def machine(self, text: bytes) -> Optional[str]:
        """``utsname.machine`` where a text says it is; None if its release is not there."""
        try:
            claims = _OtherClaims(parse(text), self._other)
            address = claims.physical(claims.symbols["init_uts_ns"])
            data = self._read(address, MAX_UTS_OFFSET + _MACHINE + UTS_FIELD)
        except (KvintroError, LookupError, ValueError):
            return None
        at = names_begin(data, claims.release)
        if at is None:
            return None
        return data[at + _MACHINE :][:UTS_FIELD].split(b"\0")[0].decode("ascii", "replace")


def describe(dump: Dump, wanted: Wanted, search: Search, limit: int) -> OtherDump:
    """Describe a dump whose :attr:`~kvintro.source.dump.Dump.other` is not None.

    :param wanted: the user's choice of VMCOREINFO.
    :param search: shows the progress of the search for VMCOREINFO.
    :param limit: how many bytes of memory to search at most.
    :raises WrongVmcoreinfo: the user's choice does not fit.
    """
    arch = dump.other
    assert arch is not None
    layout = _memory_of(dump)
    judge = OtherJudge(arch, layout.read, dump.lacks)
    memory = MemorySearch([layout], watch=search, limit=limit, judge_of=lambda _: judge)
    chosen, problem = _NOTHING, ""
    try:
        chosen = choose_from_any(memory, dump.path, wanted, dump.note, dump.called)
    except NotADump as error:
        problem = dump.refusal(error).what
        if dump.note is None and not memory.looked_at:
            problem = f"{dump.path} has no VMCOREINFO note, and its memory cannot be read"
    source = dump.source(drgn.Program(), chosen)
    source.vmcoreinfo = parse(chosen.text)
    source.segments = source.segments or tuple(islice(_ranges(dump), _MAX_RANGES))
    machine = judge.machine(chosen.text)
    if machine in arch.orders:
        return OtherDump(source, arch, machine, "init_uts_ns", problem)
    return OtherDump(source, arch, dump.other_machine, "the file's header", problem)


def _memory_of(dump: Dump) -> PhysicalMemory:
    try:
        return dump.layouts[0]
    except NotADump:  # so much of it is missing that its memory cannot be read
        return MemoryFile(dump.content, [])


def _ranges(dump: Dump) -> Iterator[Segment]:
    for one in dump.held():
        if one.there:
            yield Segment(0, 0, one.start, one.end - one.start, one.end - one.start)
