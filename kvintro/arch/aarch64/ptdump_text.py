# SPDX-License-Identifier: LGPL-2.1-or-later
"""aarch64: lines of /sys/kernel/debug/kernel_page_tables (``arch/arm64/mm/ptdump.c:note_page``)."""

from __future__ import annotations

from functools import lru_cache
from typing import Mapping, Optional, Tuple

from kvintro.arch.ptdump_text import NOT_READ, size_text

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
_LAST = (1 << 64) - 1


class Arm64Text:
    """See :class:`kvintro.arch.ptdump_text.PtdumpText`."""

    most_lines: Mapping[str, int] = {}

    def line(
        self,
        start: int,
        size: int,
        level: str,
        state: str,
        flags: Tuple[str, ...],
        physical: Optional[int] = None,
    ) -> str:
        """Start, end, size, level, flags."""
        return "0x%016lx-0x%016lx   %s %s\n" % (  # noqa: UP031
            start,
            start + size & _LAST,
            _size(size),
            _entry(level, state, flags),
        )


def _size(size: int) -> str:
    """A size; its unit is at least K, as the kernel counts in kilobytes."""
    return size_text(size) if size & _LAST else f"{1 << 4:9d}E"


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
