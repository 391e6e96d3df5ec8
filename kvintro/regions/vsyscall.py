# SPDX-License-Identifier: LGPL-2.1-or-later
"""The one page of the kernel half that user mode may use: the first fast system calls."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvintro.arch.x86_64 import PAGE_SIZE, VSYSCALL_ADDR
from kvintro.errors import Unavailable
from kvintro.model import Absent, AddressRange, Located, Placement
from kvintro.regions import Region

if TYPE_CHECKING:
    from kvintro.kernel import Kernel

# arch/x86/entry/vsyscall/vsyscall_64.c: an anonymous enum, the same since it was written.
_MODES = {
    0: "vsyscall=emulate: readable",
    1: "vsyscall=xonly: calls are emulated",
}
_NONE = 2


class Vsyscall(Region):
    """``VSYSCALL_ADDR``, one page, slot 511 of the fixmap."""

    key = "vsyscall"
    row = 15
    name = "legacy vsyscall page"
    macro = "VSYSCALL_ADDR"

    def locate(self, kernel: Kernel) -> Located:
        if not kernel.has_symbol("vsyscall_mode"):
            return Absent("CONFIG_X86_VSYSCALL_EMULATION is off")
        mode = kernel.value("vsyscall_mode", 4)
        if mode.value == _NONE:
            return Absent("switched off (vsyscall=none)")
        if mode.value not in _MODES:
            raise Unavailable(f"vsyscall_mode is {mode.value}, which makes no sense")
        return Placement(
            AddressRange(VSYSCALL_ADDR, VSYSCALL_ADDR + PAGE_SIZE - 1),
            mode.provenance,
            default_start=VSYSCALL_ADDR,
            note=_MODES[mode.value],
        )


REGION = Vsyscall()
