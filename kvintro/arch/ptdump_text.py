# SPDX-License-Identifier: LGPL-2.1-or-later
"""Base of the ``ptdump_text`` module of an architecture, which formats lines of the kernel's ptdump.

The ``ptdump`` module decides on lines and headings, see :class:`kvintro.queries.ptdump.Dump`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import lru_cache
from typing import Mapping, Optional, Tuple

#: Text in place of the flags if a table was not read, by the state of the line.
NOT_READ: Mapping[str, str] = {"not-in-dump": "(table not in dump)", "over-limit": "(too many tables)"}

_LAST = (1 << 64) - 1
_UNITS = "BKMGTPE"


class PtdumpText(ABC):
    """Base of an architecture's ``TEXT``.

    :cvar most_lines: maximum number of lines that the kernel prints below a heading, for headings with a
        limit.
    :cvar has_physical: whether lines have the physical address of the first entry.
    """

    most_lines: Mapping[str, int] = {}
    has_physical = False

    @abstractmethod
    def entry(self, level: str, state: str, flags: Tuple[str, ...]) -> str:
        """The part of a line after the size; empty if the kernel prints no line."""

    def size(self, size: int) -> str:
        """A size as the kernel prints it."""
        return size_text(size)

    def line(
        self,
        start: int,
        size: int,
        level: str,
        state: str,
        flags: Tuple[str, ...],
        physical: Optional[int] = None,
    ) -> str:
        """One line, with its newline; empty if the kernel prints none.

        :param size: bytes; the line ends at ``start + size`` modulo 2^64, exclusive.
        :param level: the kernel's name of the level (``pte``), as in JSON.
        :param state: ``present``, ``not-present``, or one of :data:`NOT_READ`.
        :param flags: names of the flags that are set, as in JSON.
        :param physical: physical address of the first entry.
        """
        text = self.entry(level, state, flags)
        if not text:
            return ""
        if self.has_physical:
            text = f"0x{physical or 0:016x} {self.size(size)} {text}"
            return f"0x{start:016x}-0x{start + size & _LAST:016x}    {text}\n"
        # Hostile tables can yield half a million lines, and this is the fastest way to format one.
        return "0x%016x-0x%016x   %s %s\n" % (start, start + size & _LAST, self.size(size), text)  # noqa: UP031


@lru_cache(maxsize=1 << 12)
def size_text(size: int) -> str:
    """A size in the largest unit that divides it, in ten columns."""
    unit = 0
    while not size & 1023 and unit < len(_UNITS) - 1:
        size >>= 10
        unit += 1
    return f"{size:9d}{_UNITS[unit]}"
