# SPDX-License-Identifier: LGPL-2.1-or-later
"""riscv64: lines of /sys/kernel/debug/kernel_page_tables (``arch/riscv/mm/ptdump.c:note_page``)."""

from __future__ import annotations

from typing import Mapping, Optional, Tuple

from kvintro.arch.ptdump_text import NOT_READ, size_text

#: Text printed for each flag of ``pte_bits[]``, in order: names of the flag, and the text without it.
_CELLS = (
    (("N",), "."),
    (("MT(NC)", "MT(IO)", "MT(??)"), "  ..  "),
    (("RSW(1)", "RSW(2)", "RSW(3)"), "  ..  "),
    *(((name,), ".") for name in "DAGUXWRV"),
)
_LAST = (1 << 64) - 1


class RiscvText:
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
        """Start, end, physical address, size, level, flags; nothing for what is not mapped."""
        if state not in NOT_READ and not flags:
            return ""
        cells = [next((name for name in names if name in flags), missing) for names, missing in _CELLS]
        text = NOT_READ.get(state) or " ".join(cells)
        where = f"0x{start:016x}-0x{start + size & _LAST:016x}"
        return f"{where}    0x{physical or 0:016x} {size_text(size)} {level.upper()} {text}\n"


TEXT = RiscvText()
