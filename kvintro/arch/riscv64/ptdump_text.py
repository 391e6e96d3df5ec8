# SPDX-License-Identifier: LGPL-2.1-or-later
"""riscv64: lines of /sys/kernel/debug/kernel_page_tables (``arch/riscv/mm/ptdump.c:note_page``)."""

from __future__ import annotations

from typing import Tuple

from kvintro.arch.ptdump_text import NOT_READ, PtdumpText

#: Text printed for each flag of ``pte_bits[]``, in order: names of the flag, and the text without it.
_CELLS = (
    (("N",), "."),
    (("MT(NC)", "MT(IO)", "MT(??)"), "  ..  "),
    (("RSW(1)", "RSW(2)", "RSW(3)"), "  ..  "),
    *(((name,), ".") for name in "DAGUXWRV"),
)


class RiscvText(PtdumpText):
    """See :class:`kvintro.arch.ptdump_text.PtdumpText`."""

    has_physical = True

    def entry(self, level: str, state: str, flags: Tuple[str, ...]) -> str:
        """Level and flags; nothing for what is not mapped."""
        if state not in NOT_READ and not flags:
            return ""
        cells = [next((name for name in names if name in flags), missing) for names, missing in _CELLS]
        return f"{level.upper()} {NOT_READ.get(state) or ' '.join(cells)}"


TEXT = RiscvText()
