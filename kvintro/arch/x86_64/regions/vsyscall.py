# SPDX-License-Identifier: LGPL-2.1-or-later
"""The only page of the kernel half that user mode may use: the first fast system calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, List, Optional, Tuple

from kvintro.arch.x86_64 import PAGE_SIZE, VSYSCALL_ADDR
from kvintro.errors import Unavailable
from kvintro.kernels import Trait
from kvintro.model import (
    Absent,
    Address,
    AddressRange,
    Asked,
    Column,
    Contents,
    Located,
    Placement,
    Size,
    Table,
)
from kvintro.readers.mapped import View, unread
from kvintro.readers.memory import Physical
from kvintro.readers.structures import number, struct_at
from kvintro.regions import Region

if TYPE_CHECKING:
    from kvintro.kernels import Kernel

# arch/x86/entry/vsyscall/vsyscall_64.c: an anonymous enum, which has never changed.
_MODES = {
    0: "vsyscall=emulate: readable",
    1: "vsyscall=xonly: calls are emulated",
}
_NONE = 2
_MODE_NAMES = {0: "emulate", 1: "xonly"}
_VM_READ, _VM_EXEC = 1, 4


@dataclass(frozen=True)
class PageRow:
    """The page.

    :ivar mode: ``emulate`` or ``xonly``.
    :ivar gate: rights of ``gate_vma``, which /proc/PID/maps shows for the page; None if it cannot be read.
    :ivar physical: physical address of the page that is mapped; None if none is.
    """

    start: Address
    end: Address
    size: Size
    mode: str
    gate: Optional[str]
    mapped: Size
    rights: Tuple[str, ...]
    physical: Optional[Address]
    behind: Optional[str]
    problem: Optional[str]


_COLUMNS = (
    Column("start", "address"),
    Column("mode", "mode"),
    Column("gate", "gate vma"),
    Column("rights", "rights"),
    Column("physical", "physical"),
    Column("behind", "what is there"),
    Column("problem", ""),
)


class Vsyscall(Region):
    """``VSYSCALL_ADDR``, one page, slot 511 of the fixmap."""

    key = "vsyscall"
    row = 15
    name = "legacy vsyscall page"
    macro = "VSYSCALL_ADDR"
    reserved = AddressRange(VSYSCALL_ADDR, VSYSCALL_ADDR + PAGE_SIZE - 1)
    traits = Trait.SLOTS | Trait.FOR_USER

    def locate(self, kernel: Kernel) -> Located:
        if not kernel.has_symbol("map_vsyscall", code=True):
            return Absent("CONFIG_X86_VSYSCALL_EMULATION is off")
        mode = kernel.value("vsyscall_mode", 4)
        if mode.value == _NONE:
            return Absent("switched off (vsyscall=none)")
        if mode.value not in _MODES:
            raise Unavailable(f"vsyscall_mode is {mode.value}, which is invalid")
        return Placement(
            AddressRange(VSYSCALL_ADDR, VSYSCALL_ADDR + PAGE_SIZE - 1),
            mode.provenance,
            default_start=VSYSCALL_ADDR,
            note=_MODES[mode.value],
        )

    def contents(self, kernel: Kernel, asked: Asked) -> Contents:
        """The mode, the page as processes see it, and what is mapped (arch/x86/entry/vsyscall)."""
        mode = kernel.value("vsyscall_mode", 4).value
        start, end = VSYSCALL_ADDR, VSYSCALL_ADDR + PAGE_SIZE - 1
        found = View.of(kernel, start, end).stretch(start, end)
        frame = kernel.walk(start).physical if found.mapped else None
        notes: List[str] = []
        gate = None
        try:
            vma = struct_at(kernel, "struct vm_area_struct", kernel.symbol("gate_vma"))
            flags = number(vma, "vm_flags")
            gate = f"{'r' if flags & _VM_READ else '-'}-{'x' if flags & _VM_EXEC else '-'}p"
        except Unavailable as error:
            notes.append(f"gate_vma cannot be read: {error.what}")
        problem = None
        unknown = "" if found.mapped else unread(kernel, start, end)
        if unknown:
            notes.append(f"it is not known what is mapped: {unknown}")
        # map_vsyscall: the page has to be mapped only if it can be read.
        elif mode == 0 and not found.mapped:
            problem = "nothing is mapped, though the mode is emulate"
        elif mode == 1 and found.mapped:
            problem = "a page is mapped, though the mode is xonly"
        if problem:
            notes.append(problem)
        row = PageRow(
            start=Address(start),
            end=Address(end),
            size=Size(PAGE_SIZE),
            mode=_MODE_NAMES.get(mode, str(mode)),
            gate=gate,
            mapped=Size(found.mapped),
            rights=found.rights,
            physical=None if frame is None else Address(frame),
            behind=None if frame is None else Physical(kernel).behind(frame),
            problem=problem,
        )
        return Contents((Table("page", _COLUMNS, (row,)),), {"mode": row.mode}, notes)


REGION = Vsyscall()
