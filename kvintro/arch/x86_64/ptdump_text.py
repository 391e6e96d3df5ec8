# SPDX-License-Identifier: LGPL-2.1-or-later
"""x86-64: lines of /sys/kernel/debug/page_tables (``arch/x86/mm/dump_pagetables.c:note_page``)."""

from __future__ import annotations

from functools import lru_cache
from typing import Tuple

from kvintro.arch.ptdump_text import NOT_READ, PtdumpText

_CELLS = ("USR", "RW", "PWT", "PCD", "PSE", "PAT", "GLB")


class X86Text(PtdumpText):
    """See :class:`kvintro.arch.ptdump_text.PtdumpText`."""

    #: ``address_markers[]``.
    most_lines = {"ESPfix Area": 16}  # noqa: RUF012

    def entry(self, level: str, state: str, flags: Tuple[str, ...]) -> str:
        """Rights and level."""
        return _rights(level, state, flags)


@lru_cache(maxsize=1 << 12)
def _rights(level: str, state: str, flags: Tuple[str, ...]) -> str:
    """The rights and the level, as ``printk_prot()`` prints them."""
    if state != "present":
        return f"{NOT_READ.get(state, ''):30}{level}"
    cells = [("RW " if "RW" in flags else "ro ") if name == "RW" else _cell(name, flags) for name in _CELLS]
    return f"{''.join(cells)}{'NX ' if 'NX' in flags else 'x  '}{level}"


def _cell(name: str, flags: Tuple[str, ...]) -> str:
    return f"{name} " if name in flags else "    "


TEXT = X86Text()
