# SPDX-License-Identifier: LGPL-2.1-or-later
"""aarch64: lines of /sys/kernel/debug/kernel_page_tables (``arch/arm64/mm/ptdump.c:note_page``)."""

from __future__ import annotations

from functools import lru_cache
from typing import Tuple

from kvintro.arch.ptdump_text import NOT_READ, PtdumpText, size_text
from kvintro.model import ALL

#: Text printed for each flag of ``pte_bits[]``, in order: if the flag is set, and if it is not.
_CELLS = (
    ("F", "F", " "),
    ("USR", "USR", "   "),
    ("ro", "ro", "RW"),
    ("NX", "NX", "x "),
    ("SHD", "SHD", "   "),
    ("AF", "AF", "  "),
    ("NG", "NG", "  "),
    ("CON", "CON", "   "),
    ("BLK", "BLK", "   "),
    ("UXN", "UXN", "   "),
    ("GP", "GP", "  "),
)


class Arm64Text(PtdumpText):
    """See :class:`kvintro.arch.ptdump_text.PtdumpText`."""

    def size(self, size: int) -> str:
        """Its unit is at least K, as the kernel counts in kilobytes."""
        return size_text(size) if size & ALL else f"{1 << 4:9d}E"

    def entry(self, level: str, state: str, flags: Tuple[str, ...]) -> str:
        """Level and flags."""
        return _entry(level, state, flags)


@lru_cache(maxsize=1 << 12)
def _entry(level: str, state: str, flags: Tuple[str, ...]) -> str:
    name = level.upper()
    if state in NOT_READ:
        return f"{name} {NOT_READ[state]}"
    if not flags:
        return name
    cells = [given if flag in flags else missing for flag, given, missing in _CELLS]
    types = [flag for flag in flags if "/" in flag]
    return " ".join([name, *cells, *types])


TEXT = Arm64Text()
