# SPDX-License-Identifier: LGPL-2.1-or-later
"""The format of lines in the toy's ptdump: the level comes first, unlike on x86-64."""

from __future__ import annotations

from typing import Dict, Optional, Tuple

from kvintro.arch.ptdump_text import NOT_READ, PtdumpText


class ToyText(PtdumpText):
    """See :class:`kvintro.arch.ptdump_text.PtdumpText`."""

    most_lines: Dict[str, int] = {"fixmap": 2}  # noqa: RUF012

    def entry(self, level: str, state: str, flags: Tuple[str, ...]) -> str:
        """Flags."""
        shown = " ".join(flags) or "-" if state == "present" else ""
        return NOT_READ.get(state, shown)

    def line(
        self,
        start: int,
        size: int,
        level: str,
        state: str,
        flags: Tuple[str, ...],
        physical: Optional[int] = None,
    ) -> str:
        """Level, place, flags."""
        return f"{level.upper()} {start:x}+{size:x} {self.entry(level, state, flags)}\n"


TEXT = ToyText()
