# SPDX-License-Identifier: LGPL-2.1-or-later
"""Slots of one page each, at addresses known when the kernel was compiled."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvintro.arch.x86_64 import FIXADDR_TOP, PAGE_SHIFT, PAGE_SIZE, VSYSCALL_ADDR
from kvintro.errors import Unavailable
from kvintro.model import AddressRange, Located, Placement
from kvintro.regions import Region

if TYPE_CHECKING:
    from kvintro.kernel import Kernel


class Fixmap(Region):
    """``FIXADDR_START`` up to the vsyscall page; slots count downwards from ``FIXADDR_TOP``.

    The slots above the vsyscall page, which is slot 511, have no names. Without the page the range goes up to
    FIXADDR_TOP. Below FIXADDR_START lie slots for early boot only, down to FIXADDR_TOT_START.
    """

    key = "fixmap"
    row = 14
    name = "fixmap"
    macro = "FIXADDR_START"

    def locate(self, kernel: Kernel) -> Located:
        try:
            slots = int(kernel.prog.constant("__end_of_permanent_fixed_addresses").value_())
        except LookupError:
            raise Unavailable("its slots are an enum, which cannot be read without types") from None
        if not 0 < slots < 1 << 16:
            raise Unavailable(f"enum fixed_addresses has {slots} slots, which makes no sense")
        start = FIXADDR_TOP - (slots << PAGE_SHIFT)
        # Without CONFIG_X86_VSYSCALL_EMULATION the first slots start where the vsyscall page's number was.
        try:
            kernel.prog.constant("VSYSCALL_PAGE")
            end = VSYSCALL_ADDR - 1
        except LookupError:
            end = FIXADDR_TOP + PAGE_SIZE - 1
        return Placement(AddressRange(start, end), "enum fixed_addresses", note=f"{slots} permanent slots")


REGION = Fixmap()
